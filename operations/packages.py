"""Debian packages, without prompts, without starting what they bring along, and with patience for dpkg's lock."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.packages import InstalledPackages
from operations.remote import script


@operation()
def installed(
    packages: Sequence[str], lock_timeout_seconds: int, kept_off: Mapping[str, str] | None = None
) -> Generator[StringCommand, None, None]:
    """Ensure that packages are installed, without their recommendations.

    A fresh VPS holds dpkg's lock for minutes while unattended-upgrades runs: both the lists and the installation
    wait for it. A package that was broken off in the middle is configured first.

    + packages: names of packages
    + lock_timeout_seconds: how long to wait for another package manager
    + kept_off: units that a package would start, by package: masked before that package is first installed, so
      that nothing of it ever listens; left alone where the package was there before
    """
    present: set[str] = host.get_fact(InstalledPackages, packages=tuple(packages))
    missing = sorted(set(packages) - present)
    if not missing:
        host.noop(f"all {len(packages)} packages are installed")
        return
    for package, unit in (kept_off or {}).items():
        if package in missing:
            yield StringCommand("systemctl", "mask", unit)
    apt = (
        "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l "
        f"apt-get -q -y -o DPkg::Lock::Timeout={lock_timeout_seconds} "
        "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
    )
    steps = ["dpkg --configure -a --force-confdef --force-confold", f"{apt} update"]
    for step in [*steps, f"{apt} install --no-install-recommends {' '.join(missing)}"]:
        yield StringCommand(script(_patiently(step, lock_timeout_seconds)))


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
