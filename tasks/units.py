"""Our services' units, and what of the host's /run each of them sees."""

from __future__ import annotations

from typing import Any

from checks.contract import paths
from operations.files import ManagedFile
from operations.jobs import RESOLVER_FILES
from tasks.rendering import rendered

OF_RUN: dict[str, tuple[str, ...]] = {
    paths.SERVICE_UNIT: (paths.RUNTIME,),
    # Through systemd's own socket HAProxy says that it is ready.
    paths.GATEWAY_UNIT: (paths.GATEWAY_RUNTIME, paths.PUBLISHED, "/run/systemd/notify"),
    paths.DRILL_UNIT: (paths.DRILL_RUNTIME, paths.ROOT_RUNTIME),
    paths.ALERT_UNITS["webhook"]: (paths.ALERT_RUNTIME,),
    # Alerts are sent by units, which systemd is asked to start.
    f"{paths.ALERT_RELAY}.service": (
        paths.PUBLISHED,
        paths.ROOT_RUNTIME,
        paths.ALERT_RUNTIME,
        "/run/systemd/private",
        "/run/systemd/journal/socket",
    ),
    **dict.fromkeys((*paths.PROMETHEUS_UNITS, *(f"{way}.service" for way in paths.PROMETHEUS_WAYS)), ()),
}
"""Paths below /run by unit; the rest of /run is not there for it. The unit of alert_command is not among them: what
the operator's program needs is not known."""


def hardened(unit: str, *, resolves: bool = False, **variables: Any) -> ManagedFile:
    """A unit's file. `resolves`: it looks up names, so it sees where the host's resolvers are written down."""
    return rendered(
        f"/etc/systemd/system/{unit}",
        of_run=OF_RUN[unit],
        resolver_files=RESOLVER_FILES if resolves else (),
        **variables,
    )


def seen_of_run(unit: str) -> tuple[str, ...]:
    """All that a process of the unit may see of the host's /run."""
    return (*OF_RUN[unit], *RESOLVER_FILES)
