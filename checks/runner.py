"""Run all checks, each on its own: one that breaks is a FAIL, and the others still run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from checks import api, cloud, memory, monitoring, prometheus, security, service
from checks.result import Check, Result, Status

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

# The API goes first: the response time wants a machine that the other checks do not load.
GROUPS: Mapping[str, Sequence[Check]] = {
    "api": (api.health, api.models, api.completion, api.streaming, api.response_time, cloud.reachable),
    "service": (
        service.units,
        service.restarts,
        service.users,
        service.release,
        service.model_file,
        service.running_model,
    ),
    "memory": (memory.resident, memory.accounted, memory.oom, memory.swap),
    "security": (
        security.listeners,
        security.service_network,
        security.shared_places,
        security.socket,
        security.firewall,
        security.exposure,
        security.files,
    ),
    "monitoring": (
        monitoring.cron,
        monitoring.log_rotation,
        monitoring.last_health,
        monitoring.last_drill,
        monitoring.metrics,
        prometheus.services,
        prometheus.targets,
    ),
}


def run(config: Config, host: Host, groups: Mapping[str, Sequence[Check]] = GROUPS) -> tuple[list[Result], float]:
    """All results in the order of the groups, and the seconds it took."""
    start = time.perf_counter()
    results = [
        replace(result, group=group)
        for group, checks in groups.items()
        for check in checks
        for result in _guarded(check, config, host)
    ]
    return results, time.perf_counter() - start


def _guarded(check: Check, config: Config, host: Host) -> Iterator[Result]:
    """The results of one check; what it raises becomes a last result of its own."""
    try:
        yield from check(config, host)
    except Exception as error:  # any defect of a check is a finding, and must not hide the other checks
        yield _broken(check.__name__.replace("_", " "), error, host)


def _broken(name: str, error: Exception, host: Host) -> Result:
    if isinstance(error, PermissionError) and not host.is_root:
        return Result(name, Status.WARN, "not looked at", "", "This needs root: sudo local-llm test")
    what = f"{type(error).__name__}: {error}"
    return Result(
        name,
        Status.FAIL,
        " ".join(what.split()),
        "",
        "The check itself could not be done, so nothing is known. See the state: local-llm status",
    )
