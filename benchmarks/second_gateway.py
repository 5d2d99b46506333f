"""A second gateway on a sandbox machine, of the checkout's own template, beside the deployed one that stays as it is.

Its sockets and ports are its own, so that a benchmark chooses what lies behind it; all else is what a deploy writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sandbox.common import SandboxError, last_lines
from sandbox.host import SandboxHost
from settings import Settings
from tasks import paths
from tasks.gateway import buffer_bytes, configuration_file

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


def gateway_configuration(name: str, settings: Settings, *, model_socket: str = paths.SOCKET) -> str:
    """The deploy's haproxy.cfg for these settings, with sockets that only this process uses."""
    deployed = configuration_file(settings, stamp="benchmark").content
    moved = deployed.replace(f"{paths.GATEWAY_RUNTIME}/", f"{RUNTIME}/{name}/")
    return moved.replace(f"unix@{paths.SOCKET}", f"unix@{model_socket}")


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
