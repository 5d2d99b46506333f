"""The one place where checks read the machine: files, links, commands, processes.

Every path goes through `Host.path`, so that a test can point a Host at a folder of its own.
"""

from __future__ import annotations

import os
import selectors
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checks import systemd

COMMAND_TIMEOUT_SECONDS = 30.0
MIB = 1024 * 1024
MOST_BYTES = 16 * MIB
"""What is read of a command at most: some 25,000 of the gateway's lines as the journal tells them."""

_LONGEST_MESSAGE = 300

# cron's PATH has no sbin, where ufw and logrotate live; C keeps the texts that are parsed.
_COMMAND_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "C",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
}


@dataclass(frozen=True)
class Command:
    """What a finished command left behind; `cut`: it had more to say than was read."""

    code: int
    stdout: str
    stderr: str
    cut: bool = False

    @property
    def message(self) -> str:
        """The last line it said, for a person."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip()[:_LONGEST_MESSAGE] if lines else f"exit code {self.code}"


@dataclass(frozen=True)
class FileStatus:
    mode: int
    owner: str
    group: str
    size_bytes: int
    mtime_ns: int
    is_socket: bool


class Host:
    """The machine that the checks run on."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._units: dict[str, systemd.Unit] = {}

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0

    def require_root(self, purpose: str) -> None:
        """Raise PermissionError, which the runner turns into a WARN, when this needs sudo."""
        if not self.is_root:
            raise PermissionError(f"{purpose} needs root")

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds on the clock of systemd's …TimestampMonotonic."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    def load_per_core(self) -> float:
        """Runnable processes per core, averaged over the last minute."""
        return os.getloadavg()[0] / (os.cpu_count() or 1)

    def disk_bytes(self, path: str) -> tuple[int, int]:
        """Free (for users) and whole size of the file system that holds a path."""
        found = os.statvfs(self.path(path))
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def read(self, path: str) -> str:
        return self.path(path).read_text(encoding="utf-8", errors="replace")

    def replace(self, path: str, text: str, mode: int) -> None:
        """Put a file in the place of another, synced: a reader sees the old one or the new one, never a part."""
        target = self.path(path)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(target)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def link(self, path: str) -> str:
        return str(self.path(path).readlink())

    def names(self, path: str) -> list[str]:
        return [entry.name for entry in self.path(path).iterdir()]

    def exists(self, path: str) -> bool:
        return self.path(path).exists()

    def status(self, path: str) -> FileStatus:
        import grp
        import pwd

        found = self.path(path).stat()
        return FileStatus(
            mode=stat.S_IMODE(found.st_mode),
            owner=_name_or_id(lambda: pwd.getpwuid(found.st_uid).pw_name, found.st_uid),
            group=_name_or_id(lambda: grp.getgrgid(found.st_gid).gr_name, found.st_gid),
            size_bytes=found.st_size,
            mtime_ns=found.st_mtime_ns,
            is_socket=stat.S_ISSOCK(found.st_mode),
        )

    def run(self, *argv: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> Command:
        """Run a command without a shell; never raises for its exit code.

        One that says more than MOST_BYTES is ended, and its last whole line is the last that counts. Raises
        FileNotFoundError when it is not installed, TimeoutError when it takes too long.
        """
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_COMMAND_ENVIRONMENT,
            )
        except FileNotFoundError:
            raise FileNotFoundError(f"{argv[0]} is not installed") from None
        with process:
            try:
                out, err, cut = _read(process, timeout_seconds)
                code = process.wait(timeout_seconds)
            except (TimeoutError, subprocess.TimeoutExpired):
                raise TimeoutError(f"`{' '.join(argv)}` gave no answer in {timeout_seconds:.0f} s") from None
            finally:
                process.kill()
        if cut:
            code, out = 0, out[: out.rfind(b"\n") + 1]
        return Command(code, out.decode(errors="replace"), err.decode(errors="replace"), cut)

    def units(self, *names: str) -> list[systemd.Unit]:
        """The state of systemd units, asked for once in the life of this object."""
        missing = [name for name in names if name not in self._units]
        if missing:
            done = self.run(*systemd.show_command(missing))
            if done.code != 0:
                raise OSError(f"systemctl does not answer: {done.message}")
            self._units.update({name: systemd.Unit(name) for name in missing})
            self._units.update(systemd.parse_show(done.stdout))
        return [self._units[name] for name in names]

    def unit(self, name: str) -> systemd.Unit:
        return self.units(name)[0]

    def is_stopping(self) -> bool:
        """Whether the machine is being shut down or rebooted in order."""
        try:
            return self.run("systemctl", "is-system-running").stdout.strip() == "stopping"
        except (OSError, TimeoutError):
            return False

    def rss_bytes(self, pid: int) -> int:
        """Resident memory of a process; raises ProcessLookupError when it is gone."""
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"process {pid} is gone") from None

    def user(self, pid: int) -> str:
        """The name of the user that a process runs as."""
        import psutil

        try:
            return str(psutil.Process(pid).username())
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"process {pid} is gone") from None


def _name_or_id(name: Callable[[], str], number: int) -> str:
    try:
        return name()
    except KeyError:
        return str(number)


def _read(process: subprocess.Popen[bytes], timeout_seconds: float) -> tuple[bytes, bytes, bool]:
    """What a command says until its end, on both ways out, and whether it was ended for saying too much."""
    assert process.stdout
    assert process.stderr
    deadline = time.monotonic() + timeout_seconds
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    cut = False
    with selectors.DefaultSelector() as open_ends:
        for end in said:
            open_ends.register(end, selectors.EVENT_READ)
        while open_ends.get_map() and not cut:
            ready = open_ends.select(deadline - time.monotonic())
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                piece = os.read(key.fd, 64 * 1024)
                said[key.fd] += piece
                if not piece:
                    open_ends.unregister(key.fd)
            cut = sum(map(len, said.values())) > MOST_BYTES
    if cut:
        process.kill()
    out, err = said.values()
    return bytes(out), bytes(err), cut
