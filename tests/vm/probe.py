"""Tries what a service of ours must not be able to do, and says what came of it: run in a service's own sandbox."""

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: object) -> None:
    """A system call of x86_64 by its number."""
    if LIBC.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def others() -> None:
    """Other processes that are visible, but for the first and the own ones."""
    numbers = [int(found.name) for found in Path("/proc").iterdir() if found.name.isdigit()]
    if not set(numbers) - {1, os.getpid(), os.getppid()}:
        raise PermissionError


def send(family: int, address: str) -> None:
    socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", (address, 53))


def map_writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def write(path: str) -> None:
    Path(path).write_text("")


def read(path: str) -> None:
    with Path(path).open("rb") as file:
        file.read(1)


def look(path: str) -> None:
    list(Path(path).iterdir())


def make_cgroup() -> None:
    Path("/sys/fs/cgroup/probe").mkdir()
    Path("/sys/fs/cgroup/probe").rmdir()


def make_suid() -> None:
    write("/tmp/suid")
    Path("/tmp/suid").chmod(0o4755)


def fork_often() -> None:
    for _ in range(100):
        if os.fork() == 0:
            signal.alarm(5)
            signal.pause()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "internet socket": lambda: socket.socket(socket.AF_INET),
    "datagram to the network": lambda: send(socket.AF_INET, "10.0.2.3"),
    "datagram to the network, IPv6": lambda: send(socket.AF_INET6, "fec0::2"),
    "connection to the network": lambda: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5),
    "connection to the API": lambda: socket.create_connection(("127.0.0.1", 8765), 5),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "write /etc": lambda: write("/etc/probe"),
    "write /usr": lambda: write("/usr/probe"),
    "write /opt/local-llm": lambda: write("/opt/local-llm/probe"),
    "write /etc/local-llm": lambda: write("/etc/local-llm/probe"),
    "write /var/lib": lambda: write("/var/lib/probe"),
    "write /var/lib/local-llm": lambda: write("/var/lib/local-llm/probe"),
    "write /tmp": lambda: write("/tmp/probe"),
    "write /proc/sys": lambda: write("/proc/sys/vm/swappiness"),
    "make a cgroup": make_cgroup,
    "read secrets": lambda: look("/etc/local-llm/secrets"),
    "read /etc/shadow": lambda: read("/etc/shadow"),
    "list /home/deployer": lambda: look("/home/deployer"),
    "list /root": lambda: look("/root"),
    "other processes": others,
    "/proc/meminfo": lambda: read("/proc/meminfo"),
    "disk": lambda: read("/dev/vda"),
    "kernel's log": lambda: read("/dev/kmsg"),
    "mount": lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "user namespace": lambda: call(272, 0x10000000),
    "ptrace": lambda: call(101, 1, 999_999, 0, 0),
    "bpf": lambda: call(321, 0, 0, 0),
    "reboot": lambda: call(169, 0, 0, 0, 0),
    "clock": lambda: call(164, 0, 0),
    "root": lambda: os.setuid(0),
    "suid file": make_suid,
    "writable code": map_writable_code,
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "100 processes": fork_often,
}


def attempt(action: Callable[[], object]) -> str:
    """What came of it, in one word; in a process of its own, since some of it changes what may be done afterwards."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            result = "allowed"
        except OSError as error:
            result = type(error).__name__
        os.write(writing, result.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 100).decode()


def main() -> None:
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    found = {name: attempt(action) for name, action in ATTEMPTS.items()}
    print(json.dumps({"attempts": found, "status": status}), flush=True)


if __name__ == "__main__":
    main()
