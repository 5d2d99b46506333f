"""The report of all hosts as one page on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from pyinfra import host
from pyinfra.api import deploy
from rich.console import Console

from operations import reports

FILE = "report.html"
DAYS = 7
MOST_DAYS = 366


@deploy("Report")
def collect() -> None:
    """Ask every host, and write the page: `report_file` and `report_days` of `--data` say where and how far back."""
    file, days = str(host.data.get("report_file") or FILE), host.data.get("report_days", DAYS)
    if problem := _problem(file, days):
        Console(stderr=True, soft_wrap=True, highlight=False).print(problem, style="red", markup=False)
        sys.exit(1)
    reports.collected(name="Collect the reports", days=days)
    reports.written(name="Write the page", path=file)


def _problem(file: str, days: object) -> str | None:
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= MOST_DAYS:
        return f"report_days = {days!r}: allowed: a whole number from 1 to {MOST_DAYS}"
    path = Path(file)
    if path.is_dir() or not path.parent.is_dir():
        return f"report_file = {file!r}: allowed: a file in a folder that exists"
    return None
