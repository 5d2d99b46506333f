"""When an alert is raised and when it is cleared: from one sample after the other to messages, without side effects.

Each rule judges a sample good, bad or, where it does not say, neither. An alert is raised after some bad judgements in
a row and cleared after some good ones; what is neither, like a sample that is missing, changes nothing. One message
goes out each way. An alert that keeps coming back has to be good for longer and longer before it is cleared, so that
flapping ends in silence and not in a storm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from checks.host import MIB
from checks.memory import STALLED_PERCENT
from checks.samples import BOOT_SECONDS, BUCKETS_SECONDS

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.samples import Histogram, Sample

Severity = Literal["critical", "warning"]
Event = Literal["raised", "cleared", "reminder", "test"]

HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
_UPTIME_WINDOWS = {"the last day": 24, "the last 7 days": 7 * 24}
"""In hours."""
_FEWEST_ANSWERS = 10
_ENOUGH_ANSWERS = 500
"""Between the two a mean above its limit counts only where it is so by two standard errors: a few long texts among many
short answers are no slow machine."""
_MARGIN = 0.03
"""How far a measure must be on the good side of its limit to count as good."""
_FLAPPING_DOUBLINGS = 6
_EVENTS_KEPT = 200
_HOURS_KEPT = 8 * 24

_COUNTERS = ("oom_kills", "gateway_oom_kills", "restarts", "gateway_restarts")
"""Of a sample; each growth is an event."""
_DEAD = ("failed", "inactive")
_ON_ITS_WAY = ("activating", "deactivating", "reloading")


@dataclass(frozen=True)
class Limits:
    """What the samples are held to; `after` and `clear_after` in samples."""

    memory_bytes: int
    response_seconds: float
    uptime_percent: float
    disk_free_percent: float
    restarts_per_hour: int
    after: int
    clear_after: int
    interval_seconds: float
    reminder_seconds: float | None = None

    @classmethod
    def of(cls, config: Config) -> Limits:
        alerts = config.alerts
        return cls(
            memory_bytes=config.memory_goal_mib * MIB,
            response_seconds=config.response_limit_seconds,
            uptime_percent=config.uptime_goal_percent,
            disk_free_percent=alerts.disk_free_percent,
            restarts_per_hour=alerts.restarts_per_hour,
            after=alerts.after_checks,
            clear_after=alerts.clear_after_checks,
            interval_seconds=config.health_interval_minutes * 60.0,
            reminder_seconds=None if alerts.reminder_hours is None else alerts.reminder_hours * HOUR_SECONDS,
        )


@dataclass(frozen=True)
class Seen:
    """A sample, and what belongs to it but is not stored.

    `paused`: a deploy or a drill is at work, so that outages say nothing. `cloud_text` says why the cloud is down,
    `cloud_refused` that it will stay so until somebody acts: it refuses the key, or its certificate is not trusted.
    """

    sample: Sample
    paused: bool = False
    cloud_text: str = ""
    cloud_refused: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a rule thinks of a sample; `at_once` raises the alert without waiting for a second bad one."""

    bad: bool
    text: str = ""
    at_once: bool = False


GOOD = Verdict(False)


@dataclass(frozen=True)
class Message:
    """What is told of an alert; `since` is when it was raised. Times in seconds since the epoch."""

    alert: str
    event: Event
    severity: Severity
    text: str
    remedy: str
    time: float
    since: float


@dataclass
class Alert:
    """How an alert stands: judgements in a row, and if it is open since when, with the last words about it."""

    bad: int = 0
    good: int = 0
    since: float | None = None
    told: float | None = None
    text: str = ""
    raised: list[float] = field(default_factory=list)


@dataclass
class State:
    """All that is remembered between samples.

    `counters` are the last values of counters that only grow; `events` the times of what they counted;
    `hours` maps an hour since the epoch to seconds [down, known]. What was written last of both is kept, whatever its
    time, so that a wrong clock makes nothing forgotten. `answers` is [count, seconds, squared seconds] of the local
    model's answers, collected until their mean says something.
    """

    alerts: dict[str, Alert] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    events: dict[str, list[float]] = field(default_factory=dict)
    hours: dict[str, list[float]] = field(default_factory=dict)
    answers: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "alerts": {name: vars(alert) for name, alert in self.alerts.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        """From `as_json`; raises KeyError, TypeError for anything else."""
        alerts = {name: Alert(**alert) for name, alert in data["alerts"].items() if name in KNOWN}
        return cls(alerts, data["counters"], data["events"], data["hours"], data["answers"])


def step(limits: Limits, state: State, seen: Seen) -> list[Message]:
    """Take in one sample: bring the state up to date and return what there is to tell."""
    now = float(seen.sample.time)
    _remember(limits, state, seen, now)
    return advanced(limits, state, {name: rule.judge(limits, state, seen) for name, rule in RULES.items()}, now)


def advanced(limits: Limits, state: State, verdicts: Mapping[str, Verdict | None], now: float) -> list[Message]:
    """Count the verdicts, by alert, and return what there is to tell."""
    messages = []
    for name, verdict in verdicts.items():
        alert = state.alerts.setdefault(name, Alert())
        if verdict is not None:
            _count(alert, verdict)
        event = _event(limits, alert, verdict, now)
        if event:
            messages.append(_message(name, alert, event, now))
        if event == "cleared":
            alert.since = alert.told = None
    return messages


def opened(state: State) -> dict[str, Alert]:
    """The alerts that are open, those that were raised first first."""
    found = [(name, alert) for name, alert in state.alerts.items() if alert.since is not None]
    return dict(sorted(found, key=lambda pair: pair[1].since or 0.0))


def _count(alert: Alert, verdict: Verdict) -> None:
    if verdict.bad:
        alert.bad, alert.good, alert.text = alert.bad + 1, 0, verdict.text
    else:
        alert.bad, alert.good = 0, alert.good + 1


def _event(limits: Limits, alert: Alert, verdict: Verdict | None, now: float) -> Event | None:
    """What has become of the alert with this verdict; changes `since`, `told` and `raised` where it is raised."""
    if alert.since is None:
        if verdict is None or not verdict.bad or not (verdict.at_once or alert.bad >= limits.after):
            return None
        alert.since = alert.told = now
        alert.raised = [*alert.raised, now][-_FLAPPING_DOUBLINGS - 1 :]
        return "raised"
    if verdict is not None and not verdict.bad and alert.good >= _clear_after(limits, alert, now):
        return "cleared"
    if limits.reminder_seconds is not None and not 0 <= now - (alert.told or 0.0) < limits.reminder_seconds:
        alert.told = now
        return "reminder"
    return None


def _clear_after(limits: Limits, alert: Alert, now: float) -> int:
    """Good samples in a row that clear it: twice as many with every time that it came back within a day."""
    return limits.clear_after << max(0, _within(DAY_SECONDS, alert.raised, now) - 1)


def _within(seconds: float, times: Sequence[float], now: float) -> int:
    """How many of them lie in the last seconds. Whatever the clock did: the future has not happened."""
    return sum(now - seconds < time <= now for time in times)


def _message(name: str, alert: Alert, event: Event, now: float) -> Message:
    rule = KNOWN[name]
    since = alert.since if alert.since is not None else now
    return Message(name, event, rule.severity, alert.text, "" if event == "cleared" else rule.remedy, now, since)


def _remember(limits: Limits, state: State, seen: Seen, now: float) -> None:
    sample = seen.sample
    for name in _COUNTERS:
        _add_events(state, name, _grown(state, name, getattr(sample, name)), now)
    _add_events(state, "heals", int(sample.healed is not None), now)
    up = None if seen.paused else sample.up
    if up is not None:
        hour = state.hours.setdefault(str(int(now // HOUR_SECONDS)), [0.0, 0.0])
        # A gap before the sample is nobody's time.
        span = min(sample.window_seconds or limits.interval_seconds, limits.interval_seconds)
        hour[0] += 0.0 if up else span
        hour[1] += span
    state.hours = dict(list(state.hours.items())[-_HOURS_KEPT:])
    if local := sample.responses.get("local"):
        state.answers = [before + more for before, more in zip(state.answers, _moments(local), strict=True)]


def _grown(state: State, name: str, value: int | None) -> int:
    """How far a counter that may begin anew has come since it was last known."""
    if value is None:
        return 0
    before = state.counters.get(name)
    state.counters[name] = value
    if before is None:
        return 0
    return value - before if value >= before else value


def _moments(answers: Histogram) -> tuple[float, float, float]:
    """Count, sum, and sum of squares as well as the buckets tell."""
    bounds = (0.0, *BUCKETS_SECONDS, BUCKETS_SECONDS[-1])
    middles = ((low + high) / 2 for low, high in itertools.pairwise(bounds))
    squares = sum(count * middle**2 for count, middle in zip(answers.buckets, middles, strict=False))
    return answers.count, answers.sum_seconds, squares


def _add_events(state: State, name: str, count: int, now: float) -> None:
    state.events[name] = [*state.events.get(name, []), *[now] * count][-_EVENTS_KEPT:]


def _recent(state: State, name: str, seen: Seen) -> int:
    """Events of the last hour."""
    return _within(HOUR_SECONDS, state.events.get(name, []), seen.sample.time)


# The rules


def _api_down(_limits: Limits, state: State, seen: Seen) -> Verdict | None:
    sample = seen.sample
    if seen.paused or sample.api is None:
        return None
    booting = sample.uptime_seconds is not None and sample.uptime_seconds < BOOT_SECONDS
    heals = _recent(state, "heals", seen)
    told = f" (restarted {_times(heals)} in the last hour)" if heals else ""
    units = {"local-llm.service": sample.service, "local-llm-gateway.service": sample.gateway}
    dead = [f"{unit} is {how}" for unit, how in units.items() if how in _DEAD]
    if dead:
        return Verdict(True, " and ".join(dead) + told, at_once=not booting)
    if sample.api != "ok":
        words = {
            "refused": "nothing listens at the API's address",
            "timeout": "the API does not answer in time",
            "loading": "the model is still being loaded",
        }
        text = words.get(sample.api, f"the API answers {sample.api.replace('_', ' ')}, as where the service is down")
        settled = not booting and not any(how in _ON_ITS_WAY for how in units.values())
        return Verdict(True, text + told, at_once=sample.api == "refused" and settled)
    if sample.probe == "failed":
        return Verdict(True, "the API answers, but the model completes nothing" + told)
    if sample.up is False:
        return Verdict(
            True,
            "the gateway refuses requests to the model. Where somebody took it out by hand, this brings it back: "
            "sudo systemctl reload local-llm-gateway",
        )
    return GOOD


def _memory(limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    used = seen.sample.rss_bytes
    if used is None:
        return None
    text = f"local-llm uses {used // MIB} MiB, the goal is {limits.memory_bytes // MIB} MiB"
    return _above(used, limits.memory_bytes, text)


def _memory_stall(_limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    stalled = seen.sample.memory_stalled_percent
    if stalled is None:
        # A kernel that does not tell, or a service that is gone and waits for nothing.
        return GOOD
    return _above(stalled, STALLED_PERCENT, f"local-llm waited for memory for {stalled:.0f} % of the last minute")


def _oom_kill(_limits: Limits, state: State, seen: Seen) -> Verdict | None:
    killed = {
        "local-llm": _recent(state, "oom_kills", seen),
        "local-llm-gateway": _recent(state, "gateway_oom_kills", seen),
    }
    if any(killed.values()):
        units = " and ".join(f"{unit} {_times(count)}" for unit, count in killed.items() if count)
        return Verdict(True, f"the kernel killed {units} in the last hour for lack of memory", at_once=True)
    return None if seen.sample.oom_kills is None else GOOD


def _slow(limits: Limits, state: State, _seen: Seen) -> Verdict | None:
    count, total, squares = state.answers
    if count < _FEWEST_ANSWERS:
        return None
    mean, limit = total / count, limits.response_seconds
    error = math.sqrt(max(0.0, squares / count - mean**2) / count)
    if mean > limit >= mean - 2 * error and count < _ENOUGH_ANSWERS:
        return None
    state.answers = [0.0, 0.0, 0.0]
    text = f"the local model's last {count:.0f} answers took {mean:.1f} s on average, the goal is {limit:g} s"
    return Verdict(mean > limit, text)


def _uptime(limits: Limits, state: State, seen: Seen) -> Verdict | None:
    """Unknown time counts as neither: an alert needs as much downtime as the whole window allows."""
    if seen.paused or seen.sample.api is None:
        return None
    allowed = 1 - limits.uptime_percent / 100
    hour_now = int(seen.sample.time // HOUR_SECONDS)
    for words, hours in _UPTIME_WINDOWS.items():
        down = sum(state.hours.get(str(hour), [0.0])[0] for hour in range(hour_now - hours + 1, hour_now + 1))
        share = down / (hours * HOUR_SECONDS)
        if share > allowed:
            text = f"down for {down / 60:.0f} min of {words}: {100 * (1 - share):.2f} % uptime, the goal is "
            return Verdict(True, f"{text}{limits.uptime_percent:g} %", at_once=True)
    return GOOD


def _disk(limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    free, total = seen.sample.disk_free_bytes, seen.sample.disk_total_bytes
    if free is None or not total:
        return None
    percent = 100 * free / total
    text = f"{free // MIB} MiB of the disk are free, {percent:.1f} %, the limit is {limits.disk_free_percent:g} %"
    return _above(-percent, -limits.disk_free_percent, text)


def _restart_loop(limits: Limits, state: State, seen: Seen) -> Verdict | None:
    restarts = {
        "local-llm crashed": _recent(state, "restarts", seen),
        "local-llm-gateway crashed": _recent(state, "gateway_restarts", seen),
        "the health check restarted one of them": _recent(state, "heals", seen),
    }
    if sum(restarts.values()) >= limits.restarts_per_hour:
        what = " and ".join(f"{words} {_times(count)}" for words, count in restarts.items() if count)
        return Verdict(True, f"{what} in the last hour", at_once=True)
    return None if seen.sample.restarts is None else GOOD


def _cloud_down(_limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    if seen.sample.cloud == "down":
        return None if seen.paused or seen.cloud_refused else Verdict(True, seen.cloud_text or "the cloud is down")
    return _cloud_is_good(seen)


def _cloud_refused(_limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    if seen.sample.cloud == "down":
        return Verdict(True, seen.cloud_text) if seen.cloud_refused and not seen.paused else None
    refused = seen.sample.cloud_refusals
    answered = any(key.startswith("cloud/") and key.endswith("/2xx") for key in seen.sample.requests)
    if refused and not answered:
        statuses = ", ".join(f"HTTP status {status} {_times(count)}" for status, count in sorted(refused.items()))
        return None if seen.paused else Verdict(True, f"the cloud refuses every request: {statuses}", at_once=True)
    return _cloud_is_good(seen)


def _cloud_is_good(seen: Seen) -> Verdict | None:
    """Where no cloud is configured any more, nothing is down."""
    return GOOD if seen.sample.cloud in ("up", "none") else None


def _drill_failed(_limits: Limits, _state: State, seen: Seen) -> Verdict | None:
    if seen.sample.drill_ok is None:
        return None
    return GOOD if seen.sample.drill_ok else Verdict(True, "the last fallback drill failed", at_once=True)


def _above(value: float, limit: float, text: str) -> Verdict | None:
    """Bad above the limit, good once it is clearly below, and neither in between."""
    if value > limit:
        return Verdict(True, text)
    return GOOD if value <= limit - abs(limit) * _MARGIN else None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@dataclass(frozen=True)
class Rule:
    """An alert: how bad it is, when a sample is bad, and what helps."""

    severity: Severity
    judge: Callable[[Limits, State, Seen], Verdict | None]
    remedy: str


@dataclass(frozen=True)
class Relayed:
    """An alert that Prometheus judges: how bad it is, and what helps."""

    severity: Severity
    remedy: str


RULES: Mapping[str, Rule] = {
    "api-down": Rule(
        "critical",
        _api_down,
        "What is wrong: sudo local-llm test. Start it: sudo systemctl start local-llm local-llm-gateway; why it ended: "
        "sudo journalctl -u local-llm -n 50",
    ),
    "oom-kill": Rule(
        "critical",
        _oom_kill,
        "Requests in flight were lost. For local-llm a smaller context_tokens or prompt_cache_mib helps, or a larger "
        "memory_max_mib where the machine has it; then deploy",
    ),
    "memory-stall": Rule(
        "critical",
        _memory_stall,
        "It is held up instead of killed. Until it is found out: sudo systemctl restart local-llm. A smaller "
        "context_tokens or prompt_cache_mib helps, or a larger memory_max_mib where the machine has it; then deploy",
    ),
    "restart-loop": Rule(
        "critical",
        _restart_loop,
        "Why it ends each time: sudo journalctl -u local-llm -u local-llm-gateway -n 100",
    ),
    "disk": Rule(
        "critical",
        _disk,
        "What takes the space: sudo du -xh --max-depth=3 / | sort -h | tail; old journals: "
        "sudo journalctl --vacuum-size=200M",
    ),
    "cloud-refused": Rule(
        "critical",
        _cloud_refused,
        "What exactly, and what helps: sudo local-llm status. Where that says up, it refuses only requests: see to the "
        "key and the account at the provider",
    ),
    "drill-failed": Rule(
        "critical", _drill_failed, "What failed: sudo local-llm status. Try again: sudo local-llm drill"
    ),
    "memory": Rule(
        "warning",
        _memory,
        "Until it is found out: sudo systemctl restart local-llm. A smaller context_tokens or prompt_cache_mib takes "
        "less",
    ),
    "slow-responses": Rule(
        "warning",
        _slow,
        "Which processes take the CPU: top -o %CPU. Who answers what: sudo local-llm report. Where long answers are "
        "wanted, raise response_limit_seconds",
    ),
    "uptime": Rule("warning", _uptime, "When and why: grep -E ' (FAIL|ALERT) ' /var/log/llm-health.log"),
    "cloud-down": Rule(
        "warning", _cloud_down, "Until it is back the local model answers what fits. Why: sudo local-llm status"
    ),
}


RELAYED: Mapping[str, Relayed] = {
    "checks-stopped": Relayed("critical", "Why: sudo local-llm health --log; systemctl status cron"),
    "target-down": Relayed("warning", "What runs: systemctl --failed; sudo local-llm status"),
    "prometheus-down": Relayed("warning", "Why: sudo journalctl -u local-llm-prometheus -n 50"),
}
KNOWN: Mapping[str, Rule | Relayed] = {**RULES, **RELAYED}


def lines(state: State, now: float) -> Iterator[str]:
    """The open alerts for a person."""
    from checks.service import duration

    found = opened(state)
    if not found:
        yield "no alert is open"
    for name, alert in found.items():
        age = duration(max(0.0, now - (alert.since or now)))
        yield f"{KNOWN[name].severity:8}  {name}, for {age}: {alert.text}"
        yield f"{'':8}  {KNOWN[name].remedy}"


def as_json(state: State) -> list[dict[str, Any]]:
    """The open alerts for a program; `since` in seconds since the epoch."""
    return [
        {"alert": name, "severity": KNOWN[name].severity, "since": alert.since, "text": alert.text,
         "remedy": KNOWN[name].remedy}
        for name, alert in opened(state).items()
    ]  # fmt: skip
