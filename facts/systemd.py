"""How a unit of ours runs: all that its operation compares, in one round trip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from facts.base import HostFact, framed
from operations.shell import Shell, word

STAMP_VARIABLE = "LOCAL_LLM_STAMP"


@dataclass(frozen=True)
class UnitState:
    """A unit's state. `stamp` is what the running process was started with, None where it does not run.

    Nor is there one where the process's program is no longer on the disk, or another one in its place.
    """

    active: bool = False
    enabled: bool = False
    needs_reload: bool = False
    stamp: str | None = None


_SHOWN = "-p ActiveState -p UnitFileState -p NeedDaemonReload -p MainPID"


def print_use(units: Sequence[str]) -> Shell:
    """Commands that print what `in_use` reads."""
    return (
        f"for u in {' '.join(map(word, units))}; do "
        'echo "$u" $(systemctl show "$u" -p ActiveState -p UnitFileState --value); done'
    )


def in_use(lines: Sequence[str]) -> tuple[str, ...]:
    """Those of the units that run or start by themselves; one that does not exist has no file state."""
    units = (line.split() for line in lines)
    return tuple(name for name, *words in units if {"active", "activating", "enabled"} & set(words))


class Unit(HostFact[UnitState]):
    """State of a service, and the configuration stamp in its main process's environment."""

    def command(self, unit: str) -> str:
        return framed(
            f"systemctl show {word(unit)} {_SHOWN}; "
            f"pid=$(systemctl show {word(unit)} -p MainPID --value); "
            '[ "${pid:-0}" -gt 0 ] || exit 0; echo "Program=$(readlink "/proc/$pid/exe")"; '
            f'tr "\\0" "\\n" < "/proc/$pid/environ" | grep "^{STAMP_VARIABLE}="; true'
        )

    def parse(self, output: list[str]) -> UnitState:
        return _state(output)


class SocketUnit(HostFact[UnitState]):
    """State of a socket unit, and the configuration stamp that it wrote to a file when its sockets were made."""

    def command(self, unit: str, stamp_file: str) -> str:
        return framed(
            f"systemctl show {word(unit)} {_SHOWN}; "
            f'[ ! -e {word(stamp_file)} ] || echo "{STAMP_VARIABLE}=$(cat {word(stamp_file)})"'
        )

    def parse(self, output: list[str]) -> UnitState:
        return _state(output)


def _state(output: list[str]) -> UnitState:
    values = dict(re.findall(r"^(\w+)=(.*)$", "\n".join(output), re.MULTILINE))
    return UnitState(
        active=values.get("ActiveState") in ("active", "activating", "reloading"),
        enabled=values.get("UnitFileState") == "enabled",
        needs_reload=values.get("NeedDaemonReload") == "yes",
        stamp=None if values.get("Program", "").endswith(" (deleted)") else values.get(STAMP_VARIABLE),
    )
