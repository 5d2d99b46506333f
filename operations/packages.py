"""Debian packages, without prompts, without starting what they bring along, and with patience for dpkg's lock."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.files import FileContents
from facts.packages import InstalledPackages
from operations.remote import script
from operations.shell import moved_into_place


@operation()
def installed(
    packages: Sequence[str],
    lock_timeout_seconds: int,
    kept_off: Mapping[str, str] | None = None,
    record: str | None = None,
) -> Generator[StringCommand, None, None]:
    """Ensure that packages are installed, without their recommendations.

    A fresh VPS holds dpkg's lock for minutes while unattended-upgrades runs: both the lists and the installation
    wait for it. A package that was broken off in the middle is configured first.

    + packages: names of packages
    + lock_timeout_seconds: how long to wait for another package manager
    + kept_off: units that a package would start, by package: masked before that package is first installed, so
      that nothing of it ever listens; left alone where the package was there before
    + record: a file that keeps the names of all packages that were not there before, for `removed`
    """
    present: set[str] = read(InstalledPackages, packages=tuple(packages))
    missing = sorted(set(packages) - present)
    if not missing:
        host.noop(f"all {len(packages)} packages are installed")
        return
    apt, names = _apt(lock_timeout_seconds), " ".join(missing)
    for step in ["dpkg --configure -a --force-confdef --force-confold", f"{apt} update"]:
        yield StringCommand(script(_patiently(step, lock_timeout_seconds)))
    if record is not None:
        yield StringCommand(script(_record(names, record)))
    for package, unit in (kept_off or {}).items():
        if package in missing:
            yield StringCommand("systemctl", "mask", unit)
    yield StringCommand(script(_patiently(f"{apt} install --no-install-recommends {names}", lock_timeout_seconds)))


@operation()
def removed(
    packages: Sequence[str], lock_timeout_seconds: int, kept_off: Mapping[str, str], record: str
) -> Generator[StringCommand, None, None]:
    """Ensure that packages are gone, with their configuration and data, as far as `installed` brought them.

    Only what the record names is removed: the packages, and what came with them and nothing needs any more. What a
    user had before, or wants by now, stays.

    + packages: names of packages, as given to `installed`
    + lock_timeout_seconds: how long to wait for another package manager
    + kept_off: units that `installed` masked, by package
    + record: its record; without one there is nothing to remove
    """
    known = read(FileContents, paths=(record,)).get(record)
    if known is None:
        host.noop("none of them was installed by a deploy")
        return
    ours = set(known.content.decode().split())
    present: set[str] = read(InstalledPackages, packages=tuple(packages))
    yield StringCommand(script(_remove(sorted(present & ours), record, lock_timeout_seconds)))
    for package, unit in kept_off.items():
        if package in ours:
            yield StringCommand("systemctl", "unmask", "--quiet", unit)
    yield StringCommand("rm", "-f", shlex.quote(record))


def _apt(lock_timeout_seconds: int) -> str:
    return (
        "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l "
        f"apt-get -q -y -o DPkg::Lock::Timeout={lock_timeout_seconds} "
        "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
    )


def _record(names: str, record: str) -> str:
    """Write down before the installation what it will bring, so that one that is broken off is known as well."""
    # A package that apt only upgrades has its present version in brackets as the third word.
    return f"""
export LC_ALL=C
mkdir -p {shlex.quote(str(PurePosixPath(record).parent))}
{{
    cat {record} 2>/dev/null || true
    apt-get -s install --no-install-recommends {names} | awk '$1 == "Inst" && $3 !~ /^\\[/ {{print $2}}'
}} | sort -u > {record}.new
{moved_into_place(f"{record}.new", record)}
"""


def _remove(packages: Sequence[str], record: str, lock_timeout_seconds: int) -> str:
    purge = _patiently(f"{_apt(lock_timeout_seconds)} purge $packages", lock_timeout_seconds)
    return f"""
export LC_ALL=C
removals() {{ apt-get -s "$@" | awk '$1 == "Remv" || $1 == "Purg" {{print $2}}'; }}
packages="{" ".join(packages)}"
if [ -n "$packages" ]; then
    others=$(removals purge $packages | grep -vxF -f {record} || true)
    [ -z "$others" ] || {{
        echo "Installed since, and in need of $packages:" $others >&2
        echo "Remove that first, or keep all of them: sudo rm {record}" >&2
        exit 1
    }}
    {purge}
fi
packages=$(removals autoremove | grep -xF -f {record} || true)
if [ -n "$packages" ] && ! removals purge $packages | grep -qvxF -f {record}; then
    {purge}
fi
"""


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
