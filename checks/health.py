"""The quick look that cron takes: service, gateway, API, model, memory, machine, in one sample and one logfmt line.

    2026-11-22T10:05:00Z OK service=active gateway=active api=ok api_ms=3 probe=ok probe_ms=71 rss_mib=1204 … cloud=up
    2026-11-22T10:10:00Z FAIL service=failed gateway=active api=http_503 … reason="local-llm.service is failed"

A value that is not known is "-". Imports little, because it runs all day (see `probe`); `rounds` stores what it finds.
"""

from __future__ import annotations

import calendar
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks import cgroup, gateway, journal, machine, probe
from checks.contract.paths import DEPLOY_LOCK, DRILL_RECORD
from checks.host import MIB
from checks.memory import NEAR_LIMIT, STALLED_PERCENT
from checks.output import printable
from checks.samples import HEALTH, Sample, window_seconds

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.systemd import Unit
    from checks.window import Window

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_FIELD = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))')
_PLAIN = re.compile(r'[^\s"=\\]+')

# One prompt token and one to answer: what a request that comes meanwhile waits for is one token's time.
_PROBE_PATH = "/v1/completions"
_PROBE_PROMPT = "a"
_PROBE_SECONDS = 10.0
_SETTLE_SECONDS = 0.2
_MODEL_BROKE_OFF = (502, 504)
"""What the gateway itself says of a model that broke off its answer or was silent."""

_STEP_SECONDS = 300.0
"""More than one step of work takes: 2,048 tokens of a prompt, which are 45 s on 2 quiet cores."""
_SILENT_PATIENCE = 3
"""How many times as long a server may be silent: a whole prompt of 16,384 tokens takes 6 minutes."""
_CRON_SECONDS = 10.0
"""By so much two runs of cron may be closer together than the interval."""

_LOCKED_SECONDS = 2 * 3600.0


@dataclass(frozen=True)
class Record:
    """A line of the log, read back."""

    time: float
    ok: bool
    values: dict[str, str] = field(default_factory=dict)


def measure(config: Config, host: Host, window: Window | None = None, before: Sample | None = None) -> Sample:
    """Look at everything once; what cannot be read becomes a reason, never an exception.

    `window` is what the journal tells of the time since `before`, the sample that was stored last. Without it the model
    is not asked for a token, because nobody knows whether that would push a user's prompt out of its cache. Where
    systemd does not answer, what needs it is not known; what was counted is.
    """
    known: dict[str, Any] = {
        "time": int(host.now()),
        "kind": HEALTH,
        "memory_limit_bytes": config.memory_max_mib * MIB,
        "drill_ok": _drill_ok(host),
        **machine.look(host),
        **_counted(window),
    }
    passed = window_seconds(Sample(**known), before)
    known["locked_seconds"] = locked = _locked_seconds(host, before, passed)
    api = probe.over_tcp(config.api_url)
    known |= {"api": api.state, "api_seconds": api.milliseconds / 1000 if api.ok else None}
    try:
        service, front = host.units(config.service_unit, config.gateway_unit)
    except (OSError, TimeoutError) as error:
        kills, oom_reasons = _oom(config, host, None, 0, window, before)
        reasons = (str(error), *_api(api), *oom_reasons, *_overdue(locked))
        return Sample(**known, **kills, service="unknown", gateway="unknown", probe="none", ok=False, reasons=reasons)

    memory = cgroup.read(host, service)
    rss = resident_bytes(host, service)
    local, cloud = _sides(config, host)
    kills, oom_reasons = _oom(config, host, service, memory.oom_kills or 0, window, before)
    tokens = machine.tokens(config) if service.active else {}
    stalled = None
    if local and _is_busy(local):
        up = service.uptime_seconds(host.monotonic())
        stalled = _stalled_seconds(tokens.get("decodes"), up, window, before, passed)
    asked = _Asked("none")
    if api.ok and config.health_probe and window and local:
        if stalled is None:
            asked = _probed(config, host, window, local)
        else:
            asked = _waited(config, stalled, is_told="decodes" in tokens)
    reasons = (
        *(f"{unit.name} is {unit.active_state}" for unit in (service, front) if not unit.active),
        *_api(api),
        *asked.reasons,
        *_memory(config, rss),
        *_stalled(memory),
        *oom_reasons,
        *_overdue(locked),
    )
    return Sample(
        **known,
        **kills,
        **tokens,
        stalled_seconds=stalled,
        service=service.active_state,
        gateway=front.active_state,
        probe=asked.state,
        probe_seconds=asked.seconds,
        cpu_seconds=machine.cpu_seconds(host, service.pid) if service.pid else None,
        rss_bytes=rss,
        memory_bytes=memory.current_bytes if service.pid else None,
        memory_peak_bytes=memory.peak_bytes if service.pid else None,
        memory_high_events=memory.high_events,
        memory_max_events=memory.max_events,
        memory_stalled_percent=memory.stalled_percent,
        restarts=service.restarts,
        gateway_restarts=front.restarts,
        queue=local.waiting if local else None,
        cloud=_cloud(config, cloud),
        ok=not reasons,
        reasons=reasons,
    )


def format_line(sample: Sample) -> str:
    """The sample as one line, without the line break."""
    values: dict[str, object] = {
        "service": sample.service,
        "gateway": sample.gateway,
        "api": sample.api,
        "api_ms": ms(sample.api_seconds),
        "probe": sample.probe,
        "probe_ms": ms(sample.probe_seconds),
        "rss_mib": mib(sample.rss_bytes),
        "cgroup_mib": mib(sample.memory_bytes),
        "limit_mib": mib(sample.memory_limit_bytes),
        "restarts": sample.restarts,
        "oom_kills": sample.oom_kills,
        "swap_mib": mib(sample.swap_used_bytes),
        "load": sample.load1,
        "disk_free_mib": mib(sample.disk_free_bytes),
        "requests": sum(sample.requests.values()) if sample.window_seconds is not None else None,
        "queue": sample.queue,
        "cloud": sample.cloud,
        "memory_high": sample.memory_high_events,
        "memory_max": sample.memory_max_events,
        "memory_stalled_percent": sample.memory_stalled_percent,
    }
    if sample.healed:
        values["healed"] = sample.healed
    if sample.reasons:
        values["reason"] = "; ".join(sample.reasons)
    return " ".join([timestamp(sample.time), "OK" if sample.ok else "FAIL", logfmt(values)])


def timestamp(seconds: float) -> str:
    """As a line of the log begins."""
    return time.strftime(TIME_FORMAT, time.gmtime(seconds))


def logfmt(values: Mapping[str, object]) -> str:
    """Pairs as one line, whatever the values hold; None is "-"."""
    return " ".join(f"{key}={_quoted('-' if value is None else str(value))}" for key, value in values.items())


def parse_line(line: str) -> Record | None:
    """A line of `format_line`, or None for anything else (a line cut off in a crash, say)."""
    head = line.split(" ", 2)
    if len(head) < 3 or head[1] not in ("OK", "FAIL"):
        return None
    try:
        seconds = calendar.timegm(time.strptime(head[0], TIME_FORMAT))
    except ValueError:
        return None
    values = {
        key: re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for key, quoted, plain in _FIELD.findall(head[2])
    }
    return Record(float(seconds), head[1] == "OK", values)


def append(path: str, line: str) -> None:
    """Add a line to the log in one write, so that no reader and no other writer sees half of it; raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    data = (line + "\n").encode()
    descriptor = os.open(path, flags, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        written = os.write(descriptor, data)
        if written < len(data):
            # A disk that becomes full in the middle of a line: the next line would be glued to the rest.
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)


class AlreadyRunningError(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: str) -> Iterator[None]:
    """Hold the lock file, or raise AlreadyRunningError at once.

    Locks lie in a directory of root's alone: no other user can hold one, or put a link in its place. Others than root
    go on without one, since an unprivileged run writes nothing that matters.
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
    try:
        if os.geteuid() == 0:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        if os.geteuid() == 0:
            raise
        return None


def is_locked(host: Host) -> bool:
    """Whether a deploy or a drill is at work, as far as root can tell; others leave the lock alone."""
    if not host.is_root:
        return False
    try:
        with lock(str(host.path(DEPLOY_LOCK))):
            return False
    except AlreadyRunningError:
        return True
    except OSError:
        return False


def is_overdue(locked_seconds: float | None) -> bool:
    """Whether the lock has been held for longer than any deploy or drill takes, so that it pauses nothing any more."""
    return locked_seconds is not None and locked_seconds >= _LOCKED_SECONDS


def _locked_seconds(host: Host, before: Sample | None, passed: float | None) -> float | None:
    if not is_locked(host):
        return None
    held = before.locked_seconds if before else None
    return 0.0 if held is None else held + (passed or 0.0)


def _overdue(locked_seconds: float | None) -> tuple[str, ...]:
    if locked_seconds is None or not is_overdue(locked_seconds):
        return ()
    minutes = f"{locked_seconds / 60:.0f} min"
    return (f"a deploy or a drill has held its lock for {minutes}, so that it pauses no alert and no healing any more",)


def _api(answer: probe.Answer) -> tuple[str, ...]:
    return () if answer.ok else (f"the API does not answer as it should: {answer.detail}",)


def _memory(config: Config, rss: int | None) -> tuple[str, ...]:
    if rss is None or rss < config.memory_max_mib * NEAR_LIMIT * MIB:
        return ()
    return (f"memory is near its limit: {rss // MIB} of {config.memory_max_mib} MiB",)


def _stalled(memory: cgroup.Memory) -> tuple[str, ...]:
    if memory.stalled_percent is None or memory.stalled_percent <= STALLED_PERCENT:
        return ()
    return (f"the service waited for memory for {memory.stalled_percent:.0f} % of the last minute",)


def _oom(
    config: Config, host: Host, service: Unit | None, counter: int, window: Window | None, before: Sample | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Kills of both units, and a reason to fail for each that had one since the last scheduled run.

    They are counted on from the sample before; `counter` is what the kernel knows of the service since its start.
    Without a history they are those that the kernel or the journal still know.
    """
    known = before.oom_kills if before else None
    gateway_kills = before.gateway_oom_kills if before else None
    new = False
    kills: int | None = None
    if window is not None or known is not None:
        kills = max((known or 0) + (window.oom_kills if window else 0), counter)
        new = kills > (known or 0)
    elif service is not None:
        kills, new = _still_known(config, host, service, counter)
    if window is not None:
        gateway_kills = (gateway_kills or 0) + window.gateway_oom_kills
    killed = ((config.service_unit, new), (config.gateway_unit, window is not None and window.gateway_oom_kills > 0))
    reasons = (f"the kernel killed {unit} for lack of memory since the last check" for unit, was in killed if was)
    return {"oom_kills": kills, "gateway_oom_kills": gateway_kills}, tuple(reasons)


def _still_known(config: Config, host: Host, service: Unit, counter: int) -> tuple[int | None, bool]:
    """Kills of the service, and whether one is new, as the kernel or the journal tells."""
    if service.active and not service.restarts:
        return counter, counter > 0
    try:
        times = journal.times(host, journal.oom_kills(service.name), config.log_retention_days)
    except OSError:
        return None, False
    recent = any(host.now() - time <= config.health_interval_minutes * 60 for time in times)
    return max(len(times), counter), recent


def _is_busy(local: gateway.Server) -> bool:
    return local.working > 0 or local.waiting > 0


def _stalled_seconds(
    decodes: int | None, up_seconds: float | None, window: Window | None, before: Sample | None, passed: float | None
) -> float:
    """How long the same process has been busy without a step of its work (`decodes`) and without an answer.

    A counter that is not told is no progress.
    """
    if before is None or before.stalled_seconds is None or window is None or window.local_answers:
        return 0.0
    moved = decodes is not None and decodes != before.decodes
    if moved or passed is None or up_seconds is None or up_seconds < passed:
        return 0.0
    return before.stalled_seconds + passed


@dataclass(frozen=True)
class _Asked:
    """How asking the model for one token went, as in `Sample.probe`, how long it took, and a reason to fail."""

    state: str
    seconds: float | None = None
    reasons: tuple[str, ...] = ()


def _waited(config: Config, stalled_seconds: float, *, is_told: bool) -> _Asked:
    """A model at work for users is not asked; it fails where it works on without getting anything done.

    `is_told`: llama-server told its counter. Where it did not, it may have been in the middle of a long step.
    """
    patience = max(config.health_interval_minutes * 60.0, _STEP_SECONDS) - _CRON_SECONDS
    if stalled_seconds < (patience if is_told else _SILENT_PATIENCE * patience):
        return _Asked("skipped-busy")
    minutes = f"{stalled_seconds / 60:.0f} min"
    return _Asked("failed", reasons=(f"the model has been busy for {minutes} without getting anything done",))


def _probed(config: Config, host: Host, window: Window, local: gateway.Server) -> _Asked:
    """Ask the idle model for one token, over root's own socket: users can neither fill it nor pass for the probe.

    Not where it has answered one since the last check: that proves as much, and the probe would push the prompt of that
    user out of the model's cache ("skipped-traffic"). An answer of the gateway's own ("refused") tells nothing of the
    model.
    """
    if window.local_answers:
        return _Asked("skipped-traffic")
    body = json.dumps({"model": config.model.name, "prompt": _PROBE_PROMPT, "max_tokens": 1})
    headers = (("Content-Type", "application/json"),)
    own_way = str(host.path(config.api_socket))
    try:
        reply = probe.post_over_socket(own_way, _PROBE_PATH, headers, body.encode(), _PROBE_SECONDS)
    except probe.NobodyThereError as error:
        return _Asked("none", reasons=(f"the gateway does not answer on root's own socket: {error}",))
    except probe.PostError as error:
        said = str(error)
    else:
        if reply.status == 200:
            return _Asked("ok", reply.seconds)
        said = f"HTTP status {reply.status}"
        if reply.backend == "gateway" and reply.status not in _MODEL_BROKE_OFF:
            taken_out = f", the model is in {local.status}" if local.by_hand else ""
            return _Asked("refused", reasons=(f"the gateway refuses a request for one token: {said}{taken_out}",))
    # A user's request may have come first, and the probe have waited behind it.
    time.sleep(_SETTLE_SECONDS)
    current, _ = _sides(config, host)
    if current and _is_busy(current):
        return _Asked("skipped-busy")
    return _Asked("failed", reasons=(f"the model does not answer a request for one token: {said}",))


def _sides(config: Config, host: Host) -> tuple[gateway.Server | None, gateway.Server | None]:
    """The local side and the cloud as the gateway sees them; None for one that it does not tell about."""
    found: list[gateway.Server | None] = []
    for side, used in ((gateway.LOCAL, True), (gateway.CLOUD, config.cloud is not None)):
        try:
            found.append(gateway.server(config, host, side) if used else None)
        except OSError:
            found.append(None)
    return found[0], found[1]


def _cloud(config: Config, cloud: gateway.Server | None) -> str | None:
    """What the gateway's own checks of the cloud say; a user who may not ask does not know."""
    if config.cloud is None:
        return "none"
    return None if cloud is None else "up" if cloud.up else "down"


def _counted(window: Window | None) -> dict[str, Any]:
    names = ("requests", "responses", "first_bytes", "queue_seconds_max", "cloud_refusals")
    return {} if window is None else {name: getattr(window, name) for name in names}


def _drill_ok(host: Host) -> bool | None:
    """Whether the last drill went well; a side that was not tried tells nothing."""
    try:
        sides = [side["ok"] for side in json.loads(host.read(DRILL_RECORD))["sides"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if False in sides:
        return False
    return True if True in sides else None


def resident_bytes(host: Host, unit: Unit) -> int | None:
    if not unit.pid:
        return None
    try:
        return host.rss_bytes(unit.pid)
    except (ProcessLookupError, PermissionError):
        return None


def ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def mib(value: int | None) -> int | None:
    return None if value is None else value // MIB


def _quoted(text: str) -> str:
    """As logfmt has it: quotes around anything but one plain word; one line whatever the text holds."""
    text = " ".join(printable(text).split())
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
