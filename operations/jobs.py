"""Long work on a host: a transient systemd unit that outlives the SSH connection, followed with its progress.

The unit runs unprivileged and at idle priority. A deploy that was interrupted leaves it running; the next deploy
finds it by its name and identity and goes on watching. `journalctl -u UNIT` and the log file show it on the host.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
from paramiko import SSHException
from pyinfra.api import Host, State

from operations.remote import fail, run, say, script
from operations.shell import Shell, word

LOG_DIRECTORY = "/var/log/local-llm"
POLL_SECONDS = 2.0
REPORT_SECONDS = 15.0
LOG_LINES_ON_FAILURE = 40

RESOLVER_FILES = (
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/resolvconf/resolv.conf",
    "/run/NetworkManager/resolv.conf",
)
"""Where /etc/resolv.conf may lead to: of their programs' directories these files alone, and no socket."""

SANDBOX: Mapping[str, str] = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictRealtime": "yes",
    "LockPersonality": "yes",
    # Nothing that others of this machine listen in or share.
    "TemporaryFileSystem": "/run:ro /dev/shm:size=1M,mode=1777",
    "PrivateIPC": "yes",
    "BindReadOnlyPaths": " ".join(f"-{path}" for path in RESOLVER_FILES),
    "RestrictAddressFamilies": "AF_INET AF_INET6",
}
IDLE_PRIORITY: Mapping[str, str] = {
    "CPUSchedulingPolicy": "idle",
    "IOSchedulingClass": "idle",
    "OOMScoreAdjust": "1000",
}


@dataclass(frozen=True)
class Job:
    """One unit of long work.

    `identity` tells whether a unit that is already running does this very work. `progress` is a shell command that
    prints where the work stands, and `describe` turns that into words ("45 %, 97 of 214 files"), or None where it
    says nothing yet. `prepare` is what root does before it starts, `discard` what root does after it failed.

    Its HOME is its own empty /tmp: what an earlier job left for a program to read at its start is never read.
    """

    unit: str
    title: str
    identity: str
    script: Shell
    user: str
    progress: Shell
    describe: Callable[[str], str | None]
    properties: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Shell = ":"
    discard: Shell = ":"

    @property
    def log(self) -> str:
        return f"{LOG_DIRECTORY}/{self.unit}.log"

    def start_command(self) -> str:
        """The command that starts the unit and returns at once."""
        properties = {
            "User": self.user,
            "RemainAfterExit": "yes",  # so that its end can still be read
            "StandardOutput": f"truncate:{self.log}",
            "StandardError": "inherit",
            "Environment": " ".join(
                f"'{name}={value}'"
                for name, value in {"HOME": "/tmp", **self.environment}.items()  # noqa: S108
            ),
            **SANDBOX,
            **IDLE_PRIORITY,
            **self.properties,
        }
        return shlex.join(
            [
                "systemd-run",
                "--quiet",
                f"--unit={self.unit}",
                f"--description={self.identity}",
                *(f"--property={name}={value}" for name, value in properties.items()),
                "--",
                "/bin/sh",
                "-euc",
                self.script.strip(),
            ]
        )


def follow(job: Job, arguments: Mapping[str, Any], then: Job | None = None) -> Callable[[State, Host], bool]:
    """A function for `remote.call` that starts the job, or joins it where it runs, and reports until it ends.

    Where `then`, the job that works on this one's result, runs already, there is nothing to do.
    """

    def start_and_watch(_state: State, host: Host) -> bool:
        try:
            if then and _runs_this(then, _unit_state(then, host, arguments)):
                return True
            return _start(job, host, arguments) and _watch(job, host, arguments)
        except (OSError, EOFError, SSHException) as error:
            return fail(host, f"{job.title}: lost the connection ({error}). It goes on; deploy again to join it.")

    return start_and_watch


def _start(job: Job, host: Host, arguments: Mapping[str, Any]) -> bool:
    if _runs_this(job, _unit_state(job, host, arguments)):
        host.log_styled(f"{job.title}: already under way on the host, following it", fg="yellow")
        return True
    started, output = run(
        host,
        script(
            f"systemctl stop {word(job.unit)}.service 2>/dev/null || true\n"
            f"systemctl reset-failed {word(job.unit)}.service 2>/dev/null || true\n"
            f"mkdir -p {LOG_DIRECTORY}\n{job.prepare.strip()}\n{job.start_command()}"
        ),
        arguments,
    )
    return started or fail(host, f"{job.title}: could not start: {output}")


def _watch(job: Job, host: Host, arguments: Mapping[str, Any]) -> bool:
    began = reported = time.monotonic()
    said = None
    while True:
        unit = _unit_state(job, host, arguments)
        if unit.get("SubState") == "exited":
            run(host, f"systemctl stop {word(job.unit)}.service", arguments)
            host.log_styled(f"{job.title}: done after {_duration(time.monotonic() - began)}", fg="green")
            return True
        if unit.get("ActiveState") not in ("active", "activating"):
            return _report_failure(job, unit, host, arguments)
        words = job.describe(unit.get("progress", ""))
        if words and words != said and time.monotonic() - reported >= REPORT_SECONDS:
            say(host, f"{job.title}: {words}, {_duration(time.monotonic() - began)}")
            said, reported = words, time.monotonic()
        gevent.sleep(POLL_SECONDS)


def _report_failure(job: Job, unit: Mapping[str, str], host: Host, arguments: Mapping[str, Any]) -> bool:
    _, tail = run(
        host,
        f"tail -n {LOG_LINES_ON_FAILURE} {word(job.log)}; systemctl reset-failed {word(job.unit)}.service",
        arguments,
    )
    run(host, script(job.discard), arguments)
    reason = f"{unit.get('Result', 'unknown')}, status {unit.get('ExecMainStatus', '?')}"
    return fail(host, f"{tail}\n{job.title} failed ({reason}). The whole log is on the host: {job.log}")


def _unit_state(job: Job, host: Host, arguments: Mapping[str, Any]) -> dict[str, str]:
    _, output = run(
        host,
        f"systemctl show {word(job.unit)}.service "
        "-p ActiveState -p SubState -p Result -p ExecMainStatus -p Description; "
        f"printf progress=; {job.progress} 2>/dev/null || true",
        arguments,
    )
    return dict(re.findall(r"^(\w+)=(.*)$", output, re.MULTILINE))


def _runs_this(job: Job, unit: Mapping[str, str]) -> bool:
    return unit.get("ActiveState") in ("active", "activating") and unit.get("Description") == job.identity


def end_processes(user: str) -> Shell:
    """Lines of a script of root's that end all that a user runs: nobody changes any more what is taken from it.

    By /proc/PID/status, which tells the user also of a process that hides the rest of itself.
    """
    return f"""
user=$(id -u {word(user)})
running() {{
    cat /proc/[0-9]*/status 2>/dev/null |
        awk -v user="$user" '$1 == "Pid:" {{pid = $2}} $1 == "State:" {{state = $2}}
            $1 == "Uid:" && state != "Z" && ($2 == user || $3 == user) {{print pid}}'
}}
tries=50
while pids=$(running) && [ -n "$pids" ]; do
    [ "$((tries -= 1))" -gt 0 ] || {{ echo "processes of "{word(user)}" do not end:" $pids >&2; exit 1; }}
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
done
"""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
