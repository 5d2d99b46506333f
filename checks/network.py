"""Listening TCP sockets, from the tables of /proc/net/tcp (see proc(5))."""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.host import Host

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    inode: int

    @property
    def loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def parse_listeners(table: str) -> list[Listener]:
    """The listening sockets of /proc/net/tcp or tcp6."""
    listeners = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        listeners.append(Listener(_address(address), int(port, 16), int(fields[9])))
    return listeners


def _address(digits: str) -> str:
    """The kernel prints each 32-bit word of the address in the machine's own byte order."""
    words = (int(word, 16) for word in re.findall("[0-9A-Fa-f]{8}", digits))
    return str(ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def listeners(host: Host, pid: int | None = None) -> list[Listener]:
    """The listening sockets of this network namespace, or of the one that a process lives in."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            found += parse_listeners(host.read(f"/proc/{pid or 'self'}/net/{table}"))
        except FileNotFoundError:
            continue  # a kernel without IPv6 has no tcp6
    return found


def process_listeners(host: Host, pid: int) -> list[Listener]:
    """The listening TCP sockets that a process holds, in whatever network namespace; needs root."""
    held = set()
    for number in host.names(f"/proc/{pid}/fd"):
        try:
            target = host.link(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue  # closed since
        if target.startswith("socket:["):
            held.add(int(target[len("socket:[") : -1]))
    return [listener for listener in listeners(host, pid) if listener.inode in held]


def interfaces(host: Host, pid: int) -> list[str]:
    """The network interfaces that a process sees."""
    lines = host.read(f"/proc/{pid}/net/dev").splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines if ":" in line]
