"""Results as JSON for a program, as a table for a person.

The JSON of `local-llm test --json`:

    {"host": "vps1", "time": "2026-11-22T10:05:00Z", "version": "1.0.0", "seconds": 2.1,
     "summary": {"PASS": 30, "WARN": 1, "FAIL": 0},
     "results": [{"group": "api", "name": "response time", "status": "PASS",
                  "value": "0.40 s for 8 tokens", "limit": "5 s", "remedy": ""}, …]}
"""

from __future__ import annotations

import socket
import textwrap
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from checks import __version__
from checks.output import printable
from checks.result import Result, Status

WIDTH = 100
_NAME_WIDTH = 38
_INDENT = " " * 8


def summary(results: Sequence[Result]) -> dict[str, int]:
    return {status.value: sum(result.status is status for result in results) for status in Status}


def exit_code(results: Sequence[Result]) -> int:
    """1 if anything failed; a warning alone is 0."""
    return int(any(result.status is Status.FAIL for result in results))


def as_json(results: Sequence[Result], seconds: float, now: float) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "version": __version__,
        "seconds": round(seconds, 2),
        "summary": summary(results),
        "results": [
            {
                "group": result.group,
                "name": result.name,
                "status": result.status.value,
                "value": result.value,
                "limit": result.limit,
                "remedy": result.remedy,
            }
            for result in results
        ],
    }


def as_table(results: Sequence[Result], seconds: float) -> str:
    lines: list[str] = []
    for group, members in groupby(results, key=lambda result: result.group):
        lines += [group.upper()]
        for result in members:
            lines += _row(result)
        lines += [""]
    counts = ", ".join(f"{count} {status}" for status, count in summary(results).items())
    return "\n".join([*lines, f"{counts} in {seconds:.1f} s"])


def _row(result: Result) -> Iterator[str]:
    text = printable(result.value) + _beside(result)
    name = textwrap.wrap(printable(result.name), _NAME_WIDTH) or [""]
    values = textwrap.wrap(text, WIDTH - len(_INDENT) - _NAME_WIDTH - 2) or [""]
    for number in range(max(len(name), len(values))):
        left = name[number] if number < len(name) else ""
        right = values[number] if number < len(values) else ""
        start = f"  {result.status.value:4}  " if number == 0 else _INDENT
        yield f"{start}{left:{_NAME_WIDTH}}  {right}".rstrip()
    if result.remedy:
        # A command stays on one line as far as it fits, so that it can be copied.
        yield from textwrap.wrap(
            printable(result.remedy),
            WIDTH,
            initial_indent=_INDENT + "→ ",
            subsequent_indent=_INDENT + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _beside(result: Result) -> str:
    """The limit: a bound always, since it says how far off the value is; any other only if it was not met."""
    if result.limit.startswith(("at most", "at least")):
        return f" ({printable(result.limit)})"
    if result.status is Status.PASS or not result.limit:
        return ""
    return f" (expected: {printable(result.limit)})"
