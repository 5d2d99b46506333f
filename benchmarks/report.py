"""What a report of seven days costs on the host with 90 days in the store, against starting Python for nothing.

One store is of a host in quiet use, one of a host that is busy day and night and has a cloud. The samples are made up
and lie in a mount namespace of their own: the machine's history stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import print_report, progress, ratio
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from checks.contract.paths import STATE
from checks.history import CLOUD, HOUR_SECONDS, LOCAL
from checks.samples import METRICS, Histogram, Sample, Store
from facts.verification import COMMAND
from reporting.example import INTERVAL_SECONDS, samples
from sandbox.common import SandboxError, fail, run

RUNS = 10
STORED_DAYS = 90
REPORT = "`local-llm report --json`"
_TIMES = Histogram.of([0.01 * 1.5 ** (number % 25) for number in range(200)])
_BUSY: dict[str, Any] = {
    "requests": {f"local/{reason}/2xx": 50 for reason in ("utility-task", "short-prompt", "default", "asked-local")}
    | {f"cloud/{reason}/2xx": 50 for reason in ("long-prompt", "long-answer", "default", "reasoning")},
    "responses": {LOCAL: _TIMES, CLOUD: _TIMES},
    "first_bytes": {LOCAL: _TIMES, CLOUD: _TIMES},
}
PEER = "`python3 -c pass`"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        folder = machine.exec("mktemp", "-d", "/root/local-llm-report.XXXXXX").strip()
        configuration = json.loads(machine.exec("cat", "/etc/local-llm/checks.json"))
        configuration["health_interval_minutes"] = INTERVAL_SECONDS // 60
        until = int(time.time()) // INTERVAL_SECONDS * INTERVAL_SECONDS
        quiet = list(samples(until, STORED_DAYS))
        commands = {}
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "checks.json").write_text(json.dumps(configuration))
            for name, stored in (("quiet", quiet), ("busy", _busy(quiet))):
                size = _fill(Path(scratch) / name / "samples.db", stored)
                report = f"{COMMAND} report --json --config {folder}/checks.json; test $? -le 1"
                commands[f"{REPORT}, {name}, {size / 1e6:.1f} MB"] = [
                    *("unshare", "--mount", "sh", "-c", f"mount --bind {folder}/{name} {STATE}; {report}")
                ]
            run(["docker", "cp", "-q", f"{scratch}/.", f"{machine.container_id}:{folder}"])
        commands[PEER] = ["/usr/bin/python3", "-c", "pass"]
        progress(f"{options.runs} runs each on {machine.name}")
        try:
            taken = run_probe(machine, "child_cpu", str(options.runs), json.dumps(commands))
        finally:
            machine.exec("rm", "-r", folder)
    except SandboxError as error:
        return fail(error)
    cpu = {
        name: 1e3 * statistics.median(map(sum, zip(each["user"], each["system"], strict=True)))
        for name, each in taken.items()
    }
    wall = {name: 1e3 * statistics.median(each["wall"]) for name, each in taken.items()}
    print_report(
        f"A report of 7 days, {STORED_DAYS} days stored",
        ("process", "CPU, ms", "ratio", "wall, ms", "ratio"),
        [
            [
                name,
                f"{cpu[name]:.0f}",
                ratio(cpu[name], cpu[PEER]),
                f"{wall[name]:.0f}",
                ratio(wall[name], wall[PEER]),
            ]
            for name in commands
        ],
        f"Medians of {options.runs} runs, child processes included.",
    )
    return 0


def _busy(quiet: Iterable[Sample]) -> Iterator[Sample]:
    """The same host with 400 requests in every sample, answered by both sides, and a sample of metrics an hour."""
    for each in quiet:
        busy = replace(each, **_BUSY)
        yield busy
        if each.time % HOUR_SECONDS < INTERVAL_SECONDS:
            yield replace(busy, kind=METRICS)


def _fill(path: Path, stored: Iterable[Sample]) -> int:
    """Write the samples to a new store; returns the file's size in bytes."""
    path.parent.mkdir()
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO samples (kind, time, data) VALUES (?, ?, ?)",
            ((each.kind, each.time, json.dumps(each.as_json(), separators=(",", ":"))) for each in stored),
        )
    return path.stat().st_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
