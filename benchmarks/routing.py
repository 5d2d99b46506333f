"""Time that routing adds to a request: the gateway's own configuration against a plain HAProxy that has no rules.

Everything runs on the machine beside the deployed gateway: an HAProxy that answers at once stands in for llama-server
and for the cloud, so that what differs is the gateway alone. The peer has the same buffers, limits and access log, and
waits for the whole body as well. One client, one kept connection each, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import percentile, print_report, progress
from benchmarks.machine import add_machine_option, deployed_machine, run_probe
from benchmarks.second_gateway import (
    STUB,
    STUB_SOCKET,
    Process,
    earlier_process,
    gateway_process,
    plain_defaults,
    running,
    stub_configuration,
)
from sandbox.common import SandboxError, fail
from settings import Settings
from tasks.cloud_key import KEY_VARIABLE

REQUESTS = 1_000
ROUTED_PORT, LOCAL_PORT, STUB_PORT = 28765, 28775, 28785
PEER_LOCAL_PORT, PEER_CLOUD_PORT, BEFORE_PORT = 28786, 28787, 28795
PATH = "/v1/chat/completions"
PEER = "HAProxy without rules"
CLOUD_MODEL = "cloud-large"
TURN_BYTES = 600


@dataclass(frozen=True)
class Case:
    """A request of one size, and where it must go: the values of X-LLM-Reason and X-LLM-Backend."""

    name: str
    body_bytes: int
    reason: str
    backend: str


CASES = (
    Case("2 kB, local first", 2_000, "short-prompt", "local"),
    Case("6 kB, cloud first", 6_000, "default", "cloud"),
    Case("60 kB, cloud first", 60_000, "long-prompt", "cloud"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure every case and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        with running(machine, *processes(options.before)):
            taken = {}
            for case in CASES:
                progress(f"{case.name}: {options.requests} requests each way on {machine.name}")
                body = request_body(case.body_bytes)
                ways = json.dumps(targets(case, before=options.before is not None))
                taken[case] = run_probe(machine, "post_latency", str(options.requests), PATH, body, ways)
        version = machine.exec("/usr/sbin/haproxy", "-v").split(" - ")[0].split()[2]
    except SandboxError as error:
        return fail(error)
    print_report(
        "Added latency of routing",
        ("request", "median, ms", "added, ms", "p99, ms", "added, ms"),
        [row for case, seconds in taken.items() for row in rows(case.name, seconds)],
        f"HAProxy {version}, {options.requests} requests each.",
    )
    return 0


def processes(before: Path | None) -> list[Process]:
    """The stand-in for both models, the peer, and the gateway with a cloud and without one; with `before` also that of
    another checkout, with a cloud."""
    routed = Settings(
        api_port=ROUTED_PORT,
        metrics_port=ROUTED_PORT + 1,
        cloud_url=f"http://127.0.0.1:{STUB_PORT}/v1",
        cloud_models=(CLOUD_MODEL,),
    )
    local = Settings(api_port=LOCAL_PORT, metrics_port=LOCAL_PORT + 1)
    key = {KEY_VARIABLE: "unused"}
    found = [
        Process(STUB, stub_configuration(routed, STUB_PORT)),
        Process("peer", peer_configuration(routed)),
        gateway_process("routed", routed, model_socket=STUB_SOCKET, environment=key),
        gateway_process("local", local, model_socket=STUB_SOCKET),
    ]
    if before:
        earlier = routed.model_copy(update={"api_port": BEFORE_PORT, "metrics_port": BEFORE_PORT + 1})
        found.append(earlier_process(before, "before", earlier, model_socket=STUB_SOCKET, environment=key))
    return found


def targets(case: Case, *, before: bool = False) -> dict[str, dict[str, Any]]:
    """The ways of a case: port, headers to send, headers that prove where the answer comes from."""
    content = {"Content-Type": "application/json"}
    routed = {"X-LLM-Reason": case.reason, "X-LLM-Backend": case.backend}
    peer_port = PEER_LOCAL_PORT if case.backend == "local" else PEER_CLOUD_PORT
    earlier = {
        "gateway with a cloud, before": {"port": BEFORE_PORT, "headers": content, "expected": routed},
        "its rules alone, before": {"port": BEFORE_PORT, "headers": content | {"X-LLM-Explain": "1"}, "expected": {}},
    }
    return {
        PEER: {"port": peer_port, "headers": content, "expected": {}},
        **(earlier if before else {}),
        "gateway with a cloud": {"port": ROUTED_PORT, "headers": content, "expected": routed},
        "gateway without a cloud": {"port": LOCAL_PORT, "headers": content, "expected": {"X-LLM-Reason": "no-cloud"}},
        "its rules alone (`X-LLM-Explain`)": {
            "port": ROUTED_PORT,
            "headers": content | {"X-LLM-Explain": "1"},
            "expected": {"X-LLM-Reason": case.reason},
        },
    }


def request_body(size_bytes: int) -> str:
    """A conversation of exactly that size for a model of the cloud's, fields in the order of OpenAI's clients."""
    first, last = f'{{"model":"{CLOUD_MODEL}","messages":[', '],"max_tokens":240,"stream":false}'
    message = '{{"role":"user","content":"{}"}}'
    free = size_bytes - len(first) - len(last)
    count = max(1, free // TURN_BYTES)
    # Messages with a comma between each two share what is free; the last one takes the remainder.
    room = free - (count - 1) - count * len(message.format(""))
    sizes = [room // count] * (count - 1) + [room - room // count * (count - 1)]
    return first + ",".join(message.format(_words(size)) for size in sizes) + last


def _words(size: int) -> str:
    return ("A small change to review. " * (size // 26 + 1))[:size]


def peer_configuration(settings: Settings) -> str:
    """Hands every request on, to the same servers as the gateway."""
    return f"""{plain_defaults(settings)}
    log stdout format raw local0 info
    option httplog
    option http-buffer-request

listen local
    bind 127.0.0.1:{PEER_LOCAL_PORT}
    server stub unix@{STUB_SOCKET}

listen cloud
    bind 127.0.0.1:{PEER_CLOUD_PORT}
    server stub 127.0.0.1:{STUB_PORT}
"""


def rows(name: str, seconds: dict[str, list[float]]) -> list[list[str]]:
    """Median and p99 of each way in ms, and what they are above the peer's."""
    found = {way: (1e3 * statistics.median(each), 1e3 * percentile(each, 99)) for way, each in seconds.items()}
    peer = found[PEER]
    return [
        [f"{name}: {way}", f"{median:.2f}", _added(median, peer[0]), f"{p99:.2f}", _added(p99, peer[1])]
        for way, (median, p99) in found.items()
    ]


def _added(value: float, peer: float) -> str:
    return "–" if value == peer else f"{value - peer:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests each way (default: %(default)s)")
    parser.add_argument("--before", type=Path, help="another checkout of this project, to measure its gateway as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
