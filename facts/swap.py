"""A swap file: what is on the disk, in use and in /etc/fstab, in one round trip."""

from __future__ import annotations

from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections
from operations.shell import word


@dataclass(frozen=True)
class SwapState:
    """A swap file as it is. `size_bytes` is 0 where there is none; `file_system` is that of the nearest directory.

    `unfinished` tells that a deploy was cut while it made one, or changed /etc/fstab.
    """

    size_bytes: int = 0
    access: str = ""
    in_use: bool = False
    fstab: tuple[str, ...] = ()
    file_system: str = "unknown"
    unfinished: bool = False


class SwapFile(HostFact[SwapState]):
    """Size, `MODE OWNER GROUP` and use of a swap file, its lines in /etc/fstab, and the file system it is on.

    /proc/swaps is the kernel's, so that a container sees the paths of others: only a file that is here is in use here.
    """

    def command(self, path: str) -> str:
        quoted = word(path)
        return framed(
            f"file={quoted}; "
            'echo @file; [ ! -f "$file" ] || stat -c "%s %a %U %G" "$file"; '
            # By the environment: awk would read backslashes in a variable of its own.
            'export file; echo @swaps; [ ! -f "$file" ] || awk \'$1 == ENVIRON["file"] {print $1}\' /proc/swaps; '
            "echo @fstab; [ ! -f /etc/fstab ] || awk '$1 == ENVIRON[\"file\"]' /etc/fstab; "
            'echo @unfinished; for new in "$file.new" /etc/.fstab.new; do [ ! -e "$new" ] || echo yes; done; '
            'echo @system; while [ ! -d "$file" ]; do file=$(dirname "$file"); done; '
            'df --output=fstype "$file" | tail -n 1'
        )

    def parse(self, output: list[str]) -> SwapState:
        sections = parse_sections(output)
        size, _, access = next(iter(sections.get("file", [])), "0").partition(" ")
        return SwapState(
            size_bytes=int(size),
            access=access,
            in_use=bool(sections.get("swaps")),
            fstab=tuple(sections.get("fstab", [])),
            file_system=next(iter(sections.get("system", [])), "unknown").strip(),
            unfinished=bool(sections.get("unfinished")),
        )
