"""A swap file that is there after a reboot as well, and one that is gone without a trace."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.swap import SwapFile, SwapState
from operations.remote import script
from operations.shell import moved_into_place, word

ACCESS = "600 root root"
NEW_FSTAB = "/etc/.fstab.new"
MIB = 1024**2


@operation()
def swap_file(path: str, size_mib: int) -> Generator[StringCommand, None, None]:
    """Ensure a swap file of this size, in use now and at every boot; with size 0 that there is none.

    A new file is written in full beside the old one, which is used until then: an interrupted run leaves the old one,
    and what it had begun is removed by the next.
    The old one's pages go back to memory first; where they do not fit, the operation fails and nothing has changed.

    + path: the file, on a file system that takes swap files (ext4, xfs)
    + size_mib: its size in MiB
    """
    now = read(SwapFile, path=path)
    steps = removal(path, now) if size_mib == 0 else creation(path, size_mib, now)
    if not steps:
        host.noop(f"{path} is as it should be" if size_mib else f"there is no {path}")
        return
    yield StringCommand(script("\n".join(steps)))


def fstab_line(path: str) -> str:
    """What mounts it at boot. `nofail`: a host boots without it as well."""
    return f"{path} none swap sw,nofail 0 0"


def creation(path: str, size_mib: int, now: SwapState) -> list[str]:
    """Shell commands from `now` to a swap file of this size in use; none where it is."""
    file, new = word(path), word(f"{path}.new")
    folder = word(str(PurePosixPath(path).parent))
    good = now.size_bytes == size_mib * MIB and now.access == ACCESS
    steps = []
    if not good:
        steps = [
            f"[ -d {folder} ] || install -d -m 0700 {folder}",
            f"trap {shlex.quote(f'rm -f {new}')} EXIT",
            f"rm -f {new} && install -m 0600 /dev/null {new}",
            # Written in full: a swap file must not have holes.
            f"dd if=/dev/zero of={new} bs=1M count={size_mib} conv=fsync status=none",
            f"mkswap {new} >/dev/null",
            *([f"swapoff {file}"] if now.in_use else []),
            moved_into_place(f"{path}.new", path),
        ]
    elif now.unfinished:
        steps = [_leftovers(path)]
    if not good or not now.in_use:
        steps.append(f"swapon {file}")
    if now.fstab != (fstab_line(path),):
        steps += _fstab(path, fstab_line(path))
    return steps


def removal(path: str, now: SwapState) -> list[str]:
    """Shell commands from `now` to no swap file; none where there is none."""
    file, folder = word(path), word(str(PurePosixPath(path).parent))
    there = now.size_bytes or now.unfinished
    return [
        *([f"swapoff {file}"] if now.in_use else []),
        *(_fstab(path, None) if now.fstab else []),
        *([_leftovers(path), f"rm -f {file}", f"rmdir {folder} 2>/dev/null || true"] if there else []),
    ]


def _leftovers(path: str) -> str:
    return f"rm -f {word(f'{path}.new')} {NEW_FSTAB}"


def _fstab(path: str, line: str | None) -> list[str]:
    """Put the line in the place of all that /etc/fstab says of this file; every other line stays as it is."""
    new = NEW_FSTAB
    return [
        f"trap 'rm -f {new}' EXIT",
        "[ -f /etc/fstab ] || install -m 0644 /dev/null /etc/fstab",
        f"cp -p /etc/fstab {new}",
        f"file={word(path)} awk '$1 != ENVIRON[\"file\"]' /etc/fstab >{new}",
        *([f"printf '%s\\n' {word(line)} >>{new}"] if line else []),
        moved_into_place(new, "/etc/fstab"),
        "systemctl daemon-reload",
    ]
