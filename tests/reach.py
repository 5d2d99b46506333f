"""What a unit reaches of the machine it runs on: sockets that it can connect to, directories that it shares, secrets.

A copy of the unit, with all of its sandbox, runs a probe in its program's place. Works with any machine that runs shell
commands as root.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from operations.jobs import Job


class Shell(Protocol):
    """A machine that runs a shell command as root, and returns what it printed."""

    def sh(self, command: str, *, check: bool = True) -> str: ...


PROBE = "/opt/local-llm/test-probe.py"
FOUND = "/root/test-probe.json"
COPY = "local-llm-test-probe.service"
PLANT = "local-llm-test-plant"
TOKEN = "local-llm-test-token"
MEETING_PLACES = ("/run", "/run/lock", "/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp")
"""Where programs of a machine meet."""
SECRETS = tuple(
    f"{folder}/{TOKEN}" for folder in ("/boot", "/etc", "/etc/ssl/private", "/home", "/opt", "/root", "/srv", "/var")
)
"""Files of root's, planted, which nobody else may read."""

UNIT_SETTINGS = """
[Service]
Type=oneshot
Restart=no
ExecStartPre=
ExecStart=
ExecStart={probe}
ExecStartPost=
ExecReload=
ExecStop=
ExecStopPost=
RuntimeDirectoryPreserve=yes
StandardOutput=truncate:{found}
"""

PROBE_PROGRAM = r"""
import json, os, socket, stat, sys
places, token, given = sys.argv[1].split(), sys.argv[2], sys.argv[3:]

def sockets():
    yield from given  # what the machine outside knows of
    for place in ("/run", "/tmp", "/dev", "/var"):
        for folder, _, names in os.walk(place):
            yield from (os.path.join(folder, name) for name in names)
    with open("/proc/self/net/unix") as table:
        yield from (line.split(None, 7)[7].strip() for line in list(table)[1:] if len(line.split(None, 7)) == 8)

def connects(path):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
            with socket.socket(socket.AF_UNIX, kind) as tried:
                tried.settimeout(2)
                tried.connect("\0" + path[1:] if path.startswith("@") else path)
                return True
        except (OSError, UnicodeError):
            continue
    return False

def opens(path):
    try:
        open(path, "rb").close()
        return True
    except OSError:
        return False

def secrets(folder="/", private=False):
    # Files that not everybody may read, by their own mode or that of a directory on the way to them.
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode) and entry.path not in ("/proc", "/sys", "/dev"):
            yield from secrets(entry.path, private or not mode & stat.S_IXOTH)
        elif stat.S_ISREG(mode) and (private or not mode & stat.S_IROTH) and opens(entry.path):
            yield entry.path

def make(place):
    try:
        open(os.path.join(place, token), "x").close()
    except OSError:
        pass

readable = sorted(secrets())
for place in places:
    make(place)
reached = sorted({os.path.realpath(path) if path[0] == "/" else path for path in set(sockets()) if connects(path)})
print(json.dumps({"sockets": reached, "secrets": readable}))
"""

PLANTED_PROGRAM = r"""
import os, socket, sys, time
kept = []
os.umask(0)
for number, path in enumerate(sys.argv[1:]):
    for kind, name in ((socket.SOCK_STREAM, path), (socket.SOCK_DGRAM, path + ".dgram")):
        made = socket.socket(socket.AF_UNIX, kind)
        if path[0] == "/":
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            if os.path.exists(name):
                os.unlink(name)
        made.bind("\0" + name[1:] if name[0] == "@" else name)
        if kind == socket.SOCK_STREAM:
            made.listen(1000)
        kept.append(made)
print("planted", flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True)
class Reach:
    """Sockets that can be connected to, abstract ones with @; directories where a file is seen by the machine; files
    that can be read and are not for everybody."""

    sockets: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()

    def secrets_but(self, *own: str) -> list[str]:
        """Those that are not below one of the directories."""
        return sorted(path for path in self.secrets if not path.startswith(tuple(f"{folder}/" for folder in own)))


@contextmanager
def planted(machine: Shell, *names: str) -> Iterator[frozenset[str]]:
    """Sockets that anybody may connect to, of streams and of datagrams, by path or as @name; and secrets of root's."""
    machine.sh(f"install -d -m 0700 /etc/ssl/private; umask 077; touch {' '.join(SECRETS)}")
    machine.sh(
        f"systemd-run --quiet --collect --unit={PLANT} --property=StandardOutput=truncate:/root/planted "
        f"python3 -c {shlex.quote(PLANTED_PROGRAM)} {' '.join(map(shlex.quote, names))}\n"
        "for i in $(seq 100); do grep -qs planted /root/planted && exit; sleep 0.1; done; exit 1"
    )
    made = frozenset(name + suffix for name in names for suffix in ("", ".dgram"))
    try:
        yield made
    finally:
        paths = " ".join(shlex.quote(name) for name in made if name.startswith("/"))
        machine.sh(f"systemctl stop {PLANT}; rm -f {paths} {' '.join(SECRETS)} /root/planted")


def of_host(machine: Shell) -> Reach:
    """What any program outside of a sandbox reaches."""
    arguments = _prepared(machine)
    return _found(machine, lambda: machine.sh(f"/usr/bin/python3 {PROBE} {arguments}"))


def of_unit(machine: Shell, unit: str) -> Reach:
    """What the unit's program reaches."""
    arguments = _prepared(machine)
    return _found(machine, lambda: in_place_of(machine, unit, f"/usr/bin/python3 {PROBE} {arguments}"))


def in_place_of(machine: Shell, unit: str, command: str) -> str:
    """What a command prints that is run in the unit's sandbox, by its user, in its program's place."""
    copy, drop_in = f"/run/systemd/system/{COPY}", f"/run/systemd/system/{COPY}.d"
    settings = UNIT_SETTINGS.format(probe=command, found=FOUND)
    # A dynamic user owns the state, so the copy has the same one; the directory that it cannot share is there already.
    dynamic = f"User={unit.removesuffix('.service')}\nRuntimeDirectory=\n"
    return machine.sh(f"""
# A second process with the gateway's listening sockets would change their flags under it.
sed /^Sockets=/d /etc/systemd/system/{unit} > {copy}
mkdir -p {drop_in}
cat > {drop_in}/probe.conf <<'END'
{settings}
END
! grep -q ^DynamicUser=yes {copy} || printf {shlex.quote(dynamic)} >> {drop_in}/probe.conf
systemctl daemon-reload
systemctl start {COPY} || journalctl -n 20 -u {COPY} >&2
systemctl reset-failed {COPY} 2>/dev/null
rm -r {copy} {drop_in}
systemctl daemon-reload
cat {FOUND}
rm {FOUND}
""")


def of_job(machine: Shell, job: Job) -> Reach:
    """What the transient unit of a job reaches."""
    script = f"/usr/bin/python3 {PROBE} {_prepared(machine)}"
    probe = replace(job, unit=COPY.removesuffix(".service"), script=script)
    commands = f"""
mkdir -p {probe.log.rsplit("/", 1)[0]}
rm -f {probe.log}
{probe.prepare}
{probe.start_command()}
for i in $(seq 200); do
    [ "$(systemctl show {COPY} -p SubState --value)" = running ] || break
    sleep 0.1
done
systemctl stop {COPY}
systemctl reset-failed {COPY} 2>/dev/null
{probe.discard}
cat {probe.log}
rm {probe.log}
"""
    return _found(machine, lambda: machine.sh(commands))


def _prepared(machine: Shell) -> str:
    """Put the probe into its place; returns its arguments: all sockets of the machine are among them."""
    machine.sh(f"cat > {PROBE} <<'END'\n{PROBE_PROGRAM}\nEND")
    known = machine.sh(
        "{ find /run /tmp /dev /var -type s; sed 1d /proc/net/unix | cut -s -d' ' -f8- | tr -d ' '; } | sort -u"
    )
    names = [name for name in known.splitlines() if name.isascii() and name.isprintable() and name[0] in "/@"]
    # systemd expands % and $ in a command line.
    quoted = (shlex.quote(name).replace("%", "%%").replace("$", "$$") for name in names)
    return " ".join([f"'{' '.join(MEETING_PLACES)}'", TOKEN, *quoted])


def _found(machine: Shell, probed: Callable[[], str]) -> Reach:
    files = " ".join(f"{place}/{TOKEN}" for place in MEETING_PLACES)
    machine.sh(f"rm -f {files}")
    found = json.loads(probed())
    shared = machine.sh(f"for file in {files}; do ! test -e $file || dirname $file; done; rm -f {files} {PROBE}")
    return Reach(frozenset(found["sockets"]), frozenset(shared.split()), frozenset(found["secrets"]))
