"""Verifying a deployed host by its own checks."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host, state
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.state import StateStage

from checks.result import Result, Status
from facts.base import read
from facts.verification import Report
from operations.remote import call, fail
from tasks.tables import show


@operation()
def verified() -> Generator[PyinfraCommand, None, None]:
    """Ensure that every check on the host passes: shows them in one table, fails on any FAIL, changes nothing."""
    if state.current_stage != StateStage.Execute:
        return
    results = read(Report)
    if results is None:
        yield call(
            lambda _s, host: fail(host, "Nothing is deployed here: run `.venv/bin/pyinfra inventory.py deploy.py`")
        )
        return
    show(
        f"Checks: {host.name}",
        ("check", "status", "measured", "limit", "what to do"),
        [(result.name, result.status.value, result.value, result.limit, result.remedy) for result in results],
    )
    failures = [result for result in results if result.status is Status.FAIL]
    if not failures:
        host.noop(f"{len(results)} checks, none failed")
        return
    yield call(lambda _s, host: fail(host, "\n".join(map(_in_words, failures))))


def _in_words(result: Result) -> str:
    return f"{result.name}: {result.value}; limit: {result.limit}. {result.remedy}"
