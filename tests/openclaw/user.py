"""A user of the machine that has an OpenClaw: its configuration, its commands, its turns and what they cost."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from tests.container.conftest import with_settings
from tests.container.machine import Machine

NAME = "claw"
HOME = f"/home/{NAME}"
FOLDER = "/opt/openclaw"
STATE = f"{HOME}/.openclaw"
DEAD_PORT = 9099
DEAD_LOG = "/tmp/dead-cloud.log"
DEAD_UNIT = "test-dead-cloud"

# Takes a connection, notes when, and breaks it: a cloud that is there and does not work.
DEAD_CLOUD = f"""
import socket, struct, time
server = socket.create_server(("127.0.0.1", {DEAD_PORT}))
while True:
    connection, _ = server.accept()
    if connection.recv(4096, socket.MSG_PEEK).startswith(b"POST"):
        print(time.time(), file=open({DEAD_LOG!r}, "a"))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
"""


@dataclass(frozen=True)
class Turn:
    """An agent turn. `seconds` are from its first request to a model until the end of the local model's answer."""

    provider: str
    text: str
    attempts: list[str]
    seconds: float


@dataclass
class OpenClawUser:
    """The user `claw`. Its OpenClaw is looked at by its own commands and by its files, not by the deploy's code."""

    machine: Machine

    @property
    def wired(self) -> Machine:
        """The machine with the settings that wire this user's OpenClaw."""
        return with_settings(self.machine, openclaw_user=NAME)

    def sh(self, command: str, *, check: bool = True) -> str:
        """A shell command as this user."""
        path = "/usr/local/bin:/usr/bin:/bin"
        wrapped = f"cd {HOME} && runuser -u {NAME} -- env -i HOME={HOME} PATH={path} NO_COLOR=1 sh -c"
        return self.machine.sh(f"{wrapped} {shlex.quote(command)}", check=check)

    def openclaw(self, *arguments: str, state: str = STATE) -> Any:
        """What an `openclaw … --json` command says."""
        said = self.sh(
            f"OPENCLAW_STATE_DIR={state} {shlex.join(['openclaw', *arguments])} 2>{HOME}/errors", check=False
        )
        assert said.startswith("{"), said + self.sh(f"cat {HOME}/errors")
        return json.loads(said)

    def write(self, text: str, state: str = STATE) -> None:
        """Put a configuration there, as a person does by hand."""
        self.machine.sh(
            f"rm -rf {state}; install -d -m 700 -o {NAME} -g {NAME} {state}\n"
            f"printf %s {shlex.quote(text)} > {state}/openclaw.json\n"
            f"chown {NAME}: {state}/openclaw.json; chmod 600 {state}/openclaw.json"
        )

    def text(self, name: str = "openclaw.json") -> str:
        return self.machine.sh(f"cat {STATE}/{name}")

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.text())
        return config

    def stamp(self) -> str:
        """Changes whenever the configuration is written, even with the same content."""
        return self.machine.sh(f"stat -c '%i %y' {STATE}/openclaw.json")

    def turn(self, session: str, state: str = STATE) -> Turn:
        """One agent turn, of a session of its own."""
        self.machine.sh(f"rm -f {DEAD_LOG}")
        began = float(self.machine.sh("date +%s.%N"))
        answer = self.openclaw(
            *("agent", "--local", "--agent", "main", "--session-id", session),
            *("--message", "What are you?", "--json", "--timeout", "300"),
            state=state,
        )
        trace = answer["meta"]["executionTrace"]
        requests = self.requests(began)
        first = [*map(float, self.machine.sh(f"cat {DEAD_LOG} 2>/dev/null", check=False).split()), requests[0][0]]
        return Turn(
            provider=trace["winnerProvider"],
            text=answer["payloads"][0]["text"],
            attempts=[attempt["provider"] for attempt in trace["attempts"]],
            seconds=requests[-1][1] - min(first),
        )

    def requests(self, since: float) -> list[tuple[float, float, str]]:
        """The gateway's completions: begin and end in Unix time, and the reason that the gateway gives."""
        lines = self.machine.sh(
            f"journalctl -u local-llm-gateway --since @{since:.3f} -o short-unix --no-pager | grep 'method=POST'"
        ).splitlines()
        found = []
        for line in lines:
            end = float(line.split()[0])
            taken, reason = re.search(r"total_ms=(\d+)", line), re.search(r"reason=(\S+)", line)
            assert taken is not None
            assert reason is not None
            found.append((end - int(taken[1]) / 1000, end, reason[1]))
        return found

    def start_dead_cloud(self) -> str:
        """Returns the address of a cloud that breaks every connection."""
        self.machine.sh(
            f"systemctl stop {DEAD_UNIT} 2>/dev/null; rm -f {DEAD_LOG}\n"
            f"systemd-run --quiet --collect --unit={DEAD_UNIT} python3 -c {shlex.quote(DEAD_CLOUD)}"
        )
        return f"http://127.0.0.1:{DEAD_PORT}/v1"
