"""A service that runs but does not answer is restarted: what systemd cannot see, because the process is there.

Never while a deploy or a drill holds its lock, for two hours at most, never a unit that somebody stopped, never a model
that is being loaded, and only so often an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from checks import health, probe, recall
from checks.contract.paths import DEPLOY_LOCK

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.samples import Sample, Store
    from checks.systemd import Unit

_KEY = "healing"
_GATEWAY_HANGS = ("timeout", "refused", "broken")
"""What the API looks like where the gateway hangs; for a model that hangs it answers itself."""
_HOUR_SECONDS = 3600.0
_SOCKET_SECONDS = 3.0
_RESTART_SECONDS = 10.0
_YOUNG_SECONDS = 30.0
"""A process is given this long to make its socket."""
_APART_INTERVALS = 0.5
"""Failures that lie closer together count once: somebody looks by hand."""
_PATIENCE_INTERVALS = 3
"""Failures that lie further apart are not in a row: the machine was off, or nobody looked."""


@dataclass(frozen=True)
class Hang:
    """A unit whose process runs without answering; `pid` tells one process from the next."""

    unit: str
    pid: int
    why: str


def heal(config: Config, host: Host, store: Store | None, sample: Sample) -> str | None:
    """Restart what has hung for as many checks as configured; returns what was done and why, None if nothing.

    Raises OSError where nothing can be remembered: then nothing is restarted.
    """
    if not config.healing.restarts_per_hour or not host.is_root:
        return None
    before = recall.recall(host, store, _KEY)
    hang = _hang(config, host, sample)
    if hang is None:
        if before.get("failures"):
            recall.remember(host, store, _KEY, before, {**before, "failures": 0})
        return None
    try:
        with health.lock(str(host.path(DEPLOY_LOCK))):
            return _restarted(config, host, store, sample, before, hang)
    except health.AlreadyRunningError:
        if not health.is_overdue(sample.locked_seconds):
            return None
        return _restarted(config, host, store, sample, before, hang)


def _restarted(
    config: Config, host: Host, store: Store | None, sample: Sample, before: Mapping[str, Any], hang: Hang
) -> str | None:
    # The wall clock may be set back and forth.
    now = host.monotonic()
    known = before if before.get("boot") == sample.boot_id else {}
    failures = _failures(config, known, hang, now)
    if failures is None:
        return None
    times = [time for time in known.get("times", []) if now - _HOUR_SECONDS < time <= now]
    due = failures >= config.healing.after_failures and len(times) < config.healing.restarts_per_hour
    after = {
        "boot": sample.boot_id,
        "unit": hang.unit,
        "pid": hang.pid,
        "failures": 0 if due else failures,
        "time": now,
        "times": [*times, now] if due else times,
    }
    # First the note, then the deed: a restart that is not remembered could be repeated without end.
    recall.remember(host, store, _KEY, before, after)
    if not due:
        return None
    # try-restart leaves alone what somebody has stopped meanwhile; systemd wakes and kills a process that is stopped.
    done = host.run("systemctl", "try-restart", "--no-block", hang.unit, timeout_seconds=_RESTART_SECONDS)
    checks = "1 check" if failures == 1 else f"{failures} checks in a row"
    if done.code != 0:
        return f"{hang.unit} could not be restarted ({done.message}): {hang.why}, {checks}"
    return f"restarted {hang.unit}: {hang.why}, {checks}"


def _failures(config: Config, known: Mapping[str, Any], hang: Hang, now: float) -> int | None:
    """How many checks in a row have found the same process hung; None where this one came too soon to count."""
    if (known.get("unit"), known.get("pid")) != (hang.unit, hang.pid):
        return 1
    failures = int(known["failures"])
    intervals = (now - float(known["time"])) / (config.health_interval_minutes * 60)
    if not failures or not 0 <= intervals <= _PATIENCE_INTERVALS:
        return 1
    return failures + 1 if intervals >= _APART_INTERVALS else None


def _hang(config: Config, host: Host, sample: Sample) -> Hang | None:
    """Which unit hangs, if one does: a process that is there and old enough, and does not do what it is for."""
    if sample.api == "ok" and sample.probe != "failed":
        return None
    try:
        service, gateway = host.units(config.service_unit, config.gateway_unit)
    except (OSError, TimeoutError):
        return None
    if sample.api in _GATEWAY_HANGS and _settled(host, gateway) and not _answers(config):
        return Hang(gateway.name, gateway.pid, f"it runs, but {_api_words(sample.api)}")
    if not _settled(host, service):
        return None
    direct = probe.over_socket(str(host.path(config.socket)), _SOCKET_SECONDS)
    if direct.state == "loading":
        return None
    if not direct.ok:
        return Hang(service.name, service.pid, f"it runs, but on its socket: {direct.detail}")
    if sample.probe == "failed":
        return Hang(service.name, service.pid, "it runs, but completes nothing")
    if sample.api in _GATEWAY_HANGS and _settled(host, gateway):
        return Hang(gateway.name, gateway.pid, f"it runs, but {_api_words(sample.api)}")
    return None


def _answers(config: Config) -> bool:
    """Whether the gateway shows its counters, for which it asks nobody."""
    try:
        probe.get(config.metrics_url, _SOCKET_SECONDS)
    except OSError:
        return False
    return True


def _settled(host: Host, unit: Unit) -> bool:
    up = unit.uptime_seconds(host.monotonic())
    return unit.pid > 0 and up is not None and up >= _YOUNG_SECONDS


def _api_words(state: str) -> str:
    return {"timeout": "does not answer in time", "refused": "does not listen"}.get(state, "does not answer well")
