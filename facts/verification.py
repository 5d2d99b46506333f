"""The host's own report on itself."""

from __future__ import annotations

import json
from typing import Any

from facts.base import HostFact, framed

COMMAND = "/usr/local/bin/local-llm"


class Report(HostFact[dict[str, Any] | None]):
    """What `local-llm test --json` says; None where nothing is deployed."""

    def command(self) -> str:
        return framed(f"if [ -x {COMMAND} ]; then {COMMAND} test --json || true; fi")

    def parse(self, output: list[str]) -> dict[str, Any] | None:
        return parse_report("\n".join(output))


def parse_report(text: str) -> dict[str, Any] | None:
    """The report as JSON; text that is none becomes a report with one failure that quotes it."""
    if not text.strip():
        return None
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError:
        failure = {
            "name": "checks",
            "status": "FAIL",
            "value": text.strip()[:300],
            "limit": "a report",
            "remedy": "run `sudo local-llm test` on the host",
        }
        return {"results": [failure]}
    return report
