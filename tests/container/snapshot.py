"""A machine's state, to be compared before a deploy and after an uninstall: by other means than the deploy's own."""

from __future__ import annotations

import re

from tests.container.machine import Machine

NOISE = {
    r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$": "backups that useradd and groupadd make",
    r"/etc/ld\.so\.cache$|/var/cache/ldconfig/": "ldconfig's cache, rebuilt from what is there",
    r"/var/lib/dpkg/|/var/lib/apt/|/var/cache/apt/|/var/cache/debconf/": "apt's and dpkg's own state: compared by them",
    r"/var/log/(apt/|dpkg\.log|alternatives\.log|journal/|lastlog|wtmp|btmp|README)": "the system's own logs",
    r"/var/log(/apt)?$|/var/lib/systemd(/.*)?$": "systemd's own state, and directories of logs",
    r"/var/lib/(logrotate/status|sudo/.*|private)$": "logrotate's and sudo's memory; dynamic users",
    r"/__pycache__(/|$)": "Python's compiled files",
    r"/var/backups/|/var/lib/ucf/": "dpkg's and ucf's backups",
}
"""What differs and is nobody's loss, each with its reason."""

_FILES = r"""
cd / && roots="etc usr opt var root home boot"
find $roots -xdev \( -type f -o -type l -o -type d \) -printf '/%p|%y %m %u %g %l\n'
find $roots -xdev -type f -print0 | xargs -0 sha256sum | sed 's/^\([0-9a-f]*\)  \(.*\)$/content of \/\2|\1/'
"""
_OTHERS = {
    "unit": "systemctl list-unit-files --no-legend --plain | awk '{print $1 \"|\" $2}'",
    "user": "getent passwd | sed 's/:/|/'",
    "group": "getent group | sed 's/:/|/'",
    "package": "dpkg-query -W -f='${Package}|${db:Status-Status} ${Version}\\n'",
    "asked for": "apt-mark showmanual | sed 's/$/|/'",
    # The lock of deploys is held until the end of a run.
    "running": "ls /run /run/lock | grep -E 'local-?llm' | grep -v deploy.lock | sed 's/$/|/'",
    "process": "ps -eo comm | grep -E 'llama|haproxy|prometheus|alertmanager|node_exporter' | sed 's/$/|/'",
    "firewall": "ufw status verbose 2>/dev/null | sed 's/^/|/'; ufw show added 2>/dev/null | sed 's/^/|/'",
    # UFW's own chains stay in the kernel until the next boot, empty.
    "filter": "iptables-save 2>/dev/null | grep -E '^(:[A-Z]+ |-A)' | grep -v ufw | sed 's/ \\[.*//;s/^/|/'",
}


def snapshot(machine: Machine) -> dict[str, str]:
    """Everything by its name: files with mode, owner and digest, units, users, groups, packages, firewall."""
    found = _pairs(machine.sh(_FILES), "")
    found = {name: state for name, state in found.items() if not any(re.search(noise, name) for noise in NOISE)}
    for kind, command in _OTHERS.items():
        found |= _pairs(machine.sh(command, check=False), f"{kind} ")
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A line for each name whose state is another."""
    return [
        f"{name}: {before.get(name, 'nothing')} -> {after.get(name, 'nothing')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _pairs(text: str, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, state = line.partition("|")
        found[prefix + name] = f"{found[prefix + name]}\n{state}" if prefix + name in found else state
    return found
