"""What is still there of files, directories and units: one round trip each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from facts.base import HostFact, framed
from facts.machine import parse_sections


def sweep(patterns: Sequence[str], kept: Sequence[str], action: str) -> str:
    """A shell script that does something with all that the patterns match and all in it, the innermost first.

    Left out is what is kept, and what is mounted, each with what is in it and the directories on the way to it. Links
    are not followed.

    + patterns: absolute paths, as the shell's patterns
    + kept: patterns of absolute paths, as `find` understands them
    + action: of `find`, such as `-delete`
    """
    return f"""
set +f
for tree in {" ".join(patterns)}; do
    [ -e "$tree" ] || [ -L "$tree" ] || continue
    set -f
    stay=
    for kept in {" ".join(kept)} $(awk '{{print $2}}' /proc/self/mounts); do
        case $kept in
            "$tree") stay="$stay ! -path $kept"; continue ;;
            "$tree"/*) stay="$stay ! -path $kept ! -path $kept/*" ;;
            *) continue ;;
        esac
        while kept=${{kept%/*}} && [ "$kept" != "${{tree%/*}}" ]; do stay="$stay ! -path $kept"; done
    done
    find "$tree" -xdev -depth $stay {action}
    set +f
done
"""


class Removable(HostFact[list[str]]):
    """What is to be removed first of each tree that holds anything that is neither kept nor mounted."""

    def command(self, patterns: Sequence[str], kept: Sequence[str]) -> str:
        return framed(f"/bin/sh -uc {shlex.quote(sweep(patterns, kept, '-print -quit'))} 2>/dev/null; true")

    def parse(self, output: list[str]) -> list[str]:
        return output


class Sizes(HostFact[dict[str, int]]):
    """Size in KiB of all that each pattern of paths matches; patterns that match nothing are left out."""

    def command(self, patterns: Sequence[str]) -> str:
        measured = "; ".join(
            f"echo @{pattern} | tr -d '*'; du -sck {pattern} 2>/dev/null | tail -n 1" for pattern in patterns
        )
        return framed(f"{measured}; true")

    def parse(self, output: list[str]) -> dict[str, int]:
        sections = parse_sections(output)
        sizes = {path: int(lines[0].split()[0]) for path, lines in sections.items() if lines}
        return {path: size for path, size in sizes.items() if size}


class UnitsLeft(HostFact[list[str]]):
    """Those of the given units that run, have failed, or have a file or a link by their name of their own."""

    def command(self, units: Sequence[str]) -> str:
        return framed(
            f"for u in {' '.join(units)}; do "
            '[ -z "$(find /etc/systemd/system /run/systemd/system -maxdepth 2 -name "$u" -print -quit)" ] '
            '&& [ "$(systemctl show "$u" -p ActiveState --value 2>/dev/null)" = inactive ] || echo "$u"; done; true'
        )

    def parse(self, output: list[str]) -> list[str]:
        return output
