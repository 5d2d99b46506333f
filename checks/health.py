"""The quick probe that cron runs: service, gateway, API, memory, in one logfmt line.

    2026-11-22T10:05:00Z OK service=active gateway=active api=ok api_ms=3 rss_mib=1204 … cloud=up
    2026-11-22T10:10:00Z FAIL service=failed gateway=active api=http_503 … reason="local-llm.service is failed"

A value that is not known is "-". Imports little, because it runs all day (see `probe`).
"""

from __future__ import annotations

import calendar
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from checks import cgroup, gateway, journal, probe
from checks.host import MIB
from checks.memory import NEAR_LIMIT

if TYPE_CHECKING:
    from checks.config import Config
    from checks.host import Host
    from checks.systemd import Unit

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_FIELD = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))')
_PLAIN = re.compile(r'[^\s"=\\]+')


@dataclass(frozen=True)
class Sample:
    """One measurement. `oom_kills` counts since the unit was last started on purpose, like `restarts`.

    `cloud` is up, down, none (not configured) or None (not known); its outage is no failure of this host.
    """

    time: float
    service: str
    gateway: str
    api: str
    limit_mib: int
    api_ms: int | None = None
    rss_mib: int | None = None
    cgroup_mib: int | None = None
    restarts: int | None = None
    oom_kills: int | None = None
    cloud: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Record:
    """A line of the log, read back."""

    time: float
    ok: bool
    values: dict[str, str] = field(default_factory=dict)


def measure(config: Config, host: Host) -> Sample:
    """Look at everything once; what cannot be read becomes a reason, never an exception."""
    now = host.now()
    try:
        service, gateway = host.units(config.service_unit, config.gateway_unit)
    except (OSError, TimeoutError) as error:
        api = probe.over_tcp(config.api_url)
        return Sample(
            now, "unknown", "unknown", api.state, config.memory_max_mib, _ms(api), reasons=(str(error), *_api(api))
        )

    api = probe.over_tcp(config.api_url)
    memory = cgroup.read(host, service)
    rss = _rss(host, service)
    oom_kills, oom_reasons = _oom(config, host, service, memory)
    reasons = (
        *(f"{unit.name} is {unit.active_state}" for unit in (service, gateway) if not unit.active),
        *_api(api),
        *_memory(config, rss),
        *oom_reasons,
    )
    return Sample(
        time=now,
        service=service.active_state,
        gateway=gateway.active_state,
        api=api.state,
        limit_mib=config.memory_max_mib,
        api_ms=_ms(api),
        rss_mib=_mib(rss),
        cgroup_mib=_mib(memory.current_bytes) if service.pid else None,
        restarts=service.restarts,
        oom_kills=oom_kills,
        cloud=_cloud(config, host),
        reasons=reasons,
    )


def format_line(sample: Sample) -> str:
    """The sample as one line, without the line break."""
    values: dict[str, object] = {
        "service": sample.service,
        "gateway": sample.gateway,
        "api": sample.api,
        "api_ms": sample.api_ms,
        "rss_mib": sample.rss_mib,
        "cgroup_mib": sample.cgroup_mib,
        "limit_mib": sample.limit_mib,
        "restarts": sample.restarts,
        "oom_kills": sample.oom_kills,
        "cloud": sample.cloud,
    }
    if sample.reasons:
        values["reason"] = "; ".join(sample.reasons)
    when = time.strftime(_TIME_FORMAT, time.gmtime(sample.time))
    return " ".join([when, "OK" if sample.ok else "FAIL", logfmt(values)])


def logfmt(values: Mapping[str, object]) -> str:
    """Pairs as one line, whatever the values hold; None is "-"."""
    return " ".join(f"{key}={_quoted('-' if value is None else str(value))}" for key, value in values.items())


def parse_line(line: str) -> Record | None:
    """A line of `format_line`, or None for anything else (a line cut off in a crash, say)."""
    head = line.split(" ", 2)
    if len(head) < 3 or head[1] not in ("OK", "FAIL"):
        return None
    try:
        seconds = calendar.timegm(time.strptime(head[0], _TIME_FORMAT))
    except ValueError:
        return None
    values = {
        key: re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for key, quoted, plain in _FIELD.findall(head[2])
    }
    return Record(float(seconds), head[1] == "OK", values)


def append(path: str, line: str) -> None:
    """Add a line to the log in one write, so that no reader and no other writer sees half of it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)


class AlreadyRunningError(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: str) -> Iterator[None]:
    """Hold the lock file, or raise AlreadyRunningError at once.

    The folder is open to every user, so a file that another user made there must not stop root: root replaces
    it. A user who may not open root's file goes on without, since an unprivileged run writes nothing that matters.
    """
    descriptor = _open_lock(path)
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(path) from None
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: str) -> int | None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(3):
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            # O_CREAT on an existing file of another user fails even for root where fs.protected_regular is set.
            try:
                return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
        except OSError:
            if os.geteuid() != 0:
                return None
            Path(path).unlink()
            continue
        if os.fstat(descriptor).st_uid == os.geteuid():
            return descriptor
        os.close(descriptor)
        if os.geteuid() != 0:
            return None
        Path(path).unlink()
    raise OSError(f"{path} cannot be made a lock")


def _api(answer: probe.Answer) -> tuple[str, ...]:
    return () if answer.ok else (f"the API does not answer as it should: {answer.detail}",)


def _memory(config: Config, rss: int | None) -> tuple[str, ...]:
    if rss is None or rss < config.memory_max_mib * NEAR_LIMIT * MIB:
        return ()
    return (f"memory is near its limit: {rss // MIB} of {config.memory_max_mib} MiB",)


def _oom(config: Config, host: Host, unit: Unit, memory: cgroup.Memory) -> tuple[int | None, tuple[str, ...]]:
    """Kills, and a reason to fail if one happened since the last scheduled run.

    The journal is asked only if the service went down at all: an OOM kill always ends it (OOMPolicy=stop).
    """
    counter = memory.oom_kills or 0
    if unit.active and not unit.restarts:
        killed = (f"the kernel killed {counter} of its processes for lack of memory",)
        return counter, killed if counter else ()
    try:
        times = journal.times(host, journal.oom_kills(unit.name), config.log_retention_days)
    except OSError:
        return None, ()
    recent = [time for time in times if host.now() - time <= config.health_interval_minutes * 60]
    reasons = ("the kernel killed it for lack of memory since the last check",) if recent else ()
    return max(len(times), counter), reasons


def _cloud(config: Config, host: Host) -> str | None:
    """What the gateway's own checks of the cloud say; a user who may not ask does not know."""
    if config.cloud is None:
        return "none"
    try:
        return "up" if gateway.server(config, host, gateway.CLOUD).up else "down"
    except OSError:
        return None


def _rss(host: Host, unit: Unit) -> int | None:
    if not unit.pid:
        return None
    try:
        return host.rss_bytes(unit.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _ms(answer: probe.Answer) -> int | None:
    return round(answer.milliseconds) if answer.ok else None


def _mib(value: int | None) -> int | None:
    return None if value is None else value // MIB


def _quoted(text: str) -> str:
    """As logfmt has it: quotes around anything but one plain word; one line whatever the text holds."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
