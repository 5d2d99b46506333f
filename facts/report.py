"""What a host reports of its last days."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from checks.week import FORMAT, Report
from facts.base import HostFact, framed
from facts.verification import COMMAND

_QUOTED_CHARACTERS = 300
_REPORT = TypeAdapter(Report)


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
        raise ReportError(
            f"its report has format {data.get('format')}, this checkout reads {FORMAT}: deploy to the host again"
        )
    try:
        return _REPORT.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ReportError(f"its report cannot be read ({place}: {first['msg']}): deploy to the host again") from None


def _object(line: str) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _words(said: str) -> str:
    if "invalid choice: 'report'" in said:
        return "its checks are older than this report: deploy to the host again"
    return said[:_QUOTED_CHARACTERS] or "the host said nothing"
