"""What a host reports of its last days."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from checks.goals import NAMES
from checks.history import DAY_SECONDS
from checks.week import FORMAT, Report
from facts.base import HostFact, framed
from facts.verification import COMMAND

_QUOTED_CHARACTERS = 300
_QUOTED_NAME = 40
_REPORT = TypeAdapter(Report)
_LONGEST_REPORT = 16 * 1024 * 1024
_LONGEST_TEXT = 2000
_MOST_ENTRIES = 20_000
"""A year has 8,784 hours."""
_MOST_DAYS = 366
_MOST = 2**53
"""The largest whole number that every reader of JSON knows exactly."""
_LATEST = 4_102_444_800
"""The year 2100: no clock is as wrong as that."""


class ReportError(Exception):
    """There is no report; the message is one line for a person."""


class HostReport(HostFact[Report | ReportError]):
    """What `local-llm report --json` says, or why that is nothing."""

    def command(self, days: int) -> str:
        # It exits 1 where a goal is missed; on anything else it says one line on standard error.
        return framed(
            f"if [ -x {COMMAND} ]; then {COMMAND} report --json --days {days} 2>&1 || true; "
            "else echo 'Nothing is deployed here.'; fi"
        )

    def parse(self, output: list[str]) -> Report | ReportError:
        try:
            return parse_report(output)
        except ReportError as problem:
            return problem


def parse_report(output: list[str]) -> Report:
    """The report in a command's output, which may begin with warnings; raises ReportError."""
    lines = [line for line in output if line.strip()]
    data = _object(lines[-1]) if lines else None
    if data is None:
        raise ReportError(_words(" ".join(lines)))
    if data.get("format") != FORMAT:
        told = str(data.get("format"))[:_QUOTED_NAME]
        raise ReportError(f"its report has format {told}, this checkout reads {FORMAT}: deploy to the host again")
    try:
        _bounded(data, "")
        report = _REPORT.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:_QUOTED_CHARACTERS]
        raise ReportError(f"its report cannot be read ({place}: {first['msg']}): deploy to the host again") from None
    except RecursionError:
        raise ReportError("its report cannot be read (nested too deeply): deploy to the host again") from None
    if not _is_consistent(report):
        raise ReportError("its report contradicts itself (times, days or counts): deploy to the host again")
    return report


def _bounded(value: object, place: str) -> None:
    """Every number, text and list of a report has a size that a week or a year can have; raises ReportError."""
    match value:
        case bool() | None:
            return
        case int() | float():
            good = 0 <= value <= _MOST
        case str():
            good = len(value) <= _LONGEST_TEXT
        case list() | dict():
            good = len(value) <= _MOST_ENTRIES
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for name, part in parts if good else ():
                _bounded(name, place)
                _bounded(part, f"{place}.{name}".lstrip("."))
        case _:
            good = False
    if not good:
        told = f"{place[:_QUOTED_CHARACTERS]}: {str(value)[:_QUOTED_NAME]}"
        raise ReportError(f"its report cannot be believed ({told}): deploy to the host again")


def _is_consistent(report: Report) -> bool:
    """Whether its figures can be those of the days that it speaks of."""
    history = report.history
    window, periods = history.window, (history.whole, *history.hours, *history.days)
    ends = [time for gap in history.gaps for time in (gap.start, gap.end)]
    times = [report.time, window.until, history.first_sample or 0, *ends, *(each.time for each in history.healed)]
    times += [worst.start for goal in report.goals for worst in goal.worst]
    return (
        1 <= report.days <= _MOST_DAYS
        and window.until - window.since == report.days * DAY_SECONDS
        and 60 <= window.interval_seconds <= DAY_SECONDS
        and max(times) <= _LATEST
        and history.whole.expected > 0
        and all(each.up <= each.known <= each.expected <= window.slots for each in periods)
        and all(window.since - DAY_SECONDS < each.start < window.until for each in periods)
        and tuple(goal.name for goal in report.goals) == NAMES
    )


def _object(line: str) -> dict[str, Any] | None:
    try:
        data = json.loads(line) if len(line) <= _LONGEST_REPORT else None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _words(said: str) -> str:
    if "invalid choice: 'report'" in said:
        return "its checks are older than this report: deploy to the host again"
    return said[:_QUOTED_CHARACTERS] or "the host said nothing"
