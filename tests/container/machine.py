"""A sandbox machine under test: deploying to it as a person would, and looking at it by other means than the deploy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.host import SandboxHost
from sandbox.servers.hub import Hub
from sandbox.state import connection_data, sandbox_settings
from sandbox.tiny_model import TinyModel

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY_SECONDS = 2400
"""A first deploy compiles llama.cpp: 9 minutes on 2 quiet cores, several times that on busy ones."""

# Small enough that a test can exceed them, large enough for the tiny model.
TEST_LIMITS = {
    "memory_max_mib": 512,
    "memory_goal_mib": 384,
    "prompt_cache_mib": 32,
    "health_interval_minutes": 1,
    "request_timeout_seconds": 10,
    "queue_length": 2,
}


@dataclass
class Source:
    """The hub, the pinned commit it serves, and the models."""

    hub: Hub
    commit: str
    models: dict[str, TinyModel]

    def settings(self, model: str = "tiny") -> dict[str, object]:
        """Settings that make a deploy fetch everything from the hub."""
        chosen = self.models[model]
        return sandbox_settings(
            git_url=self.hub.git_url,
            commit=self.commit,
            model_url=self.hub.file_url(model),
            model_sha256=chosen.sha256,
            model_size_bytes=chosen.size_bytes,
        )

    def commit_that_does_not_compile(self, scratch: Path) -> str:
        """Add a commit with an error in a source file to the hub's repository; returns its hash."""
        repository = str(self.hub.repository)
        git = ["git", "--git-dir", repository, "--work-tree", str(scratch)]
        who = {f"GIT_{role}_{what}": "test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL", "DATE")}
        who.update(GIT_AUTHOR_DATE="@0 +0000", GIT_COMMITTER_DATE="@0 +0000")
        environment = {**os.environ, **who, "GIT_INDEX_FILE": str(scratch / "index")}

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [*git, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=120
            )
            return done.stdout.strip()

        run("read-tree", self.commit)
        file = scratch / "broken.c"
        file.write_text("this is not C;\n")
        blob = run("hash-object", "-w", str(file))
        run("update-index", "--cacheinfo", f"100644,{blob},ggml/src/ggml.c")
        commit = run("commit-tree", run("write-tree"), "-m", "Break the build")
        # Only what a reference reaches can be fetched.
        run("update-ref", "refs/heads/broken", commit)
        return commit


@dataclass(frozen=True)
class Run:
    """A pyinfra process that has ended. `output` is what a person would have seen."""

    status: int
    output: str
    report: dict[str, Any]
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.status == 0

    @property
    def changed(self) -> int:
        """Operations that changed the host."""
        return int(self.report["results"]["totals"]["success"])


@dataclass
class Machine:
    """A sandbox host with the settings of its deploys."""

    host: SandboxHost
    source: Source
    settings: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    ssh_port: int | None = None
    first_deploy: Run | None = None

    def inventory(self) -> str:
        """An inventory file of this machine alone."""
        data = {
            **connection_data(
                ssh_port=self.ssh_port or self.host.ssh_port,
                ssh_user=self.host.ssh_user,
                ssh_key=self.host.ssh_key,
                known_hosts=self.host.known_hosts,
            ),
            **self.source.settings(),
            **TEST_LIMITS,
            **self.settings,
        }
        return f"hosts = [({self.host.image!r}, {data!r})]\n"

    def start(self, file: str = "deploy.py", *options: str) -> subprocess.Popen[str]:
        """Start pyinfra as a person would; `communicate` gives the JSON report and the shown text."""
        inventory = self.host.known_hosts.parent / f"inventory_{time.monotonic_ns()}.py"
        inventory.write_text(self.inventory())
        return subprocess.Popen(
            [sys.executable, "-m", "pyinfra", "-y", "--json", *options, str(inventory), file],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def deploy(self, file: str = "deploy.py", *options: str) -> Run:
        """Run pyinfra to its end."""
        began = time.monotonic()
        process = self.start(file, *options)
        try:
            out, err = process.communicate(timeout=DEPLOY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return finished(process, out, err, time.monotonic() - began)

    # Looking at the machine, past SSH and past the deploy's own code.

    def sh(self, command: str, *, check: bool = True) -> str:
        """The output of a shell command run as root."""
        return self.host.exec("sh", "-c", command, check=check).strip()

    def show(self, unit: str, property_: str) -> str:
        """A property of a unit, as systemd says it."""
        return self.sh(f"systemctl show {unit} -p {property_} --value")

    def main_pid(self, unit: str = "local-llm") -> int:
        return int(self.show(unit, "MainPID"))

    def starts(self, unit: str = "local-llm") -> int:
        """How often systemd started a unit since the machine was made."""
        return int(self.sh(f"journalctl -u {unit} -o cat | grep -c '^Started ' || true"))

    def http(self, request: str) -> tuple[int, dict[str, str], str]:
        """Ask the API from inside with curl's arguments; returns status, headers in lower case, and body."""
        answer = self.sh(
            f"curl -sS -m 60 -D /tmp/headers -o /tmp/body -w '%{{http_code}}' {request}; echo; "
            "cat /tmp/headers; echo ---; cat /tmp/body; rm -f /tmp/headers /tmp/body",
            check=False,
        )
        status, _, rest = answer.partition("\n")
        headers, _, body = rest.partition("---\n")
        pairs = (line.split(":", 1) for line in headers.splitlines() if ":" in line)
        return int(status), {name.strip().lower(): value.strip() for name, value in pairs}, body

    def chat(self, port: int = 8765) -> str:
        """The answer to a chat question through the gateway; an empty text where there is none."""
        body = json.dumps({"messages": [{"role": "user", "content": "What are you?"}], "max_tokens": 40})
        status, _, answer = self.http(
            f"http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        )
        return str(json.loads(answer)["choices"][0]["message"]["content"]).strip() if status == 200 else ""

    def answers(self) -> bool:
        """Whether the model that is configured by default answers as it should."""
        return self.chat() == self.source.models["tiny"].answer

    def hold_package_locks(self, seconds: int) -> None:
        """Hold the locks of dpkg and apt, like unattended-upgrades on a new VPS does."""
        self.sh(
            "systemd-run --quiet --unit=fake-unattended-upgrades python3 -c '"
            "import fcntl, time\n"
            'files = [open(p, "a") for p in ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", '
            '"/var/lib/apt/lists/lock")]\n'
            "[fcntl.lockf(f, fcntl.LOCK_EX) for f in files]\n"
            f"time.sleep({seconds})'"
        )


def finished(process: subprocess.Popen[str], out: str, err: str, seconds: float = 0.0) -> Run:
    """What an ended pyinfra process left."""
    report = json.loads(out) if out.strip().startswith("{") else {}
    return Run(process.returncode, err, report, seconds)


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is true; fails with `what` where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)
