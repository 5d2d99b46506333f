"""Services whose running process is the one that its files describe.

A service carries a stamp of its configuration in its environment (`LOCAL_LLM_STAMP`): a digest of everything that
wants a restart when it changes. The running process's own stamp tells exactly whether it is up to date, also after
a deploy that was broken off between writing a file and restarting, where "did this run change a file?" is wrong.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.files import FileDigests
from facts.systemd import STAMP_VARIABLE, SocketUnit, Unit, UnitState
from operations.remote import script
from operations.shell import Shell, word


def stamp(*parts: str) -> str:
    """A short digest of all that a process was configured with."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@operation()
def service(unit: str, stamp: str, ready: Shell, ready_timeout_seconds: int) -> Generator[StringCommand, None, None]:
    """Ensure that a service is enabled and that its process runs with the configuration of this stamp.

    Restarts it at most once, and only where the stamp differs, its program was replaced or it does not run; then waits
    until it is ready.

    + unit: the service, with its suffix
    + stamp: what the process is to carry in LOCAL_LLM_STAMP
    + ready: a shell command that succeeds once the service answers
    + ready_timeout_seconds: how long that may take; on a failure the journal's last lines are shown
    """
    now = read(Unit, unit=unit)
    yield from _known_to_systemd(unit, now)
    if now.active and now.stamp == stamp:
        if now.enabled and not now.needs_reload:
            host.noop(f"{unit} runs with {STAMP_VARIABLE}={stamp}")
        return
    yield StringCommand(
        script(
            f"systemctl reset-failed {word(unit)} 2>/dev/null || true\nsystemctl restart {word(unit)} || {_why(unit)}"
        )
    )
    yield StringCommand(script(_wait(unit, ready, ready_timeout_seconds)))


_HOLD = """
import socket, subprocess, sys
unit, *addresses = sys.argv[1:]
held = []
for address in addresses:
    name, _, port = address.rpartition(":")
    is_ipv6 = "[" in name
    holder = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    # Shared with root's own sockets only, and never listening; with SO_REUSEADDR any user could share it.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if is_ipv6:
        # IPV6_FREEBIND, which Python does not name: also where the host has no such address, as the unit does.
        holder.setsockopt(socket.IPPROTO_IPV6, 78, 1)
    try:
        holder.bind((name.strip("[]"), int(port)))
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror}. Who has it: sudo ss -ltnp 'sport = :{port}'")
    held.append(holder)
sys.exit(subprocess.run(["systemctl", "restart", unit]).returncode)
"""


@operation()
def sockets(
    unit: str, service: str, stamp: str, stamp_file: str, addresses: Sequence[str]
) -> Generator[StringCommand, None, None]:
    """Ensure that a socket unit is enabled and holds the sockets of this stamp.

    Where it does not, its service is stopped, and its sockets are made anew; who starts the service comes after this.
    Nobody else can take a port of them meanwhile: root holds them all, which the unit's ReusePort=yes allows. Only
    the first time there is a moment between the end of a service that had the ports itself and this.

    + unit: the socket unit, with its suffix
    + service: the service that gets the sockets, with its suffix
    + stamp: what the unit is to have written to its file when it made the sockets
    + stamp_file: that file's path
    + addresses: the TCP addresses among the sockets, as `127.0.0.1:80` and `[::1]:80`
    """
    now = read(SocketUnit, unit=unit, stamp_file=stamp_file)
    yield from _known_to_systemd(unit, now)
    if now.active and now.stamp == stamp:
        if now.enabled and not now.needs_reload:
            host.noop(f"{unit} holds its sockets")
        return
    hold = " ".join(["python3", "-c", shlex.quote(_HOLD.strip()), word(unit), *map(word, addresses)])
    yield StringCommand(script(f"systemctl stop --quiet {word(service)} 2>/dev/null || true\n{hold} || {_why(unit)}"))


@operation()
def loaded(unit: str) -> Generator[StringCommand, None, None]:
    """Ensure that systemd has read a unit's file as it is on disk, for a unit that others start.

    + unit: the unit, with its suffix
    """
    if not read(Unit, unit=unit).needs_reload:
        host.noop(f"systemd knows {unit}")
        return
    yield StringCommand("systemctl", "daemon-reload")


@operation()
def timer(unit: str) -> Generator[StringCommand, None, None]:
    """Ensure that a timer is enabled and runs as its file says.

    + unit: the timer, with its suffix
    """
    now = read(Unit, unit=unit)
    if now.active and now.enabled and not now.needs_reload:
        host.noop(f"{unit} runs")
        return
    yield from _known_to_systemd(unit, now)
    yield StringCommand("systemctl", "restart", word(unit))


@operation()
def removed(units: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Ensure that units of ours are gone: stopped, disabled, their state directories and files deleted.

    + units: the units, with their suffixes, in the order in which they are to be stopped
    """
    files = {f"/etc/systemd/system/{unit}": unit for unit in units}
    present = read(FileDigests, paths=tuple(files))
    if not present:
        host.noop("none of the units is there")
        return
    for path, unit in files.items():
        if path in present:
            yield StringCommand(script(_end(unit)))
    # The files go last: one that is there says that all this is still to be done.
    yield StringCommand("rm", "-f", *map(word, present))
    yield StringCommand("systemctl", "daemon-reload")


def _end(unit: str) -> str:
    # A unit that failed has to be forgotten, or its state cannot be deleted.
    return f"""
systemctl disable --now --quiet {word(unit)}
systemctl reset-failed {word(unit)} 2>/dev/null || true
[ -z "$(systemctl show {word(unit)} -p StateDirectory --value)" ] || systemctl clean --what=state {word(unit)}
"""


def _known_to_systemd(unit: str, now: UnitState) -> Generator[StringCommand, None, None]:
    """Its file is read as it is on disk, and it starts at boot."""
    if now.needs_reload or not now.active:
        yield StringCommand("systemctl", "daemon-reload")
    if not now.enabled:
        yield StringCommand("systemctl", "enable", "--quiet", word(unit))


def _wait(unit: str, ready: Shell, seconds: int) -> Shell:
    return f"""
end=$(($(date +%s) + {seconds}))
until {ready}; do
    systemctl is-failed -q {word(unit)} && {_why(unit)}
    [ "$(date +%s)" -lt "$end" ] || {{
        echo {word(f"{unit} did not become ready within {seconds} s")} >&2
        {_why(unit)}
    }}
    sleep 0.2
done
"""


def _why(unit: str) -> Shell:
    return f"{{ journalctl -u {word(unit)} -n 30 --no-pager -o cat >&2; exit 1; }}"
