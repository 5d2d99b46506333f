"""What a report of seven days costs on the host with 90 days in the store, against starting Python for nothing.

The samples are made up and lie in a mount namespace of their own: the machine's history stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.common import print_report, progress, ratio
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from checks.config import STATE
from checks.samples import Store
from facts.verification import COMMAND
from sandbox.common import SandboxError, fail, run
from sandbox.week_samples import INTERVAL_SECONDS, samples

RUNS = 10
STORED_DAYS = 90
REPORT = "`local-llm report --json`"
PEER = "`python3 -c pass`"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        folder = machine.exec("mktemp", "-d", "/root/local-llm-report.XXXXXX").strip()
        configuration = json.loads(machine.exec("cat", "/etc/local-llm/checks.json"))
        configuration["health_interval_minutes"] = INTERVAL_SECONDS // 60
        with tempfile.TemporaryDirectory() as scratch:
            size = _fill(Path(scratch) / "samples.db")
            (Path(scratch) / "checks.json").write_text(json.dumps(configuration))
            run(["docker", "cp", "-q", f"{scratch}/.", f"{machine.container_id}:{folder}"])
        progress(f"{options.runs} runs each on {machine.name}, {size / 1e6:.1f} MB of samples")
        report = f"mount --bind {folder} {STATE}; {COMMAND} report --json --config {folder}/checks.json; test $? -le 1"
        commands = {
            REPORT: ["unshare", "--mount", "sh", "-c", report],
            PEER: ["/usr/bin/python3", "-c", "pass"],
        }
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
        f"A report of 7 days, {STORED_DAYS} days stored ({size / 1e6:.1f} MB)",
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


def _fill(path: Path) -> int:
    """Write the samples up to now; returns the file's size in bytes."""
    Store.open(path).close()
    until = int(time.time()) // INTERVAL_SECONDS * INTERVAL_SECONDS
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO samples (kind, time, data) VALUES (?, ?, ?)",
            (
                (each.kind, each.time, json.dumps(each.as_json(), separators=(",", ":")))
                for each in samples(until, STORED_DAYS)
            ),
        )
    return path.stat().st_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
