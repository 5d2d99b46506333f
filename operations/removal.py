"""Taking away what a deploy made, whatever state it is in."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.removal import Removable, UnitsLeft, sweep
from operations.remote import script

LOCK_SECONDS = 120


@operation()
def removed(patterns: Sequence[str], kept: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """Ensure that files and directories are gone, with all that is in them.

    What is kept stays, with the directories on the way to it; so does what is mounted there, which is another disk's.

    + patterns: absolute paths, as the shell's patterns
    + kept: patterns of absolute paths below them, as `find` understands them
    """
    if not read(Removable, patterns=tuple(patterns), kept=tuple(kept)):
        host.noop("nothing to remove")
        return
    yield StringCommand(script(sweep(patterns, kept, "-delete")))


@operation()
def schedule_removed(file: str, locks: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Ensure that cron starts nothing of ours any more, and that what it started has ended.

    + file: the file in /etc/cron.d
    + locks: what that holds while it runs
    """
    if not read(Removable, patterns=(file,), kept=()):
        host.noop("cron has nothing of ours")
        return
    waits = "\n".join(f"[ ! -e {lock} ] || flock -w {LOCK_SECONDS} {lock} true" for lock in locks)
    yield StringCommand(script(f"rm -f {file}\n{waits}"))


@operation()
def units_removed(
    units: Sequence[str], runtime: Sequence[str], kept: Sequence[str] = ()
) -> Generator[StringCommand, None, None]:
    """Ensure that units are gone: stopped, forgotten, their files and links deleted, whether failed, masked or broken.

    + units: the units, with their suffixes, in the order in which they are to be stopped
    + runtime: paths in /run that are deleted once they have stopped
    + kept: paths below them that stay
    """
    left = read(UnitsLeft, units=tuple(units))
    if not left:
        host.noop("none of the units is there")
        return
    for unit in left:
        yield StringCommand(script(_stop(unit)))
    yield StringCommand(script(sweep(runtime, kept, "-delete")))
    # The files go last: one that is there says that all this is still to be done.
    names = " -o ".join(f"-name {unit}" for unit in left)
    find = f"find /etc/systemd/system /run/systemd/system -maxdepth 2 \\( {names} \\) -delete"
    yield StringCommand(script(f"{find}\nsystemctl daemon-reload"))


def _stop(unit: str) -> str:
    # A unit whose file is a link to nothing, or gone, cannot be disabled; its links go with the files.
    return f"""
systemctl stop --quiet {unit} 2>/dev/null || true
! systemctl is-active --quiet {unit} || {{ systemctl status --no-pager {unit} >&2; exit 1; }}
systemctl disable --quiet {unit} 2>/dev/null || true
systemctl reset-failed {unit} 2>/dev/null || true
"""
