"""Time that the gateway adds: GET /health through HAProxy against the same on llama-server's own socket.

The same client, on the machine itself, over one kept connection each, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks.common import percentile, print_report, progress, ratio
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from checks.contract import paths
from sandbox.common import SandboxError, fail
from settings import Settings

REQUESTS = 2_000
LABELS = {"socket": "unix socket of llama-server", "gateway": "through the gateway"}


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        progress(f"{options.requests} requests each way on {machine.name}")
        taken = run_probe(machine, "http_latency", paths.SOCKET, str(options.port), str(options.requests))
    except SandboxError as error:
        return fail(error)
    values = {name: _milliseconds(taken[name]) for name in LABELS}
    peer = values["socket"]
    rows = [
        [LABELS[name], *(f"{value:.2f}" for value in each), ratio(each[0], peer[0])] for name, each in values.items()
    ]
    added = [f"{gateway - direct:.2f}" for gateway, direct in zip(values["gateway"], peer, strict=True)]
    rows.append(["added by the gateway", *added, "–"])
    print_report(
        "Gateway latency",
        ("GET /health", "median, ms", "p95, ms", "p99, ms", "ratio of medians"),
        rows,
        f"{options.requests} requests each.",
    )
    return 0


def _milliseconds(seconds: list[float]) -> tuple[float, float, float]:
    """Median, p95 and p99."""
    return 1e3 * statistics.median(seconds), 1e3 * percentile(seconds, 95), 1e3 * percentile(seconds, 99)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_latency", description=__doc__)
    add_machine_option(parser)
    parser.add_argument(
        "--port", type=int, default=Settings().api_port, help="the gateway's port on the machine (default: %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests each way (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
