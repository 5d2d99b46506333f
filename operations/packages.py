"""Debian packages, without prompts, without starting what they bring along, and with patience for dpkg's lock.

An installation only adds: where apt would remove a package, or touch one that is held, it fails before it begins.
What it adds is written down first, and only that is ever removed.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.files import FileContents
from facts.packages import InstalledPackages
from operations.remote import connector_arguments, script, told
from operations.shell import moved_into_place


@operation()
def installed(
    packages: Sequence[str],
    lock_timeout_seconds: int,
    record: str,
    kept_off: Mapping[str, str] | None = None,
) -> Generator[StringCommand, None, None]:
    """Ensure that packages are installed, without their recommendations, and that no other goes for them.

    A fresh VPS holds dpkg's lock for minutes while unattended-upgrades runs: both the lists and the installation
    wait for it. A package that was broken off in the middle is configured first.

    + packages: names of packages
    + lock_timeout_seconds: how long to wait for another package manager
    + record: a file that keeps the names of all packages that were not there before, for `removed`
    + kept_off: units that a package would start, by package: masked before that package is first installed, so
      that nothing of it ever listens; left alone where the package was there before
    """
    present: set[str] = read(InstalledPackages, packages=tuple(packages))
    missing = sorted(set(packages) - present)
    if not missing:
        host.noop(f"all {len(packages)} packages are installed")
        return
    apt, names = _apt(lock_timeout_seconds), " ".join(missing)
    for step in ["dpkg --configure -a --force-confdef --force-confold", f"{apt} update"]:
        yield StringCommand(script(_patiently(step, lock_timeout_seconds)))
    yield StringCommand(script(_record(names, record)))
    for package, unit in (kept_off or {}).items():
        if package in missing:
            yield StringCommand("systemctl", "mask", unit)
    yield StringCommand(
        script(_patiently(f"{apt} install --no-remove --no-install-recommends {names}", lock_timeout_seconds))
    )


@operation()
def removed(
    packages: Sequence[str],
    lock_timeout_seconds: int,
    kept_off: Mapping[str, str],
    record: str,
    others_stay: bool = False,
) -> Generator[PyinfraCommand, None, None]:
    """Ensure that packages are gone, with their configuration and data, as far as `installed` brought them.

    Only what the record names is removed: the packages, and what came with them, unless another package depends on it
    or recommends it. What a user had before, or wants by now, stays, and is named.

    + packages: names of packages, as given to `installed`
    + lock_timeout_seconds: how long to wait for another package manager
    + kept_off: units that `installed` masked, by package
    + record: its record; without one there is nothing to remove
    + others_stay: these are not all that the record is about: it is kept for the others
    """
    found = read(FileContents, paths=(record,)).get(record)
    if found is None or (others_stay and not set(found.content.decode().split()) & set(packages)):
        host.noop("none of them was installed by a deploy")
        return
    steps = _remove(packages, kept_off, record, lock_timeout_seconds, others_stay)
    yield told(script(steps), connector_arguments(host))


def _apt(lock_timeout_seconds: int) -> str:
    return (
        "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l "
        f"apt-get -q -y -o DPkg::Lock::Timeout={lock_timeout_seconds} "
        "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
    )


def _record(names: str, record: str) -> str:
    """Refuse what would remove something; else write down what comes, so that a broken installation is known too."""
    # A package that apt only upgrades has its present version in brackets as the third word.
    return f"""
export LC_ALL=C
plan=$(apt-get -s -y install --no-install-recommends {names} 2>&1) || {{ printf '%s\\n' "$plan" >&2; exit 1; }}
lost=$(printf '%s\\n' "$plan" | awk '$1 == "Remv" {{print $2}}')
[ -z "$lost" ] || {{
    echo "Not installed: {names}. apt would remove for that:" $lost >&2
    echo "Nothing was removed. Remove them yourself, or set firewall = False where ufw is what they conflict with." >&2
    exit 1
}}
install -d -m 0750 {shlex.quote(str(PurePosixPath(record).parent))}
{{
    cat {record} 2>/dev/null || true
    printf '%s\\n' "$plan" | awk '$1 == "Inst" && $3 !~ /^\\[/ {{print $2}}'
}} | sort -u > {record}.new
{moved_into_place(f"{record}.new", record)}
"""


def _remove(
    packages: Sequence[str],
    kept_off: Mapping[str, str],
    record: str,
    lock_timeout_seconds: int,
    others_stay: bool = False,
) -> str:
    """What apt's own autoremoval would take if nobody had asked for the packages, as far as the record names it.

    That they were not asked for is pretended in a copy of apt's marks: a run that is broken off leaves the real ones.
    """
    purge = _patiently(f"{_apt(lock_timeout_seconds)} purge $gone", lock_timeout_seconds)
    units = "\n".join(f"give_back {package} {unit}" for package, unit in kept_off.items())
    return f"""
export LC_ALL=C
marks=$(mktemp)
trap 'rm -f "$marks"' EXIT
in_state() {{
    state=$1; shift
    dpkg-query -W -f='${{db:Status-Status}} ${{Package}}\\n' "$@" 2>/dev/null | awk -v s="$state" '$1 == s {{print $2}}'
}}
removals() {{ apt-get -s "$@" | awk '$1 == "Remv" || $1 == "Purg" {{print $2}}'; }}
give_back() {{
    grep -qx "$1" {record} || return 0
    [ -z "$(in_state installed "$1")" ] || {{ echo "$2 stays masked: sudo systemctl unmask $2"; return 0; }}
    systemctl unmask --quiet "$2"
}}
ours() {{ grep -xF -f {record} || true; }}
named=$(in_state installed {" ".join(packages)} | ours)
cp /var/lib/apt/extended_states "$marks" 2>/dev/null || true
[ -z "$named" ] || apt-mark -o Dir::State::extended_states="$marks" auto $named >/dev/null
gone=$(removals -o Dir::State::extended_states="$marks" -o APT::AutoRemove::SuggestsImportant=false autoremove | ours)
gone="$gone $(in_state config-files $(cat {record}))"
if [ -n "${{gone# }}" ]; then
    others=$(removals purge $gone | grep -vxF -f {record} || true)
    [ -z "$others" ] || {{
        echo "Not removed:" $gone >&2
        echo "These would go as well, and are not ours:" $others >&2
        echo "Remove them first (sudo apt-get autoremove), or keep all: sudo rm {record}" >&2
        exit 1
    }}
    {purge}
fi
kept=$(in_state installed {" ".join(packages)} | ours)
if [ -n "$kept" ]; then
    # They go once nobody needs them.
    apt-mark auto $kept >/dev/null
    echo "Kept, because other packages need them:" $kept
fi
{units}
{_still_there(record) if others_stay else f"rm -f {record}"}
"""


def _still_there(record: str) -> str:
    """What is gone is a user's own, should it come back."""
    return f"in_state installed $(cat {record}) >{record}.new\n{moved_into_place(f'{record}.new', record)}"


def _patiently(command: str, seconds: int) -> str:
    # apt's own DPkg::Lock::Timeout covers neither the lists' lock of `apt-get update` nor dpkg itself.
    return f"""
export LC_ALL=C
end=$(($(date +%s) + {seconds}))
until output=$({command} 2>&1); do
    case $output in
        *"ould not get lock"* | *"lock was locked by"* | *"nable to lock"* | *"nable to acquire"*) ;;
        *) printf '%s\\n' "$output" >&2; exit 1 ;;
    esac
    [ "$(date +%s)" -lt "$end" ] || {{
        printf '%s\\n' "$output" "Another package manager still runs after {seconds} s." "Deploy again later." >&2
        exit 1
    }}
    sleep 2
done
"""
