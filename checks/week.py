"""`local-llm report`: the goals of the last days, measured by the samples that the health check stored.

The JSON of `local-llm report --json` is `Report`, field by field: times in seconds since the epoch, `format` counts up
when a field changes its meaning or goes. The control machine reads the same classes.
"""

from __future__ import annotations

import socket
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from checks import __version__, goals
from checks.goals import Goal, Targets, Verdict, Worst, count, known_percent, number, percent_text, seconds
from checks.history import DAY_SECONDS, Gap, History, summarise, window
from checks.output import printable
from checks.report import WIDTH
from checks.samples import HEALTH

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.samples import Store

FORMAT = 1
_INDENT = " " * 11
_GAPS_NAMED = 3


@dataclass(frozen=True)
class Report:
    """What one host says of its last days; `version` is that of the checks, `time` when it was asked."""

    format: int
    host: str
    version: str
    time: int
    days: int
    targets: Targets
    goals: tuple[Goal, ...]
    history: History

    @property
    def missed(self) -> bool:
        return any(goal.verdict is Verdict.FAIL for goal in self.goals)


def measure(config: Config, store: Store, days: int, now: float) -> Report:
    """Read the samples and judge them; raises StoreError."""
    interval_seconds = config.health_interval_minutes * 60
    recent = list(store.between(now - 2 * interval_seconds, now, HEALTH))
    span = window(days, interval_seconds, now, recent[-1].time if recent else None)
    before = list(store.between(span.since - DAY_SECONDS, span.since, HEALTH))
    ahead = sum(1 for _ in store.between(span.until, float("inf"), HEALTH))
    samples = list(store.between(span.since, span.until, HEALTH))
    history = summarise(span, samples, before[-1] if before else None, ahead)
    targets = Targets(
        utility_percent=config.utility_goal_percent,
        response_seconds=config.response_limit_seconds,
        uptime_percent=config.uptime_goal_percent,
        memory_mib=config.memory_goal_mib,
        memory_max_mib=config.memory_max_mib,
    )
    return Report(
        format=FORMAT,
        host=socket.gethostname(),
        version=__version__,
        time=int(now),
        days=days,
        targets=targets,
        goals=goals.judge(history, targets),
        history=history,
    )


def as_json(report: Report) -> dict[str, Any]:
    return asdict(report)


def lines(report: Report) -> Iterator[str]:
    """The report for a person at a terminal; times are UTC."""
    history = report.history
    span = history.window
    yield f"{report.host}: {_days(report.days)}, {_utc(span.since)} to {_utc(span.until)} UTC"
    yield from _wrapped(_coverage(history), "")
    yield ""
    for goal in report.goals:
        yield from _goal(goal)
    yield ""
    for label, text in figures(history):
        yield from textwrap.wrap(f"{label:9}  {text}", WIDTH, subsequent_indent=_INDENT)


def figures(history: History) -> Iterator[tuple[str, str]]:
    """What else was counted, each with its label; what is not known is left out."""
    totals = history.totals
    if history.whole.requests:
        answers = ", ".join(f"{name} {number(amount)}" for name, amount in sorted(history.whole.requests.items()))
        yield "requests", f"{number(sum(history.whole.requests.values()))}: {answers}"
    if totals.tokens_in is not None and totals.tokens_out is not None:
        rates = (totals.prompt_tokens_per_second, totals.generated_tokens_per_second)
        parts = [f"{number(totals.tokens_in)} read", f"{number(totals.tokens_out)} written"]
        parts += [f"{rate:.1f} {what} a second" for rate, what in zip(rates, ("read", "written"), strict=True) if rate]
        yield "tokens", ", ".join(parts)
    if totals.crashes is not None:
        yield "crashes", number(totals.crashes)
    if totals.cloud_up + totals.cloud_down:
        yield "cloud", f"up in {percent_text(totals.cloud_up, totals.cloud_up + totals.cloud_down)} of the checks"
    if totals.probes:
        yield "probes", ", ".join(f"{name} {number(amount)}" for name, amount in sorted(totals.probes.items()))
    if totals.queue_seconds_max:
        yield "queue", f"longest wait {seconds(totals.queue_seconds_max)}"
    for incident in history.healed:
        yield "healed", f"{_utc(incident.time)} UTC: {incident.text}"


def notes(history: History) -> Iterator[str]:
    """What a reader has to know about the samples before believing the figures."""
    whole = history.whole
    known = f"{number(whole.known)} of {number(whole.expected)} health checks are there: "
    yield f"{known}{percent_text(whole.known, whole.expected)} of the time is known."
    if known_percent(whole) < goals.KNOWN_PERCENT:
        yield f"Below {goals.KNOWN_PERCENT} % no goal can be said to be met; a report of fewer days may know more."
    begun = history.first_sample
    if begun is not None and begun >= history.window.since + history.window.interval_seconds:
        yield f"The first sample in this time is of {_utc(begun)} UTC."
    gaps = sorted(history.gaps, key=lambda gap: gap.start - gap.end)
    if gaps and whole.known:
        named = "; ".join(map(gap_words, gaps[:_GAPS_NAMED]))
        more = f"; and {len(gaps) - _GAPS_NAMED} shorter ones" if len(gaps) > _GAPS_NAMED else ""
        yield f"Not known: {named}{more}."
    if history.ahead:
        are = "is" if history.ahead == 1 else "are"
        yield f"{count(history.ahead, 'sample')} {are} of a time still to come, so the clock was wrong; left out."


def gap_words(gap: Gap) -> str:
    minutes = (gap.end - gap.start) // 60
    length = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"{_utc(gap.start)}, {length}" + (" (the machine was started in it)" if gap.rebooted else "")


def hour_words(worst: Worst) -> str:
    return f"{_utc(worst.start)}: {worst.text}"


def _coverage(history: History) -> str:
    return " ".join(notes(history))


def _goal(goal: Goal) -> Iterator[str]:
    yield f"  {goal.verdict.value:7}  {goal.title:19}  {goal.text} (goal: {goal.target})"
    yield from _wrapped(goal.detail)
    if goal.worst:
        yield from _wrapped("worst hours: " + "; ".join(map(hour_words, goal.worst)))


def _wrapped(text: str, indent: str = _INDENT) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=indent, subsequent_indent=indent)


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"


def _utc(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
