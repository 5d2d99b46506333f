"""The fallback drill: take the cloud and then the local model out for one request each, and see who answers.

`local-llm drill` starts local-llm-drill.service, which calls `run`; when that has ended, however it ended, the unit
calls `restore`. So systemd guarantees that what the drill took out comes back: a file in the unit's runtime directory,
written before a side is taken out, names it.

The record of the last drill, as `local-llm drill --json` prints it:

    {"time": "2026-11-22T04:00:02Z", "ok": true,
     "sides": [{"name": "cloud", "ok": true, "answered_by": "local", "seconds": 0.41, "note": ""}, …]}

`ok` is null for a side that was left alone because the other one could not stand in or requests waited; the drill as a
whole is then not ok. It is false also where nobody could try, for a reason that does not pass by itself, and where a
cloud is there and neither side could be tried: then the drill has shown nothing.
"""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from checks import gateway, health, journal, probe, route
from checks.contract.paths import DEPLOY_LOCK, DRILL_RECORD, DRILL_TAKEN_OUT, DRILL_UNIT
from checks.gateway import CLOUD, LOCAL, Side

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

# The unit's TimeoutStartSec is above what two sides can take with these.
LOCK_SECONDS = 3.0
QUIET_SECONDS = 10.0
PROBE_SECONDS = 30.0
BACK_SECONDS = 10.0
_UNIT_SECONDS = 200.0

# Without a cloud the gateway itself refuses, and does not wait for anything.
AT_ONCE_SECONDS = 2.0
# A model that wants the request otherwise (some refuse max_tokens) has answered all the same.
_ANSWERED = (200, 400, 422)


class DrillError(Exception):
    """There was no drill; the message is one line for a person."""


@dataclass(frozen=True)
class Outcome:
    """One side taken out: whether the other answered (None: not tried), who did, and seconds to its first byte."""

    name: str
    ok: bool | None
    answered_by: str | None
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Drill:
    """A finished drill; `time` in seconds since the epoch."""

    time: float
    sides: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        return bool(self.sides) and all(side.ok for side in self.sides)

    def as_json(self) -> dict[str, Any]:
        when = time.strftime(_TIME_FORMAT, time.gmtime(self.time))
        return {"time": when, "ok": self.ok, "sides": [asdict(side) for side in self.sides]}


@dataclass(frozen=True)
class _Probe:
    """A tiny request that the rules send to one side first."""

    route: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    expected: str


def start(host: Host) -> Drill:
    """Run the drill in its unit and return what it found; raises DrillError."""
    if host.unit(DRILL_UNIT).load_state != "loaded":
        raise DrillError(f"{DRILL_UNIT} is not installed: deploy to this host")
    began = int(host.now())
    done = host.run("systemctl", "start", DRILL_UNIT, timeout_seconds=_UNIT_SECONDS)
    found = read_record(host)
    if found is None or found.time < began:
        unknown = f"the drill did not end by itself ({done.message}): sudo journalctl -u {DRILL_UNIT} -n 20"
        raise DrillError(journal.last_words(host, DRILL_UNIT, began) or unknown)
    return found


def run(config: Config, host: Host) -> Drill:
    """Take out one side after the other, ask, bring it back, and write the record.

    Raises DrillError, and leaves the record as it was, where a deploy or another drill holds the lock.
    """
    try:
        with _locked(host):
            # A deploy that starts meanwhile tells who holds its lock.
            since = time.strftime("%H:%M:%SZ", time.gmtime(host.now()))
            host.path(DEPLOY_LOCK).write_text(f"- local-llm drill since {since}\n")
            sides = [_tried(config, host, side) for side in ((CLOUD, LOCAL) if config.cloud else (LOCAL,))]
    except health.AlreadyRunningError:
        raise DrillError("A deploy runs on this host. Try again when it has ended: sudo local-llm drill") from None
    except OSError as error:
        raise DrillError(f"The drill cannot be done: {error}") from None
    if config.cloud and all(side.ok is None for side in sides):
        sides = [replace(side, ok=False) for side in sides]
    return _recorded(host, Drill(host.now(), tuple(sides)))


def restore(config: Config, host: Host) -> Drill | None:
    """Bring back what a drill that did not end by itself has left out, and record that; None if nothing was left."""
    side = _taken_out(host)
    if side is None:
        return None
    trouble = _bring_back(config, host, side)
    note = f"the drill was ended while {side.name} was out; " + (trouble or "it is back in service")
    return _recorded(host, Drill(host.now(), (Outcome(side.name, False, None, None, note),)))


def read_record(host: Host) -> Drill | None:
    """The last drill; None where there was none. Raises PermissionError for others than root."""
    try:
        data = json.loads(host.read(DRILL_RECORD))
        when = float(calendar.timegm(time.strptime(data["time"], _TIME_FORMAT)))
        return Drill(when, tuple(Outcome(**side) for side in data["sides"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def log_lines(drill: Drill) -> Iterator[str]:
    """One logfmt line a side, for the journal."""
    for side in drill.sides:
        values = {"side": side.name, "result": _word(side), "answered_by": side.answered_by, "seconds": side.seconds}
        yield health.logfmt({**values, "note": side.note} if side.note else values)


def lines(drill: Drill) -> Iterator[str]:
    """The result for a person."""
    for side in drill.sides:
        yield f"{_word(side):7}  {sentence(side)}"


def sentence(side: Outcome) -> str:
    """What happened without this side."""
    answered = ""
    if side.answered_by and side.seconds is not None:
        took = f"{side.seconds * 1000:.0f} ms" if side.seconds < 1 else f"{side.seconds:.1f} s"
        answered = f"{side.answered_by} answered in {took}"
    return f"without {side.name}: " + "; ".join(part for part in (answered, side.note) if part)


@contextmanager
def _locked(host: Host) -> Iterator[None]:
    """Hold the deploy's lock, which a deploy that has just ended still has for a moment."""
    with ExitStack() as held:
        path = str(host.path(DEPLOY_LOCK))
        if not _until(lambda: _taken(held, path), LOCK_SECONDS):
            raise health.AlreadyRunningError(path)
        yield


def _taken(held: ExitStack, path: str) -> bool:
    try:
        held.enter_context(health.lock(path))
    except health.AlreadyRunningError:
        return False
    return True


def _word(side: Outcome) -> str:
    return "skipped" if side.ok is None else "ok" if side.ok else "failed"


def _tried(config: Config, host: Host, side: Side) -> Outcome:
    try:
        return _try(config, host, side)
    except (route.RouteError, OSError) as error:
        return Outcome(side.name, False, None, None, f"the drill cannot be done: {error}")


def _try(config: Config, host: Host, side: Side) -> Outcome:
    request = _request(config, side)
    hindrance = _hindrance(config, host, side, request)
    if hindrance:
        return Outcome(side.name, None, None, None, hindrance)
    before = gateway.server(config, host, side)
    if not before.up:
        found = _asked(config, side, request)
        return _noted(found, found.ok, f"it was out before the drill ({before}) and was left as it was")
    # First the note for `restore`, then the deed: between the two the drill may be killed.
    host.replace(DRILL_TAKEN_OUT, side.name, 0o600)
    try:
        gateway.set_state(config, host, side, "maint")
        found = _asked(config, side, request)
    finally:
        trouble = _bring_back(config, host, side)
    return _noted(found, False, trouble) if trouble else found


def _request(config: Config, side: Side) -> _Probe:
    model = config.cloud.models[0] if config.cloud else config.model.name
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Reply with one word: ready"}]}
    path = "/v1/messages" if config.cloud and config.cloud.api == "anthropic" else route.DEFAULT_PATH
    asks = ("X-LLM-Route", "cloud") if side is CLOUD else ("X-LLM-Task", "utility")
    return _Probe(
        route="cloud-first" if side is CLOUD else "local-first" if config.cloud else "local-only",
        path=path,
        headers=(("Content-Type", "application/json"), asks),
        body=json.dumps(body).encode(),
        expected="local" if side is CLOUD else "cloud" if config.cloud else "gateway",
    )


def _hindrance(config: Config, host: Host, side: Side, request: _Probe) -> str:
    """Why taking this side out would show nothing, or would harm; empty if nothing speaks against it.

    Raises RouteError where the gateway does not say how things stand, or would send the probe elsewhere.
    """
    seen = route.explain(config.api_url, request.body, request.path, request.headers)
    if seen.route != request.route:
        raise route.RouteError(f"the rules send the probe {seen.route} ({seen.rule}), not {request.route}")
    other, state = ("local", seen.local) if side is CLOUD else ("cloud", seen.cloud)
    if state not in ("up", "none"):
        return f"{other} is {state}, so nothing was taken out"
    if side is LOCAL and not _until(lambda: gateway.server(config, host, LOCAL).waiting == 0, QUIET_SECONDS):
        return "requests wait for the local model and would be refused, so it was not taken out"
    return ""


def _asked(config: Config, side: Side, request: _Probe) -> Outcome:
    try:
        reply = probe.post(config.api_url, request.path, request.headers, request.body, PROBE_SECONDS)
    except probe.PostError as error:
        return Outcome(side.name, False, None, None, str(error))
    note = _objection(reply, request)
    return Outcome(side.name, not note, reply.backend or None, round(reply.seconds, 3), note)


def _objection(reply: probe.Reply, request: _Probe) -> str:
    """What is wrong with an answer; empty if it is what the drill wants to see."""
    status = f"HTTP status {reply.status}"
    if reply.backend != request.expected:
        return f"{status} from {reply.backend or 'an unnamed server'}, expected {request.expected}"
    if request.expected != "gateway":
        return "" if reply.status in _ANSWERED else status
    if reply.status != 503:
        return f"{status}, expected 503"
    return "" if reply.seconds <= AT_ONCE_SECONDS else f"expected within {AT_ONCE_SECONDS:g} s"


def _bring_back(config: Config, host: Host, side: Side) -> str:
    """Put a side back into service and see that it is; returns what went wrong, empty if nothing.

    The note for `restore` goes once it is no longer the drill that keeps the side out.
    """
    trouble = ""

    def back() -> bool:
        nonlocal trouble
        try:
            gateway.set_state(config, host, side, "ready")
            server = gateway.server(config, host, side)
        except gateway.GatewayError as error:
            trouble = f"it could not be brought back: {error}"
            return False
        trouble = "" if server.up else f"it is not back in service: {server}"
        if not server.by_hand:
            host.path(DRILL_TAKEN_OUT).unlink(missing_ok=True)
        return server.up

    _until(back, BACK_SECONDS)
    return trouble


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _noted(found: Outcome, ok: bool | None, note: str) -> Outcome:
    return replace(found, ok=ok, note="; ".join(part for part in (found.note, note) if part))


def _taken_out(host: Host) -> Side | None:
    try:
        name = host.read(DRILL_TAKEN_OUT)
    except FileNotFoundError:
        return None
    return CLOUD if name == CLOUD.name else LOCAL


def _recorded(host: Host, drill: Drill) -> Drill:
    host.replace(DRILL_RECORD, json.dumps(drill.as_json(), indent=2) + "\n", 0o600)
    return drill
