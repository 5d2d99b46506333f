"""One self-contained HTML page of all hosts' reports: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from checks import week
from checks.goals import Goal, Verdict, known_percent, number, percent_text, seconds
from checks.history import LOCAL, Period
from checks.host import MIB
from checks.output import printable
from checks.week import Report
from reporting import plots


@dataclass(frozen=True)
class Row:
    """A host of the inventory, with its report or the reason why there is none."""

    name: str
    report: Report | None = None
    problem: str = ""


def render(rows: Sequence[Row], made: float) -> str:
    """The page as HTML; `made` is the time of its making, in seconds since the epoch."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_seen,
    )
    environment.filters.update(utc=utc, units=units)
    return environment.get_template("page.html.j2").render(
        hosts=[_shown(index, row) for index, row in enumerate(rows)],
        goals=next((row.report.goals for row in rows if row.report), ()),
        counts=_counts(rows),
        made=made,
        styles=plots.STYLES,
    )


def write(path: Path, text: str) -> None:
    """Put the page in its place, whole: who reads sees the old one or the new one. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new.chmod(0o644)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def utc(when: float, form: str = "%Y-%m-%d %H:%M") -> str:
    return time.strftime(form, time.gmtime(when))


def units(text: str) -> str:
    """The text with its units kept on the line of their numbers."""
    return re.sub(r"(?<=\d) (?=%|(?:s|ms|min|h|MiB)\b)", "\N{NO-BREAK SPACE}", text)


def _seen(value: object) -> object:
    """Whatever a host says, no character of its texts hides, or turns what stands beside it."""
    return printable(value, keep="\N{NO-BREAK SPACE}") if type(value) is str else value


def _shown(index: int, row: Row) -> dict[str, Any]:
    """A host's part of the page; what cannot be shown of one says so, and leaves the others alone."""
    try:
        return _host(index, row)
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        problem = f"its report cannot be shown ({type(error).__name__}): deploy to the host again"
        return _host(index, Row(row.name, problem=problem))


def _host(index: int, row: Row) -> dict[str, Any]:
    report = row.report
    if report is None:
        return {"name": row.name, "report": None, "problem": row.problem}
    history = report.history
    return {
        "name": row.name,
        "report": report,
        "id": f"host-{index}",
        "known": percent_text(history.whole.known, history.whole.expected),
        "is_well_known": known_percent(history.whole) >= 90,
        "notes": list(week.notes(history)),
        "figures": list(week.figures(history)),
        "goals": [(goal, [week.hour_words(hour) for hour in goal.worst]) for goal in report.goals],
        "plots": plots.draw(report, f"p{index}"),
        "days": [_day(day) for day in history.days],
        "routes": _routes(report),
    }


def _day(day: Period) -> list[str]:
    """A row of the table of figures, in the order of the template's columns."""
    local = day.responses.get(LOCAL)
    return [
        utc(day.start, "%a %Y-%m-%d"),
        percent_text(day.up, day.known) if day.known else "–",
        f"{number(day.known)} of {number(day.expected)}",
        *(number(day.requests.get(backend, 0)) for backend in plots.BACKENDS),
        seconds(local.mean) if local else "–",
        seconds(local.p95) if local else "–",
        f"{number(day.rss_bytes / MIB)} MiB" if day.rss_bytes is not None else "–",
        number(day.oom_kills),
    ]


def _routes(report: Report) -> list[list[str]]:
    """Requests by the rule that routed them: the rule, each backend's count, and how many were not answered well."""
    rules: dict[str, dict[str, int]] = {}
    for key, count in report.history.totals.requests.items():
        backend, reason, status = [*key.split("/"), "", ""][:3]
        counts = rules.setdefault(reason, {})
        counts[backend] = counts.get(backend, 0) + count
        if status != "2xx":
            counts["other"] = counts.get("other", 0) + count
    columns = (*plots.BACKENDS, "other")
    by_size = sorted(rules.items(), key=lambda rule: -sum(rule[1].get(backend, 0) for backend in plots.BACKENDS))
    return [[reason, *(number(counts.get(column, 0)) for column in columns)] for reason, counts in by_size]


def _counts(rows: Sequence[Row]) -> str:
    """The page in a sentence."""
    reports = [row.report for row in rows if row.report]
    goals: list[Goal] = [goal for report in reports for goal in report.goals]
    missed = sum(report.missed for report in reports)
    parts = [f"{len(rows)} host" + ("s" if len(rows) != 1 else "")]
    if len(reports) < len(rows):
        parts.append(f"{len(rows) - len(reports)} without a report")
    if missed:
        parts.append(f"{missed} missed a goal")
    elif goals and all(goal.verdict is Verdict.PASS for goal in goals) and len(reports) == len(rows):
        parts.append("every goal met")
    elif goals:
        parts.append("no goal missed")
    return ", ".join(parts)
