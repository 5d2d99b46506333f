"""What the benchmarks share: the machine's name, Markdown tables, percentiles, HTTP over a unix socket."""

from __future__ import annotations

import http.client
import os
import re
import socket
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sandbox.common import cache_dir

CPUINFO = Path("/proc/cpuinfo")


def cache_folder() -> Path:
    """Where large inputs that can be made again are kept; `python -m sandbox down --all` removes it."""
    folder = cache_dir() / "benchmarks"
    folder.mkdir(exist_ok=True)
    return folder


def progress(text: str) -> None:
    """One line on standard error, so that standard output is the table alone."""
    print(text, file=sys.stderr, flush=True)


def cpu_model(cpuinfo: str) -> str:
    """The CPU's name as /proc/cpuinfo gives it; on ARM its part number."""
    found = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown CPU"


def print_report(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> None:
    """The result: date, machine and its load, the table, and what has to be said beside it."""
    cores = len(os.sched_getaffinity(0))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"### {title}\n")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_model(CPUINFO.read_text())}, {cores} cores; "
        f"load of the last 1, 5, 15 minutes at the end: {load}\n"
    )
    print(markdown_table(columns, rows))
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(value: float, peer: float) -> str:
    """How many times the peer's value; `–` where the peer has none."""
    return f"{value / peer:.2f}" if peer else "–"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the others are, interpolated between neighbours."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
