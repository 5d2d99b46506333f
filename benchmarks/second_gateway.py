"""A second gateway on a sandbox machine, of the checkout's own template, beside the deployed one that stays as it is.

Its sockets and ports are its own, so that a benchmark chooses what lies behind it; all else is what a deploy writes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from checks.contract import paths
from sandbox.common import SandboxError, last_lines
from sandbox.host import SandboxHost
from settings import Settings
from tasks.gateway import ALLOCATOR, buffer_bytes, configuration_file, reader_files

RUNTIME = "/run/local-llm-benchmark"
STUB = "stub"
STUB_SOCKET = f"{RUNTIME}/{STUB}/llama.sock"
START_SECONDS = 10


@dataclass(frozen=True)
class Process:
    """One HAProxy: its configuration, its environment, which may hold the cloud's key, and files in its folder."""

    name: str
    configuration: str
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return f"local-llm-benchmark-{self.name}"

    @property
    def folder(self) -> str:
        return f"{RUNTIME}/{self.name}"


def gateway_process(
    name: str, settings: Settings, *, model_socket: str = paths.SOCKET, environment: Mapping[str, str] | None = None
) -> Process:
    """The deploy's haproxy.cfg for these settings and what it loads, with sockets that only this process uses."""
    files = [configuration_file(settings, stamp="benchmark"), *reader_files(settings)]
    contents = {PurePosixPath(file.path).name: file.content for file in files}
    return _process(name, contents, model_socket, {**ALLOCATOR, **(environment or {})})


_EARLIER = """
import json, sys
from settings import Settings
from tasks import gateway
settings = Settings(**eval(sys.argv[1]))
files = [gateway.configuration_file(settings, stamp="benchmark"), *gateway.reader_files(settings)]
print(json.dumps([{file.path.rsplit("/", 1)[1]: file.content for file in files}, gateway.ALLOCATOR]))
"""


def earlier_process(
    checkout: Path, name: str, settings: Settings, *, model_socket: str, environment: Mapping[str, str]
) -> Process:
    """The same of another checkout of this project."""
    given = repr(settings.model_dump(exclude_unset=True))
    done = subprocess.run([sys.executable, "-c", _EARLIER, given], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SandboxError(f"{checkout} renders no haproxy.cfg for these settings: {last_lines(done.stderr)}")
    contents, allocator = json.loads(done.stdout)
    return _process(name, contents, model_socket, {**allocator, **environment})


def _process(name: str, contents: Mapping[str, str], model_socket: str, environment: Mapping[str, str]) -> Process:
    folder = f"{RUNTIME}/{name}"
    configuration = _moved(contents["haproxy.cfg"], folder, model_socket)
    loaded = {file: content for file, content in contents.items() if file != "haproxy.cfg"}
    return Process(name, configuration.replace(f"{paths.CONFIGURATION}/", f"{folder}/"), environment, loaded)


def _moved(configuration: str, folder: str, model_socket: str) -> str:
    own = configuration.replace(f"{paths.GATEWAY_RUNTIME}/", f"{folder}/")
    return own.replace(f"unix@{paths.SOCKET}", f"unix@{model_socket}")


def stub_configuration(settings: Settings, port: int) -> str:
    """An HAProxy in place of llama-server, and on a port of a cloud: it answers at once when it has the whole request.

    So what differs between two ways to it is their own time.
    """
    return f"""{plain_defaults(settings)}
frontend stub
    bind unix@{STUB_SOCKET}
    bind 127.0.0.1:{port}
    option http-buffer-request
    http-request return status 200 content-type application/json string '{{"object":"chat.completion"}}'
"""


def plain_defaults(settings: Settings) -> str:
    """What an HAProxy without rules needs, with the gateway's buffers."""
    return f"""global
    nbthread 1
    tune.bufsize {buffer_bytes(settings)}

defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
"""


@contextlib.contextmanager
def running(machine: SandboxHost, *processes: Process) -> Iterator[None]:
    """Run them as transient units of the machine, ready to serve; nothing of them is left afterwards."""
    try:
        for process in processes:
            _start(machine, process)
        yield
    finally:
        for process in processes:
            machine.exec("systemctl", "stop", process.unit, check=False)
            machine.exec("systemctl", "reset-failed", process.unit, check=False)
        machine.exec("rm", "-rf", RUNTIME)


def _start(machine: SandboxHost, process: Process) -> None:
    machine.exec("mkdir", "-p", "-m", "0700", process.folder)
    for name, content in {"haproxy.cfg": process.configuration, **process.files}.items():
        machine.exec("sh", "-c", 'printf "%s\\n" "$1" > "$2"', "sh", content, f"{process.folder}/{name}")
    environment = [f"--setenv={name}={value}" for name, value in process.environment.items()]
    unit = [f"--unit={process.unit}", "--service-type=notify", "--property=TimeoutStopSec=5", "--quiet", "--collect"]
    command = ["/usr/sbin/haproxy", "-Ws", "-f", f"{process.folder}/haproxy.cfg"]
    machine.exec("systemd-run", *unit, *environment, *command, check=False)
    deadline = time.monotonic() + START_SECONDS
    while machine.exec("systemctl", "is-active", process.unit, check=False).strip() != "active":
        if time.monotonic() > deadline:
            log = machine.exec("journalctl", "-u", process.unit, "-n", "5", "-o", "cat", check=False)
            raise SandboxError(f"{process.unit} does not start on {machine.name}: {last_lines(log)}")
        time.sleep(0.1)
