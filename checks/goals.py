"""The five goals, judged by what was measured: met (PASS), missed (FAIL) or not known.

Nothing is assumed of time without samples: a goal is met only where `KNOWN_PERCENT` of the checks are there, and the
uptime only where it holds even if the host was down in every gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from checks.history import LOCAL, ROUTED_UTILITY, History, Period
from checks.host import MIB

KNOWN_PERCENT = 90
NAMES = ("utility-local", "response-time", "oom-kills", "uptime", "memory")
_WORST = 3


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Targets:
    """From the settings of the same names; `memory_max_mib` is the kernel's limit, no goal."""

    utility_percent: float
    response_seconds: float
    uptime_percent: float
    memory_mib: int
    memory_max_mib: int
    oom_kills: int = 0


@dataclass(frozen=True)
class Worst:
    """An hour (its start, in seconds since the epoch) and what was measured in it."""

    start: int
    text: str


@dataclass(frozen=True)
class Goal:
    """`value` is in `unit` (%, s, MiB or kills), None where nothing was measured; `text` and `target` are words."""

    name: str
    title: str
    verdict: Verdict
    value: float | None
    unit: str
    text: str
    target: str
    detail: str
    worst: tuple[Worst, ...] = ()


def judge(history: History, targets: Targets) -> tuple[Goal, ...]:
    return (
        _utility(history, targets),
        _response(history, targets),
        _oom_kills(history, targets),
        _uptime(history, targets),
        _memory(history, targets),
    )


def known_percent(period: Period) -> float:
    return _percent(period.known, period.expected)


def percent_text(part: int, whole: int) -> str:
    """Rounded down, so that what is below a goal never reads like the goal."""
    hundredths = part * 10_000 // whole
    return f"{hundredths // 100}.{hundredths % 100:02} %"


def _utility(history: History, targets: Targets) -> Goal:
    local, cloud = history.whole.utility_local, history.whole.utility_cloud
    answered = local + cloud
    routed = sum(amount for key, amount in history.totals.requests.items() if _is_routed_answer(key))
    unanswered = sum(amount for key, amount in history.totals.requests.items() if _is_failure(key))
    detail = f"{number(local)} of {count(answered, 'answered utility request')}"
    if answered > routed:
        detail += f", {number(answered - routed)} of them kept local by the client or for want of a cloud"
    if answered > routed > 0:
        detail += f"; of the {number(routed)} that the rules routed, {percent_text(routed - cloud, routed)} local"
    if unanswered:
        detail += f"; {number(unanswered)} more failed"
    return Goal(
        name="utility-local",
        title="Utility tasks local",
        verdict=_verdict(history, answered > 0, local * 100 >= targets.utility_percent * answered),
        value=_percent(local, answered) if answered else None,
        unit="%",
        text=percent_text(local, answered) if answered else "no utility request",
        target=f"at least {targets.utility_percent:g} %",
        detail=detail,
        worst=_worst(
            history.hours,
            lambda hour: hour.utility_cloud,
            lambda hour: f"{hour.utility_cloud} of {hour.utility_local + hour.utility_cloud} by the cloud",
        ),
    )


def _response(history: History, targets: Targets) -> Goal:
    local = history.totals.responses.get(LOCAL)
    others = [
        f"{backend}: {count(timing.count, 'answer')}, mean {seconds(timing.mean)}, p95 {seconds(timing.p95)}"
        for backend, timing in history.totals.responses.items()
        if backend not in (LOCAL, "gateway")
    ]
    detail = "the local model's whole answers, waiting in the queue included"
    if local:
        detail = (
            f"{count(local.count, 'answer')}; p50 {seconds(local.p50)}, p95 {seconds(local.p95)}, "
            f"p99 {seconds(local.p99)}"
        )
    return Goal(
        name="response-time",
        title="Mean response time",
        verdict=_verdict(history, local is not None, local is not None and local.mean < targets.response_seconds),
        value=local.mean if local else None,
        unit="s",
        text=seconds(local.mean) if local else "no answer",
        target=f"below {targets.response_seconds:g} s",
        detail="; ".join([detail, *others]),
        worst=_worst(
            history.hours,
            lambda hour: hour.responses[LOCAL].mean if LOCAL in hour.responses else 0,
            lambda hour: f"{seconds(hour.responses[LOCAL].mean)} mean of {hour.responses[LOCAL].count}",
        ),
    )


def _oom_kills(history: History, targets: Targets) -> Goal:
    kills = history.whole.oom_kills
    return Goal(
        name="oom-kills",
        title="OOM kills",
        verdict=_verdict(history, history.whole.known > 0, kills <= targets.oom_kills),
        value=float(kills) if history.whole.known else None,
        unit="kills",
        text=str(kills) if history.whole.known else "not known",
        target=str(targets.oom_kills),
        detail=f"known for {percent_text(history.whole.known, history.whole.expected)} of the time",
        worst=_worst(history.hours, lambda hour: hour.oom_kills, lambda hour: f"{hour.oom_kills} killed"),
    )


def _uptime(history: History, targets: Targets) -> Goal:
    whole = history.whole
    least, most = whole.up, whole.expected - whole.down
    wanted = targets.uptime_percent * whole.expected
    if most * 100 < wanted:
        verdict = Verdict.FAIL
    elif least * 100 >= wanted:
        verdict = Verdict.PASS
    else:
        verdict = Verdict.UNKNOWN
    missing = whole.expected - whole.known
    detail = f"{number(whole.up)} of {number(whole.expected)} checks found it up, {number(whole.down)} down"
    if missing:
        detail += (
            f", {number(missing)} are missing: between {percent_text(least, whole.expected)} and "
            f"{percent_text(most, whole.expected)} of the whole time"
        )
    return Goal(
        name="uptime",
        title="Uptime",
        verdict=verdict,
        value=_percent(whole.up, whole.known) if whole.known else None,
        unit="%",
        text=f"{percent_text(whole.up, whole.known)} of known time" if whole.known else "not known",
        target=f"at least {targets.uptime_percent:g} %",
        detail=detail,
        worst=_worst(history.hours, lambda hour: hour.down, lambda hour: f"down in {hour.down} of {hour.known} checks"),
    )


def _memory(history: History, targets: Targets) -> Goal:
    highest = history.whole.rss_bytes
    detail = "the service's resident memory, at its highest when it was looked at"
    if history.totals.memory_peak_bytes is not None:
        peak = history.totals.memory_peak_bytes / MIB
        detail += f"; {number(peak)} MiB with file cache at its very highest (limit {number(targets.memory_max_mib)})"
    return Goal(
        name="memory",
        title="Memory",
        verdict=_verdict(history, highest is not None, highest is not None and highest <= targets.memory_mib * MIB),
        value=round(highest / MIB, 1) if highest is not None else None,
        unit="MiB",
        text=f"{number(highest / MIB)} MiB" if highest is not None else "not known",
        target=f"at most {number(targets.memory_mib)} MiB",
        detail=detail,
        worst=_worst(
            history.hours, lambda hour: hour.rss_bytes or 0, lambda hour: f"{number((hour.rss_bytes or 0) / MIB)} MiB",
            most=1,
        ),
    )  # fmt: skip


def _verdict(history: History, measured: bool, met: bool) -> Verdict:
    if not measured:
        return Verdict.UNKNOWN
    if not met:
        return Verdict.FAIL
    return Verdict.PASS if known_percent(history.whole) >= KNOWN_PERCENT else Verdict.UNKNOWN


def _worst(
    hours: Iterable[Period], badness: Callable[[Period], float], words: Callable[[Period], str], most: int = _WORST
) -> tuple[Worst, ...]:
    """The hours that are worst, the worst first; those where nothing was bad are none."""
    bad = sorted((hour for hour in hours if badness(hour) > 0), key=badness, reverse=True)
    return tuple(Worst(hour.start, words(hour)) for hour in bad[:most])


def _is_routed_answer(key: str) -> bool:
    backend, reason, status = key.split("/")
    return reason in ROUTED_UTILITY and status == "2xx" and backend != "gateway"


def _is_failure(key: str) -> bool:
    """A utility request that was not answered; one that the client gave up is none."""
    _, reason, status = key.split("/")
    return reason in ROUTED_UTILITY and status in ("4xx", "5xx", "broken")


def seconds(value: float) -> str:
    if value >= 10:
        return f"{value:.0f} s"
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _percent(part: int, whole: int) -> float:
    return round(part * 100 / whole, 4) if whole else 0.0


def count(amount: int, noun: str) -> str:
    return f"{number(amount)} {noun}" + ("" if amount == 1 else "s")


def number(value: float) -> str:
    return f"{value:,.0f}"
