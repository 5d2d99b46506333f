"""Reading `systemctl show` and `systemd-analyze security`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Names are those of org.freedesktop.systemd1(5). MemoryPeak exists from systemd 254 on.
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "NRestarts",
    "ActiveEnterTimestampMonotonic",
    "ControlGroup",
    "MemoryCurrent",
    "MemoryPeak",
    "MemoryMax",
    "Result",
)
_UNLIMITED = 2**64 - 1


@dataclass(frozen=True)
class Unit:
    """A unit's state; a number that systemd does not know is None."""

    name: str
    load_state: str = "not-found"
    active_state: str = "inactive"
    sub_state: str = "dead"
    file_state: str = ""
    needs_reload: bool = False
    pid: int = 0
    restarts: int = 0
    active_since_seconds: float | None = None
    control_group: str = ""
    memory_current_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_max_bytes: int | None = None
    result: str = ""

    @property
    def active(self) -> bool:
        return self.active_state == "active"

    def uptime_seconds(self, monotonic_now: float) -> float | None:
        if not self.active or self.active_since_seconds is None:
            return None
        return max(0.0, monotonic_now - self.active_since_seconds)


def show_command(units: Sequence[str]) -> list[str]:
    return ["systemctl", "show", "--no-pager", "--property=" + ",".join(_PROPERTIES), "--", *units]


def parse_show(text: str) -> dict[str, Unit]:
    """Units by name, from the output of `show_command`: blocks of KEY=value, a blank line between units."""
    units: dict[str, Unit] = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" not in values:
            continue
        since = _number(values.get("ActiveEnterTimestampMonotonic"))
        units[values["Id"]] = Unit(
            name=values["Id"],
            load_state=values.get("LoadState", ""),
            active_state=values.get("ActiveState", ""),
            sub_state=values.get("SubState", ""),
            file_state=values.get("UnitFileState", ""),
            needs_reload=values.get("NeedDaemonReload") == "yes",
            pid=_number(values.get("MainPID")) or 0,
            restarts=_number(values.get("NRestarts")) or 0,
            active_since_seconds=since / 1e6 if since else None,
            control_group=values.get("ControlGroup", ""),
            memory_current_bytes=_number(values.get("MemoryCurrent")),
            memory_peak_bytes=_number(values.get("MemoryPeak")),
            memory_max_bytes=_number(values.get("MemoryMax")),
            result=values.get("Result", ""),
        )
    return units


def _number(text: str | None) -> int | None:
    """systemd writes "[not set]", "infinity" or 2⁶⁴-1 for a number that it does not have."""
    if text is None or not text.isdigit():
        return None
    value = int(text)
    return None if value == _UNLIMITED else value


def parse_exposure(text: str) -> float:
    """The overall exposure level, 0.0 (closed) to 10.0, from `systemd-analyze security UNIT`."""
    found = re.search(r"Overall exposure level for .*: (\d+(?:\.\d+)?)", text)
    if not found:
        raise ValueError("systemd-analyze printed no overall exposure level")
    return float(found.group(1))
