"""A virtual machine in QEMU: a VPS with a kernel, cgroups, a firewall and a disk of its own, whose power can be cut.

It has what tests use of `SandboxHost`. Where KVM runs no guests, QEMU emulates the CPU: several times slower.
"""

import contextlib
import functools
import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from sandbox.common import SandboxError, Switched, cache_dir, failed_in, last_lines, run, say
from sandbox.engine import install_packages, is_root_on_debian
from sandbox.host import SSH_USER, free_port, ssh_key_pair
from sandbox.vm_disks import Disk

READY_TIMEOUT_SECONDS = 600
EXEC_TIMEOUT_SECONDS = 600
QEMU = "qemu-system-x86_64"
MEMORY_MIB = 3072
CORES = 2
# A boot sector in 16-bit code: writes 0x31 to the port that ends QEMU with status 2 * 0x31 + 1, then halts.
BOOT_SECTOR = bytes.fromhex("b0 31 ba 01 05 ee f4 eb fd").ljust(510, b"\0") + bytes.fromhex("55 aa")
BOOTED_STATUS = 99


class VirtualMachine(Switched):
    """One virtual machine over SSH. Use as a context manager.

    `disk` is what it boots from, at first a copy of it. `snapshot`, a file made by `snapshot()`, becomes its disk
    instead, and goes with it.
    """

    def __init__(self, disk: Disk, *, name: str | None = None, snapshot: Path | None = None) -> None:
        self.image = disk.name
        self.name = name or f"local-llm-vm-{uuid.uuid4().hex[:8]}"
        self.ssh_user = SSH_USER
        self.ssh_key, _ = ssh_key_pair()
        self.ssh_port = free_port()
        self.disk = disk
        self.file = snapshot or self._folder / "disk.img"
        self._qemu: subprocess.Popen[bytes] | None = None
        # QEMU serves one connection at a time.
        self._monitor = threading.Lock()

    @property
    def _folder(self) -> Path:
        return cache_dir() / "hosts" / self.name

    @property
    def known_hosts(self) -> Path:
        """known_hosts file with this machine's host keys."""
        return self._folder / "known_hosts"

    @property
    def console(self) -> Path:
        """What the machine's serial console said, since it was last switched on."""
        return self._folder / "console.log"

    def start(self) -> Self:
        """Switch it on, and wait until it can be deployed to. Raises SandboxError when it does not come up."""
        ensure_qemu()
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self.file.exists():
            run(["cp", "--sparse=always", "--reflink=auto", str(self.disk.file), str(self.file)])
        keys = self.disk.host_keys.splitlines()
        self.known_hosts.write_text("".join(f"[127.0.0.1]:{self.ssh_port} {key}\n" for key in keys))
        self._qemu = subprocess.Popen(
            [QEMU, *self._options()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._wait_until_ready()
        return self

    def stop(self) -> None:
        """Remove the machine with its disk."""
        self.power_cut()
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def power_cut(self) -> None:
        """Kill it: what the guest wrote to its disk stays, what its kernel only had in memory is lost."""
        self._close_connection()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.communicate()
            self._qemu = None

    def reboot(self) -> None:
        """Shut down and start again in an orderly way; waits until it is ready."""
        before = self._boot_id()
        self.exec("systemctl", "reboot", check=False)
        self._close_connection()
        self._wait_until_ready(before)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let its CPUs rest, with all that it has to write to its disk written."""
        with self._monitor, _Monitor(self._folder / "qmp") as monitor:
            monitor.execute("stop")
            try:
                yield
            finally:
                monitor.execute("cont")

    def snapshot(self, file: Path) -> Path:
        """Copy to `file` what a power cut now would leave on the disk; the machine goes on."""
        with self.paused():
            run(["cp", "--sparse=always", "--reflink=auto", str(self.file), str(file)])
        return file

    def unpack(self, archive: Path, folder: str) -> None:
        """Unpack a tar archive into a directory of the machine, as root."""
        command = f"mkdir -p {shlex.quote(folder)} && tar -x -C {shlex.quote(folder)}"
        with archive.open("rb") as content:
            subprocess.run(self._ssh(command), stdin=content, check=True, timeout=EXEC_TIMEOUT_SECONDS)

    def exec(self, *argv: str, check: bool = True, timeout_seconds: float = EXEC_TIMEOUT_SECONDS) -> str:
        """Run a command as root and return its standard output: over SSH, with a key that the deploy does not use.

        Raises SandboxError with its last lines of error output when it fails and `check` is set.
        """
        done = run(self._ssh(shlex.join(argv)), check=False, timeout_seconds=timeout_seconds)
        if check and done.returncode != 0:
            raise failed_in(self.name, " ".join(argv), done.returncode, done.stderr or done.stdout)
        return done.stdout

    def _ssh(self, *words: str) -> list[str]:
        return [
            *("ssh", "-i", str(self.ssh_key), "-p", str(self.ssh_port)),
            *("-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"),
            *("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=20"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            # One connection for all: an emulated CPU takes a second for each new one.
            *("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", f"ControlPath={self._folder}/ssh"),
            *("root@127.0.0.1", *words),
        ]

    def _close_connection(self) -> None:
        if (self._folder / "ssh").exists():
            run(self._ssh("-O", "exit"), check=False, timeout_seconds=20)

    def _options(self) -> list[str]:
        acceleration = accelerator()
        return [
            *("-name", self.name, "-accel", acceleration, "-cpu", "host" if acceleration == "kvm" else "max"),
            *("-smp", str(CORES), "-m", str(MEMORY_MIB), *self.disk.boot),
            # Flushes are not passed on: the disk is this machine's page cache, which outlives QEMU.
            *("-drive", f"file={self.file},if=virtio,format=raw,cache=unsafe,discard=unmap"),
            *("-netdev", f"user,id=lan,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"),
            *("-device", "virtio-net-pci,netdev=lan", "-device", "virtio-rng-pci"),
            *("-display", "none", "-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{self._folder}/qmp,server=on,wait=off"),
        ]  # fmt: skip

    def _wait_until_ready(self, booted_before: str = "") -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self._qemu is None or self._qemu.poll() is not None:
                said = b"" if self._qemu is None else self._qemu.communicate()[1]
                raise SandboxError(f"QEMU ended while {self.name} booted: {last_lines(said.decode(errors='replace'))}")
            with contextlib.suppress(SandboxError):
                if self._boot_id() != booted_before:
                    self.exec("systemctl", "is-system-running", "--wait", check=False)
                    return
            time.sleep(0.5)
        console = last_lines(self.console.read_text(errors="replace"))
        raise SandboxError(f"{self.name} is not up after {READY_TIMEOUT_SECONDS} s. Its console: {console}")

    def _boot_id(self) -> str:
        return self.exec("cat", "/proc/sys/kernel/random/boot_id", timeout_seconds=30).strip()


class _Monitor(Switched):
    """QEMU's control socket (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rw")

    def start(self) -> Self:
        """Read QEMU's greeting, and begin to give commands."""
        self._stream.readline()
        self.execute("qmp_capabilities")
        return self

    def stop(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def execute(self, command: str) -> None:
        """Run a command; events that come before its answer are left out."""
        self._stream.write(json.dumps({"execute": command}) + "\n")
        self._stream.flush()
        answer: dict[str, object] = {}
        while "return" not in answer:
            answer = json.loads(self._stream.readline())
            if "error" in answer:
                raise SandboxError(f"QEMU refused `{command}`: {answer['error']}")


def ensure_qemu() -> None:
    """Make sure that QEMU is there: installed as root on Debian or Ubuntu, SandboxError elsewhere."""
    if shutil.which(QEMU) is not None:
        return
    if not is_root_on_debian():
        raise SandboxError(f"{QEMU} is not installed (Debian: qemu-system-x86). Install it and run this again.")
    install_packages(["qemu-system-x86"])


@functools.cache
def accelerator() -> str:
    """`kvm` where it boots a guest of one sector, else emulation; says which and why."""
    ensure_qemu()
    problem = boot_problem("kvm", "host")
    if problem is None:
        say("  Virtual machines: KVM.")
        return "kvm"
    say(f"  Virtual machines: an emulated CPU, several times slower, because KVM runs no guest here ({problem}).")
    # One thread for all CPUs: with one each, code that a kernel patches while it runs is at times seen half patched by
    # another CPU, and the kernel panics ("Oops: int3").
    return "tcg,thread=single"


def boot_problem(acceleration: str, cpu: str) -> str | None:
    """Why QEMU runs no guest that way; None if it does. That /dev/kvm is there says little inside another machine."""
    with tempfile.NamedTemporaryFile(suffix=".img") as disk:
        disk.write(BOOT_SECTOR)
        disk.flush()
        argv = [
            *(QEMU, "-accel", acceleration, "-cpu", cpu, "-m", "64", "-nodefaults", "-display", "none"),
            *("-device", "isa-debug-exit,iobase=0x501,iosize=2"),
            *("-drive", f"file={disk.name},format=raw,if=ide,snapshot=on"),
        ]
        try:
            done = run(argv, timeout_seconds=20, check=False)
        except SandboxError as error:
            return str(error)
    return None if done.returncode == BOOTED_STATUS else last_lines(done.stderr, 1)[-100:]
