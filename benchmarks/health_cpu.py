"""What one health check costs, as cron starts it, against starting Python for nothing."""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from benchmarks.common import print_report, progress, ratio
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from facts.verification import COMMAND
from sandbox.common import SandboxError, fail

RUNS = 10
HEALTH = "`local-llm health --log`"
PEER = "`python3 -c pass`"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        progress(f"{options.runs} runs each on {machine.name}")
        log = machine.exec("mktemp", "--tmpdir", "local-llm-health.XXXXXX").strip()
        commands = {
            HEALTH: [COMMAND, "health", "--log", "--log-file", log],
            PEER: ["/usr/bin/python3", "-c", "pass"],
        }
        try:
            taken = run_probe(machine, "child_cpu", str(options.runs), json.dumps(commands))
        finally:
            machine.exec("rm", "-f", log)
    except SandboxError as error:
        return fail(error)
    medians = {name: {kind: 1e3 * statistics.median(each) for kind, each in taken[name].items()} for name in commands}
    # The median of the sums, which is not the sum of the medians.
    cpu = {
        name: 1e3 * statistics.median(map(sum, zip(each["user"], each["system"], strict=True)))
        for name, each in taken.items()
    }
    print_report(
        "CPU of a health check",
        ("process", "user, ms", "system, ms", "CPU, ms", "ratio", "wall, ms", "ratio"),
        [
            [
                name,
                f"{each['user']:.0f}",
                f"{each['system']:.0f}",
                f"{cpu[name]:.0f}",
                ratio(cpu[name], cpu[PEER]),
                f"{each['wall']:.0f}",
                ratio(each["wall"], medians[PEER]["wall"]),
            ]
            for name, each in medians.items()
        ],
        f"Medians of {options.runs} runs, child processes included.",
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.health_cpu", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
