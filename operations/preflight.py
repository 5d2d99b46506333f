"""Stopping a host's deploy before its first change."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from operations.remote import call, fail


@operation()
def required(failures: Sequence[str]) -> Generator[PyinfraCommand, None, None]:
    """Ensure that preflight found nothing that forbids the deploy of this host; other hosts go on.

    + failures: what forbids it, a line each
    """
    if not failures:
        host.noop("preflight found nothing against the deploy")
        return
    yield call(lambda _state, host: fail(host, "\n".join([*failures, "Nothing was changed on this host."])))
