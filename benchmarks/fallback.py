"""Time until the local side's first byte when the cloud fails, against its own time for the same request.

The gateway is of the checkout's own template and runs on the machine beside the deployed one. Its cloud is the
sandbox's scripted one, over TLS; an HAProxy that answers at once stands in for llama-server, whose own time varies by
more than what is measured. Before each request the cloud is seen to be up, so that the failure is met by that very
request; only an open breaker and a rest are states from before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from benchmarks.common import print_report, progress
from benchmarks.machine import PROBES, add_machine_option, deployed_machine
from benchmarks.second_gateway import (
    RUNTIME,
    STUB,
    STUB_SOCKET,
    Process,
    gateway_process,
    running,
    stub_configuration,
)
from sandbox.common import SandboxError, fail
from sandbox.host import SandboxHost
from sandbox.servers.answers import CLOUD_KEY, CLOUD_MODELS
from sandbox.servers.cloud import Cloud, Fault
from settings import Settings
from tasks.cloud_key import KEY_VARIABLE

REQUESTS = 20
API_PORT, STUB_PORT = 28765, 28785
CA_FILE = "ca.pem"
PATH = "/v1/chat/completions"
NAME = "fallback"
STATE_SECONDS = 30
POLL_SECONDS = 0.05
PROMPT = "Review this change: the loop now ends one step earlier than before. " * 12


@dataclass(frozen=True)
class Outage:
    """One way for the cloud to fail.

    `reached` is how many requests come as far as its HTTP; `state` what the gateway knows of it when the measured one
    comes.
    """

    name: str
    begin: Callable[[Cloud], None]
    reached: int = 0
    state: str = "up"


@dataclass(frozen=True)
class Sample:
    """Seconds until the first byte: asked of the local side, and come back to it from the cloud."""

    local: float
    fallback: float


class Client:
    """Sends requests from the machine itself, one at a time, by a program that stays there."""

    def __init__(self, lines_in: IO[str], lines_out: IO[str]) -> None:
        self._in, self._out = lines_in, lines_out

    def send(self, route: str, **headers: str) -> dict[str, Any]:
        """The answer with its time. Raises SandboxError when it is no answer to the request."""
        self._in.write(json.dumps({"X-LLM-Route": route, **headers}) + "\n")
        self._in.flush()
        line = self._out.readline()
        if not line:
            raise SandboxError("The program that sends requests ended.")
        answer: dict[str, Any] = json.loads(line)
        if answer["status"] != 200:
            raise SandboxError(f"The gateway answered {answer['status']}: {answer['body'][:300]}")
        return answer

    def local_seconds(self, route: str, reason: str) -> float:
        """Time of an answer that is the local side's. Raises SandboxError when it is not."""
        answer = self.send(route)
        found = {name: answer["headers"].get(f"x-llm-{name}") for name in ("backend", "reason")}
        if found != {"backend": "local", "reason": reason}:
            raise SandboxError(f"A request for route {route} was answered by {found}.")
        return float(answer["seconds"])

    def wait_for(self, state: str) -> None:
        """Until the gateway says that the cloud is in that state."""
        deadline = time.monotonic() + STATE_SECONDS
        while (found := json.loads(self.send("cloud", **{"X-LLM-Explain": "1"})["body"])["cloud"]) != state:
            if time.monotonic() > deadline:
                raise SandboxError(f"The gateway says that the cloud is {found}, not {state}.")
            time.sleep(POLL_SECONDS)


def status(code: int, **more: Any) -> Callable[[Cloud], None]:
    """The cloud answers completions with that status."""
    return lambda cloud: cloud.set_fault(Fault(status=code, **more), on="completions")


OUTAGES = (
    Outage("connection refused", Cloud.stop_listening),
    Outage("connection reset", lambda cloud: cloud.set_fault(Fault(reset=True), on="completions"), reached=1),
    Outage("certificate expired", lambda cloud: cloud.use_certificate("expired")),
    Outage("500", status(500), reached=1),
    Outage("503", status(503), reached=1),
    Outage("429", status(429, retry_after="1"), reached=1),
    Outage("401", status(401), reached=1),
    Outage("breaker open", Cloud.stop_listening, state="down"),
    Outage("resting after a 429", status(429, retry_after="2"), reached=1, state="resting"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure every outage and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        with Cloud() as cloud, running(machine, *processes(machine, cloud)), connected(machine) as client:
            taken = {}
            for outage in OUTAGES:
                progress(f"{outage.name}: {options.requests} requests")
                taken[outage.name] = [sample(client, cloud, outage) for _ in range(options.requests)]
    except SandboxError as error:
        return fail(error)
    print_report(
        "Fallback",
        ("the cloud", "local side alone, ms", "after the cloud failed, ms", "added, ms", "added at most, ms"),
        [row(name, samples) for name, samples in taken.items()],
        f"Time to the first byte, medians of {options.requests} pairs.",
    )
    return 0


def processes(machine: SandboxHost, cloud: Cloud) -> list[Process]:
    """The local side, and the gateway that finds and trusts the scripted cloud without changes to the machine."""
    settings = Settings(
        api_port=API_PORT,
        metrics_port=API_PORT + 1,
        cloud_url=cloud.url,
        cloud_models=CLOUD_MODELS,
        cloud_check_seconds=1,
    )
    address = machine.exec("getent", "ahostsv4", str(cloud.host)).split()[0]
    gateway = gateway_process(NAME, settings, model_socket=STUB_SOCKET, environment={KEY_VARIABLE: CLOUD_KEY})
    configuration = gateway.configuration
    for found, own in (
        ("ca-file @system-ca", f"ca-file {RUNTIME}/{NAME}/{CA_FILE}"),
        (f"server cloud {cloud.name}:", f"server cloud {address}:"),
    ):
        if found not in configuration:
            raise SandboxError(f"haproxy.cfg does not contain {found!r}: bring this benchmark up to date.")
        configuration = configuration.replace(found, own)
    return [
        Process(STUB, stub_configuration(settings, STUB_PORT)),
        replace(gateway, configuration=configuration, files={**gateway.files, CA_FILE: cloud.ca_pem}),
    ]


@contextlib.contextmanager
def connected(machine: SandboxHost) -> Iterator[Client]:
    """A client on the machine, over SSH."""
    body = {"model": CLOUD_MODELS[0], "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    probe = (PROBES / "first_byte.py").read_text()
    command = ["/usr/bin/python3", "-c", probe, str(API_PORT), PATH, json.dumps(body | {"stream": True})]
    process = subprocess.Popen(
        machine.ssh_argv(shlex.join(command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Client(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait(10)


def sample(client: Client, cloud: Cloud, outage: Outage) -> Sample:
    """One request to the local side, then the same to a cloud that fails."""
    cloud.clear()
    client.wait_for("up")
    local = client.local_seconds("local", "asked-local")
    outage.begin(cloud)
    if outage.state == "resting":
        # The request that meets the limit begins the rest.
        client.local_seconds("cloud", "asked-cloud")
    client.wait_for(outage.state)
    fallback = client.local_seconds("cloud", "asked-cloud")
    reached = len(cloud.requests_for("completions"))
    if reached != outage.reached:
        raise SandboxError(f"{outage.name}: {reached} requests reached the cloud, not {outage.reached}.")
    return Sample(local, fallback)


def row(name: str, samples: list[Sample]) -> list[str]:
    """Medians in ms; what is added is taken from the pairs."""
    added = [sample.fallback - sample.local for sample in samples]
    medians = (
        statistics.median(sample.local for sample in samples),
        statistics.median(sample.fallback for sample in samples),
        statistics.median(added),
        max(added),
    )
    return [name, *(f"{1e3 * seconds:.1f}" for seconds in medians)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fallback", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="pairs an outage (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
