"""llama-server started as the unit starts it, without systemd, and what its process holds in memory."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import UnixConnection
from benchmarks.synthetic_model import MERGES, Shape, ensure_model
from checks.contract import paths
from facts.machine import LoginState, MachineState
from operations.llama_cpp import Release
from sandbox.common import SandboxError, last_lines
from sandbox.host import free_port
from settings import Settings
from tasks.preflight import Target
from tasks.service import environment_file

MODEL_VARIABLE = "LLAMA_ARG_MODEL"
SOCKET_VARIABLE = "LLAMA_ARG_HOST"
START_SECONDS = 180
REQUEST_SECONDS = 3_600
FULL_CACHE = "making room for prompt cache entry"


@dataclass(frozen=True)
class Answer:
    """The server's own timings of one request."""

    prompt_tokens: int
    prompt_tokens_per_second: float
    generated_tokens_per_second: float


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes: resident now, at its highest, and the part of now that is not a mapped file."""

    resident: int
    highest: int
    anonymous: int


@dataclass(frozen=True)
class Server:
    """A running llama-server: by its socket, or by its port where it listens on TCP."""

    process: subprocess.Popen[bytes]
    log: Path
    socket: str
    port: int

    def connection(self, timeout_seconds: float) -> http.client.HTTPConnection:
        if self.port:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)
        return UnixConnection(self.socket, timeout_seconds)

    def is_healthy(self) -> bool:
        with contextlib.closing(self.connection(2)) as connection, contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        return False

    def complete(self, prompt: Sequence[int], generated_tokens: int) -> Answer:
        """One request of exactly so many tokens in and out. Raises SandboxError when it is refused."""
        # By token numbers, so that the lengths are exact, and past the end-of-text token, which random weights may hit.
        body = {"prompt": list(prompt), "n_predict": generated_tokens, "ignore_eos": True, "temperature": 0}
        with contextlib.closing(self.connection(REQUEST_SECONDS)) as connection:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        if response.status != http.client.OK:
            raise SandboxError(f"llama-server answered {response.status}: {text[:300]}")
        timings: dict[str, Any] = json.loads(text)["timings"]
        return Answer(timings["prompt_n"], timings["prompt_per_second"], timings["predicted_per_second"])

    def memory(self) -> Memory:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)}
        return Memory(fields["VmRSS"], fields["VmHWM"], fields["RssAnon"])

    def has_filled_prompt_cache(self) -> bool:
        """Whether the prompt cache had to drop an entry, as the server logs it."""
        return FULL_CACHE in self.log.read_text(errors="replace")


def random_prompt(tokens: int, seed: int) -> list[int]:
    """Token numbers that no other seed begins with, so that nothing of it is cached."""
    # As text: as a number, -1 and 1 would be the same seed.
    source = random.Random(str(seed))  # noqa: S311 - not for secrets
    return [source.randrange(256, 256 + MERGES) for _ in range(tokens)]


def deployed_environment(settings: Settings) -> dict[str, str]:
    """What the deploy writes to llama-server.env on a host like this one."""
    machine = MachineState(cores=len(os.sched_getaffinity(0)))
    release = Release(settings.llama_cpp_repository, settings.llama_cpp_commit, settings.build_native, cpu="")
    login = LoginState(user="root", is_root=True, sudo_without_password=True, ssh_port=None)
    content = environment_file(Target(settings, login, machine, release, ()), stamp="").content
    lines = (line for line in content.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def newest_binary(folder: Path) -> Path:
    """The llama-server below `folder` that was written last. Raises SandboxError when there is none."""
    found = sorted(folder.glob("**/bin/llama-server"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SandboxError(f"There is no bin/llama-server below {folder}. Name one with --binary.")
    return found[-1]


def add_binary_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which llama-server is measured; `chosen_binary` reads them."""
    parser.add_argument("--binary", type=Path, metavar="FILE", help="llama-server (default: the newest release)")
    parser.add_argument(
        "--releases",
        type=Path,
        metavar="FOLDER",
        default=Path(paths.ROOT),
        help="where the newest bin/llama-server is looked for (default: %(default)s)",
    )


def chosen_binary(options: argparse.Namespace) -> Path:
    """The llama-server that was named, else the newest. Raises SandboxError when there is none."""
    binary: Path | None = options.binary
    return binary or newest_binary(options.releases)


@contextlib.contextmanager
def running(
    binary: Path, model: Path, folder: Path, environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> Iterator[Server]:
    """Start the server, wait until it is healthy, stop it at the end.

    With an environment that names a socket it listens on one in `folder`, else on a free port. The socket and the
    model's path are the only variables that differ from the environment that is given.
    """
    log = folder / "llama-server.log"
    socket, port, own = "", 0, dict(environment)
    if SOCKET_VARIABLE in own:
        socket = str(folder / "llama.sock")
        own |= {SOCKET_VARIABLE: socket, MODEL_VARIABLE: str(model)}
        command = [str(binary), *arguments]
    else:
        port = free_port()
        command = [str(binary), "--model", str(model), "--port", str(port), *arguments]
    with log.open("wb") as output:
        # As systemd does: nothing of this process's own environment but PATH.
        process = subprocess.Popen(
            command,
            env={"PATH": os.environ.get("PATH", "")} | own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Server(process, log, socket, port)
        _wait(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.is_healthy():
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise SandboxError(f"llama-server did not start: {last_lines(server.log.read_text(errors='replace'))}")
        time.sleep(0.2)


def size_note(shape: Shape) -> str:
    """How the model that was used compares with the published file."""
    size = ensure_model(shape).stat().st_size
    deviation = 100 * (size / shape.published_bytes - 1)
    return f"Model: synthetic {shape.model}, {size:,} bytes, {deviation:+.2f} % of the published file's size."
