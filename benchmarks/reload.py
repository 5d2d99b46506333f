"""Requests that fail while the gateway's rules are reloaded, against the same load left alone.

On the deployed gateway: `systemctl reload`, as a deploy does it after a change of a rule. Completions and small
requests, over kept connections and over new ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from benchmarks.common import percentile, print_report, progress
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from checks.contract import paths
from sandbox.common import SandboxError, fail
from settings import Settings

RELOADS = 10
INTERVAL_SECONDS = 1.5
COMPLETION = {
    "method": "POST",
    "path": "/v1/chat/completions",
    # Whatever the local model is called: it stays on the machine.
    "headers": {"Content-Type": "application/json", "X-LLM-Route": "local"},
    "body": json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}),
}
MODELS = {"method": "GET", "path": "/v1/models", "headers": {}, "body": ""}
LOADS: dict[str, dict[str, Any]] = {
    "completions, kept connection": COMPLETION | {"keeps": True, "clients": 1},
    "completions, new connections": COMPLETION | {"keeps": False, "clients": 1},
    # Many, since what fails is a connection that is idle at the very moment of a reload.
    "`GET /v1/models`, 8 kept connections": MODELS | {"keeps": True, "clients": 8},
    "`GET /v1/models`, new connections": MODELS | {"keeps": False, "clients": 1},
}
"""What the clients send."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table; the exit code is 1 when a request failed."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        progress(f"{options.reloads} reloads of {paths.GATEWAY_UNIT} on {machine.name}")
        found = run_probe(
            machine,
            "reload",
            paths.GATEWAY_UNIT,
            paths.GATEWAY_ADMIN_SOCKET,
            str(options.port),
            json.dumps(LOADS),
            str(options.reloads),
            str(INTERVAL_SECONDS),
        )
        workers = len(set(found["workers"]))
        if workers != options.reloads + 1:
            raise SandboxError(f"{options.reloads} reloads gave {workers} processes, not {options.reloads + 1}.")
    except SandboxError as error:
        return fail(error)
    quiet, reloading = found["quiet"], found["reloading"]
    print_report(
        f"Reloading {options.reloads} times under load",
        ("load", "alone: requests", "failed", "median, ms", "p99, ms", "reloading: requests", "failed", "median, ms",
         "p99, ms"),
        [[name, *summary(quiet[name]), *summary(reloading[name])] for name in quiet],
        f"A reload every {INTERVAL_SECONDS} s; {sum(load['clients'] for load in LOADS.values())} clients at once.",
    )  # fmt: skip
    failures = [failure for phase in (quiet, reloading) for each in phase.values() for failure in each["failures"]]
    for failure in failures:
        progress(f"failed: {failure}")
    return 1 if failures else 0


def summary(load: dict[str, Any]) -> list[str]:
    """Requests, failures, median and p99 in ms."""
    seconds = load["seconds"]
    times = (1e3 * statistics.median(seconds), 1e3 * percentile(seconds, 99))
    return [f"{len(seconds):,}", str(len(load["failures"])), *(f"{value:.1f}" for value in times)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--reloads", type=int, default=RELOADS, help="how often (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=Settings().api_port, help="the gateway's port on the machine (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
