"""What preflight and the build need to know of a host, in two round trips and with nothing installed.

`Login` runs as the login user, because sudo hides the SSH session; `Machine` runs as root where that is possible.
Both are plain POSIX sh: a fresh host may have no Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from facts.base import HostFact, framed


def parse_sections(lines: list[str]) -> dict[str, list[str]]:
    """Split output into the blocks that `@name` lines open."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if line.startswith("@"):
            current = sections.setdefault(line[1:].strip(), [])
        else:
            current.append(line)
    return sections


@dataclass(frozen=True)
class LoginState:
    """Who we are on the host before sudo, and the port of the SSH server that let us in."""

    user: str
    is_root: bool
    sudo_without_password: bool
    ssh_port: int | None
    tmp_runs_programs: bool = True


class Login(HostFact[LoginState]):
    """The login user, whether sudo works without a password, the SSH session's port on the host, and whether /tmp runs
    programs: pyinfra hands a password to sudo by one."""

    def command(self) -> str:
        return framed(
            'echo "$(id -un) $(id -u) ${SSH_CONNECTION##* }"; '
            "if sudo -k -n -H sh -c true 2>/dev/null; then echo sudo; else echo none; fi; "
            "program=$(mktemp /tmp/local-llm-XXXXXXXX) && echo '#!/bin/sh' >$program && chmod 0700 $program && "
            '$program 2>/dev/null && echo runs; rm -f "$program"'
        )

    def parse(self, output: list[str]) -> LoginState:
        user, uid, *port = output[0].split()
        return LoginState(
            user=user,
            is_root=uid == "0",
            sudo_without_password=output[1] == "sudo",
            ssh_port=int(port[0]) if port else None,
            tmp_runs_programs="runs" in output[2:],
        )


@dataclass(frozen=True)
class Disk:
    """The file system that holds a directory: its mount point and free space."""

    mount: str
    free_mib: int


@dataclass(frozen=True)
class MachineState:
    """A host's hardware and system, as far as a deploy depends on them. Sizes are in MiB."""

    os_id: str = ""
    os_version: str = ""
    os_name: str = "unknown"
    architecture: str = ""
    init: str = ""
    cores: int = 1
    cpu_model: str = ""
    cpu_flags: frozenset[str] = frozenset()
    memory_total_mib: int = 0
    memory_available_mib: int = 0
    disks: dict[str, Disk] = field(default_factory=dict)
    listeners: dict[int, str] = field(default_factory=dict)
    ssh_ports: frozenset[int] = frozenset()
    gateway_pids: frozenset[int] = frozenset()
    gateway_ports: frozenset[int] = frozenset()
    has_ipv6: bool = False
    llama_memory_mib: int = 0


DISKS = ("/opt", "/usr", "/var")

_SCRIPT = rf"""
export LC_ALL=C
echo @os; . /etc/os-release 2>/dev/null; echo "$ID"; echo "$VERSION_ID"; echo "$PRETTY_NAME"
echo @architecture; uname -m
echo @init; cat /proc/1/comm
echo @cores; nproc
echo @cpu; grep -m1 -E '^(model name|CPU part)' /proc/cpuinfo; grep -m1 -E '^(flags|Features)' /proc/cpuinfo
echo @memory; grep -E '^(MemTotal|MemAvailable):' /proc/meminfo
echo @disk; for d in {" ".join(DISKS)}; do echo "$d $(df -Pk "$d" 2>/dev/null | awk 'NR==2 {{print $4, $6}}')"; done
echo @listeners; ss -Hltnp 2>/dev/null | awk '{{print $4, $6}}'
echo @ssh; sshd=$(command -v sshd || echo /usr/sbin/sshd); "$sshd" -T 2>/dev/null | awk '$1 == "port" {{print $2}}'
systemctl show ssh.socket -p Listen --value 2>/dev/null | grep -oE ':[0-9]+ ' | tr -d ': '
echo @gateway; pid=$(systemctl show local-llm-gateway -p MainPID --value 2>/dev/null)
[ "${{pid:-0}}" -gt 0 ] && {{ echo "$pid"; ps -o pid= --ppid "$pid"; }}
echo @gateway_ports
systemctl show local-llm-gateway.socket -p Listen --value 2>/dev/null | grep -oE ':[0-9]+ ' | tr -d ': '
echo @ipv6; cat /proc/net/if_inet6 >/dev/null 2>&1 && echo yes
echo @own; systemctl show local-llm -p MemoryCurrent --value 2>/dev/null
true
"""


class Machine(HostFact[MachineState]):
    """Operating system, CPU, memory, disks, listening ports and our own services."""

    def command(self) -> str:
        return framed(_SCRIPT.strip())

    def parse(self, output: list[str]) -> MachineState:
        return parse_machine(output)


def parse_machine(output: list[str]) -> MachineState:
    """Read the fact's output; what is missing keeps its empty default, which preflight then reports."""
    sections = parse_sections(output)

    def lines(name: str) -> list[str]:
        return [line.strip() for line in sections.get(name, []) if line.strip()]

    def first(name: str) -> str:
        return next(iter(lines(name)), "")

    os_release = [*sections.get("os", []), "", "", ""][:3]
    cpu = dict(line.split(":", 1) for line in lines("cpu") if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in cpu.items()}
    memory_kib = {line.split(":")[0]: int(line.split()[1]) for line in lines("memory")}
    disks = (line.split() for line in lines("disk"))
    own_bytes = first("own")
    ssh_listeners = {port for port, process in _listeners(lines("listeners")) if '"sshd"' in process}
    return MachineState(
        os_id=os_release[0],
        os_version=os_release[1],
        os_name=os_release[2] or "unknown",
        architecture=first("architecture"),
        init=first("init"),
        cores=int(first("cores") or 1),
        cpu_model=cpu.get("model name", cpu.get("CPU part", "")),
        cpu_flags=frozenset(cpu.get("flags", cpu.get("Features", "")).split()),
        memory_total_mib=memory_kib.get("MemTotal", 0) // 1024,
        memory_available_mib=memory_kib.get("MemAvailable", 0) // 1024,
        disks={fields[0]: Disk(fields[2], int(fields[1]) // 1024) for fields in disks if len(fields) == 3},
        listeners=dict(_listeners(lines("listeners"))),
        ssh_ports=frozenset({int(line) for line in lines("ssh")} | ssh_listeners),
        gateway_pids=frozenset(int(line) for line in lines("gateway")),
        gateway_ports=frozenset(int(line) for line in lines("gateway_ports")),
        has_ipv6=first("ipv6") == "yes",
        llama_memory_mib=int(own_bytes) // 1024**2 if own_bytes.isdigit() and len(own_bytes) < 16 else 0,
    )


def _listeners(lines: list[str]) -> list[tuple[int, Any]]:
    """Port and owning process of each `ss` line, such as `127.0.0.1:8765 users:(("haproxy",pid=1,fd=2))`."""
    pairs = []
    for line in lines:
        address, _, process = line.partition(" ")
        pairs.append((int(address.rsplit(":", 1)[1]), process))
    return pairs
