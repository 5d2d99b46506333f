"""The host's own report on itself."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from checks.result import Result, Status
from facts.base import HostFact, framed

COMMAND = "/usr/local/bin/local-llm"
_QUOTED_CHARACTERS = 300
_RESULTS = TypeAdapter(list[Result])


class Report(HostFact[list[Result] | None]):
    """The results that `local-llm test --json` tells; None where nothing is deployed."""

    def command(self) -> str:
        return framed(f"if [ -x {COMMAND} ]; then {COMMAND} test --json || true; fi")

    def parse(self, output: list[str]) -> list[Result] | None:
        return parse_report("\n".join(output))


def parse_report(text: str) -> list[Result] | None:
    """The results; text that is no report, or has words of its own, becomes one failure that quotes it."""
    if not text.strip():
        return None
    try:
        report: Any = json.loads(text)
        results = _RESULTS.validate_json(json.dumps(report["results"]), strict=True)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        results = []
    quoted = text.strip()[:_QUOTED_CHARACTERS]
    return results or [Result("checks", Status.FAIL, quoted, "a report", "run `sudo local-llm test` on the host")]
