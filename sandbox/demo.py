"""The demo's steps: engine, image, hub, machine, deploy, checks, one question.

Each may be repeated; what runs already is used.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from sandbox.common import LABEL, REPOSITORY_ROOT, SandboxError, cache_dir, in_background, last_lines, run, say
from sandbox.engine import engine_problem, ensure_engine
from sandbox.host import SandboxHost
from sandbox.image import base_image, default_image
from sandbox.servers.base import listening_address
from sandbox.servers.hub import Hub
from sandbox.source import llama_cpp_repository
from sandbox.state import STATE_FILE, State
from sandbox.tiny_model import TinyModel, write_tiny_model

MACHINE = "local-llm-sandbox-demo"
MODEL_FILE = "tiny.gguf"
HUB_START_TIMEOUT_SECONDS = 20
QUESTION = "Does the local model on this machine work?"


@dataclass
class Steps:
    """Announces steps as they begin and remembers how long each took."""

    console: Console = field(default_factory=lambda: Console(highlight=False))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside; the time counts also when it fails."""
        self.console.print(f"\n[bold]{name}[/bold]")
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - begin
            say(f"  {self.seconds[name]:.1f} s")

    def print_summary(self) -> None:
        """How long each step took: a table on a terminal, plain lines elsewhere."""
        rows = [*self.seconds.items(), ("Total", sum(self.seconds.values()))]
        if not self.console.is_terminal:
            say("\nTime per step")
            for name, seconds in rows:
                say(f"  {name:<50} {seconds:8.1f} s")
            return
        table = Table("Step", "Seconds", title="Time per step", title_justify="left")
        table.columns[1].justify = "right"
        for name, seconds in rows:
            table.add_row(name, f"{seconds:.1f}")
        self.console.print(table)


def demo(image: str | None) -> None:
    """Bring the demo up, deploy to it, check it, ask it something.

    Raises SandboxError at the first step that fails.
    """
    steps = Steps()
    try:
        with steps.step("Docker engine"):
            ensure_engine()
        with steps.step("Base image"):
            name = _choose_image(image)
            say(f"  {base_image(name)}")
        with steps.step("llama.cpp source, tiny model, hub"):
            running = _ensure_hub()
        with steps.step("Machine"):
            host = _ensure_machine(name)
            _save_state(host, running)
            _check_hub_is_reachable(host, f"{running.hub.url}/status")
        with steps.step("Deploy"):
            _pyinfra("deploy.py")
        with steps.step("Checks"):
            _pyinfra("checks.py")
        with steps.step("One question"):
            say(f"  Q: {QUESTION}")
            say(f"  A: {host.ssh(f'local-llm ask {shlex.quote(QUESTION)}').stdout.strip()}")
    finally:
        steps.print_summary()
    _print_next_steps(host)


def down(*, everything: bool) -> None:
    """Remove the demo's machine, hub and state; with `everything` also images, volumes, test machines and the cache."""
    _stop_hub()
    problem = engine_problem()
    if problem is not None:
        say(f"Docker does not answer ({problem}), so no container could be removed.")
    else:
        containers = run(["docker", "ps", "-aq", "--filter", f"name=^/{MACHINE}$", "--filter", f"label={LABEL}"])
        _remove("containers", containers.stdout.split(), ["docker", "rm", "--force", "--volumes"])
        shutil.rmtree(cache_dir() / "hosts" / MACHINE, ignore_errors=True)
    STATE_FILE.unlink(missing_ok=True)
    if not everything:
        say(f"Left for next time: images and ccache volumes (docker, label {LABEL}) and {cache_dir()}.")
        say("Remove these as well: python -m sandbox down --all")
        return
    if problem is None:
        label = ["--filter", f"label={LABEL}"]
        _remove(
            "containers",
            run(["docker", "ps", "-aq", *label]).stdout.split(),
            ["docker", "rm", "--force", "--volumes"],
        )
        _remove("volumes", run(["docker", "volume", "ls", "-q", *label]).stdout.split(), ["docker", "volume", "rm"])
        tags = run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", *label]).stdout.split()
        _remove("images", tags, ["docker", "rmi", "--force"])
    shutil.rmtree(cache_dir(), ignore_errors=True)
    say("Removed the cache folder.")


def status() -> bool:
    """Print what runs; whether the machine does."""
    state = State.load()
    host = SandboxHost.attach(state.machine)
    running = host.is_running()
    hub_runs = _hub_answers(state.hub_bind, state.hub_port, state.hub_pid)
    stopped = "stopped; `make demo` starts it"
    say(f"Machine  {state.machine} ({state.image}): {'running' if running else stopped}")
    say(f"SSH      {shlex.join(host.ssh_argv())}")
    say(f"Hub      {state.git_url.removesuffix('/git/llama.cpp')}: {'running' if hub_runs else stopped}")
    say(f"Source   llama.cpp {state.commit}")
    say(f"Model    {state.model_url} ({state.model_size_bytes} bytes, sha256 {state.model_sha256})")
    return running


def open_ssh(command: list[str]) -> None:
    """Become an ssh client that is logged in to the machine."""
    argv = SandboxHost.attach(State.load().machine).ssh_argv(*command)
    if shutil.which("ssh") is None:
        raise SandboxError("ssh is not installed. Install the OpenSSH client and run this again.")
    os.execvp(argv[0], argv)  # noqa: S606


@dataclass(frozen=True)
class _RunningHub:
    """`hub` is not started here: it knows the addresses of the one that is process `pid`."""

    pid: int
    hub: Hub
    commit: str
    model: TinyModel


def _choose_image(wanted: str | None) -> str:
    try:
        running = SandboxHost.attach(MACHINE).image
    except SandboxError:
        return wanted or default_image()
    if wanted not in (None, running):
        raise SandboxError(f"The demo's machine is {running}. Run `make demo-down` first to have {wanted}.")
    return running


def _ensure_machine(image: str) -> SandboxHost:
    try:
        host = SandboxHost.attach(MACHINE)
    except SandboxError:
        host = SandboxHost(image, name=MACHINE, role="demo").start()
        say(f"  {MACHINE} started.")
        return host
    say(f"  {MACHINE} exists already and is used.")
    host.resume()
    return host


def _previous_state() -> State | None:
    try:
        return State.load()
    except SandboxError:
        return None


def _ensure_hub() -> _RunningHub:
    repository, commit = llama_cpp_repository(cache_dir())
    model = write_tiny_model(cache_dir() / MODEL_FILE)
    bind, name = listening_address()
    previous = _previous_state()
    # The same port as before: the addresses are settings of the deploy, and other settings would mean changes
    # on the host.
    port = previous.hub_port if previous and previous.hub_bind == bind else 0
    if previous and port and _hub_answers(bind, port, previous.hub_pid):
        pid = previous.hub_pid
    else:
        pid, port = _start_hub(repository, model.path, bind, port)
    hub = Hub(port=port, bind=bind, host=name)
    say(f"  llama.cpp {commit[:12]} and {MODEL_FILE} at {hub.url}")
    return _RunningHub(pid, hub, commit, model)


def _start_hub(repository: Path, model: Path, bind: str, port: int) -> tuple[int, int]:
    """Start the hub's process on that port, or on a free one when it is taken; returns its pid and port."""
    log = cache_dir() / "hub.log"
    options = ["--repository", str(repository), "--file", f"{MODEL_FILE}={model}", "--port", str(port)]
    process = in_background([sys.executable, "-m", "sandbox.servers.hub", *options], log)
    deadline = time.monotonic() + HUB_START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text()
        if text.startswith("listening on ") and text.endswith("\n"):
            found = int(text.strip().rpartition(":")[2])
            if _hub_answers(bind, found, process.pid):
                return process.pid, found
        time.sleep(0.1)
    if port:
        return _start_hub(repository, model, bind, 0)
    raise SandboxError(f"The hub did not start. Its log, {log}: {last_lines(log.read_text())}")


def _hub_answers(bind: str, port: int, pid: int) -> bool:
    """Whether our own hub answers there: a process id alone may have become another process's."""
    try:
        with urlopen(f"http://{bind}:{port}/status", timeout=5) as answer:
            return bool(json.load(answer)["pid"] == pid)
    except (OSError, ValueError, KeyError):
        return False


def _stop_hub() -> None:
    state = _previous_state()
    if state and _hub_answers(state.hub_bind, state.hub_port, state.hub_pid):
        os.kill(state.hub_pid, signal.SIGTERM)
        say("Stopped the hub.")


def _save_state(host: SandboxHost, running: _RunningHub) -> None:
    hub, model = running.hub, running.model
    State(
        machine=host.name,
        image=host.image,
        ssh_port=host.ssh_port,
        ssh_user=host.ssh_user,
        ssh_key=str(host.ssh_key),
        known_hosts=str(host.known_hosts),
        hub_pid=running.pid,
        hub_bind=hub.bind,
        hub_port=hub.port,
        git_url=hub.git_url,
        commit=running.commit,
        model_url=hub.file_url(MODEL_FILE),
        model_sha256=model.sha256,
        model_size_bytes=model.size_bytes,
    ).save()


def _check_hub_is_reachable(host: SandboxHost, url: str) -> None:
    script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
    try:
        host.exec("python3", "-c", script, url)
    except SandboxError as error:
        raise SandboxError(
            f"The machine cannot reach {url}: this computer's firewall keeps containers out. "
            "Allow them (with UFW: `ufw allow in on docker0`) and run this again."
        ) from error


def _pyinfra(script: str) -> None:
    """Run pyinfra on the machine, its output shown as it comes."""
    argv = [sys.executable, "-m", "pyinfra", "-y", "sandbox/inventory.py", script]
    code = subprocess.run(
        argv, cwd=REPOSITORY_ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False
    ).returncode
    if code != 0:
        raise SandboxError(
            f"`pyinfra -y sandbox/inventory.py {script}` failed with exit code {code}; see its output above. "
            "The machine is left running: look around with `python -m sandbox ssh`, then run `make demo` again."
        )


def _remove(kind: str, names: list[str], command: list[str]) -> None:
    if names:
        run([*command, *names])
        say(f"Removed {len(names)} of the sandbox's {kind}.")


def _print_next_steps(host: SandboxHost) -> None:
    say("\nWhere to look next")
    for command, meaning in (
        (shlex.join(host.ssh_argv()), "log in; then:"),
        ("  local-llm status", "what runs, at a glance"),
        ("  sudo journalctl -u local-llm -f", "the model server's log"),
        ("  sudo tail -f /var/log/llm-health.log", "health checks, every 5 minutes"),
        ("make demo", "deploy again: nothing should change"),
        ("make demo-down", "remove the machine"),
    ):
        say(f"  {command}   # {meaning}")
