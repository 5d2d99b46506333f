"""What the sandbox's modules share: the error type, the cache folder, running a command, printing a step."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
LABEL = "local-llm-sandbox"


class SandboxError(Exception):
    """Something the sandbox needs is missing or failed; the text is one line that names the fix."""


def cache_dir() -> Path:
    """Folder for what can be made again: images' logs, the llama.cpp source, the tiny model, the SSH key."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "local-llm-sandbox"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def only_one(what: str) -> Iterator[None]:
    """Hold the lock of that name: of several processes one makes a thing, the others wait and find it made."""
    with (cache_dir() / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def file_sha256(path: Path) -> str:
    """The file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recipe_digest(*recipe: str) -> str:
    """Names what is made from these texts: another recipe is another name, so nothing old is taken for new."""
    return hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]


def can_bind(address: str, port: int = 0) -> bool:
    """Whether the address is this machine's, and the TCP port there (0: any) is free."""
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def say(text: str) -> None:
    """Print one line at once, so that a log read while it grows is never behind."""
    print(text, flush=True)


def last_lines(text: str, count: int = 5) -> str:
    """The last non-empty lines of a tool's output, joined into one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "no output"


def run(
    argv: Sequence[str],
    *,
    timeout_seconds: float | None = None,
    input_text: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output.

    `env` is added to the environment. Raises SandboxError when the program is missing, takes too long, or
    (with `check`) fails.
    """
    if shutil.which(argv[0]) is None:
        raise SandboxError(f"{argv[0]} is not installed. Install it and run this again.")
    try:
        result = subprocess.run(
            argv,
            input=input_text,
            # Without this the command would share, and could swallow, the terminal's input.
            stdin=subprocess.DEVNULL if input_text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"`{' '.join(argv[:4])}` did not finish in {timeout_seconds:.0f} s.") from error
    if check and result.returncode != 0:
        output = last_lines(result.stderr or result.stdout)
        raise SandboxError(f"`{' '.join(argv[:4])}` failed with exit code {result.returncode}: {output}")
    return result


def failed_in(machine: str, command: str, status: int, output: str) -> SandboxError:
    """The error of a command that failed in a machine."""
    return SandboxError(f"`{command[:200]}` failed in {machine} with exit code {status}: {last_lines(output)}")


def stream(
    argv: Sequence[str], log: Path, *, input_text: str | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run a long command with its output in `log`; SandboxError with the log's last lines if it fails."""
    with log.open("w") as output:
        result = subprocess.run(
            argv,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=None if env is None else {**os.environ, **env},
            check=False,
        )
    if result.returncode != 0:
        tail = last_lines(log.read_text(errors="replace"))
        raise SandboxError(f"`{' '.join(argv[:3])}` failed with exit code {result.returncode} (log: {log}): {tail}")


def in_background(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command that outlives this process, with its output in `log`."""
    with log.open("w") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY_ROOT,
            # A session of its own: Ctrl-C here must not stop it.
            start_new_session=True,
        )


def fail(error: SandboxError) -> int:
    """Print an error for a person; returns the exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 1


class Switched(ABC):
    """Something that is started for a while. As a context manager it is gone afterwards, even if it fails to start."""

    @abstractmethod
    def start(self) -> Self:
        """Start it, and wait until it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """Remove it, started or not."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
