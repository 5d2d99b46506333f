"""A service's memory as the kernel accounts it, under cgroup v2 and v1.

In a container the path in /proc/PID/cgroup and the tree under /sys/fs/cgroup may have different roots. So
every plausible folder is tried, and one counts only if it is the unit's own and lists the process.
Sources: cgroups(7), the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.host import Host
    from checks.systemd import Unit

# cgroup v1 says "no limit" with the largest multiple of a page in 63 bits.
_UNLIMITED_FROM = 2**62


@dataclass(frozen=True)
class Mount:
    """A cgroup file system: `root` is the cgroup that `point` shows."""

    root: str
    point: str
    version: int


@dataclass(frozen=True)
class Memory:
    """A unit's memory. None: the kernel or systemd does not say, as cgroup v1 does of the last three.

    `high_events` and `max_events`: how often it was held up at memory.high, or had to give memory back at memory.max.
    `stalled_percent`: of the last minute, how much all of its processes waited for memory at once.
    """

    source: str
    current_bytes: int | None
    peak_bytes: int | None
    limit_bytes: int | None
    file_cache_bytes: int | None
    oom_kills: int | None
    high_events: int | None = None
    max_events: int | None = None
    stalled_percent: float | None = None


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """Controller to path, from /proc/PID/cgroup; the v2 hierarchy has the key ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator:
            continue
        if number == "0" and not controllers:
            paths[""] = path
        for controller in filter(None, controllers.split(",")):
            paths[controller] = path
    return paths


def parse_memory_mounts(text: str) -> list[Mount]:
    """The mounts that can hold memory accounting, from /proc/self/mountinfo."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if not separator or len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2":
            mounts.append(Mount(fields[3], fields[4], 2))
        elif tail[0] == "cgroup" and "memory" in tail[2].split(","):
            mounts.append(Mount(fields[3], fields[4], 1))
    return mounts


def parse_flat_keys(text: str) -> dict[str, int]:
    """Lines of "key number", as in memory.events, memory.oom_control and memory.stat."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def folders(mounts: list[Mount], paths: dict[str, str], unit: Unit) -> Iterator[tuple[str, int]]:
    """(folder, cgroup version) that may be the unit's, the likeliest first."""
    for mount in mounts:
        key = "memory" if mount.version == 1 else ""
        for path in (paths.get(key, ""), unit.control_group):
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            root = [part for part in mount.root.split("/") if part not in ("", ".", "..")]
            if not parts or parts[-1] != unit.name:
                continue
            if root and parts[: len(root)] == root:
                yield "/".join([mount.point, *parts[len(root) :]]), mount.version
            for start in range(len(parts)):
                yield "/".join([mount.point, *parts[start:]]), mount.version


def read(host: Host, unit: Unit) -> Memory:
    """The memory of a running unit: the kernel's files, else what systemd says."""
    for folder, version in _own_folders(host, unit):
        memory = _read_v2(host, folder) if version == 2 else _read_v1(host, folder)
        if memory.current_bytes is not None:
            return memory
    return Memory(
        source="systemd",
        current_bytes=unit.memory_current_bytes,
        peak_bytes=unit.memory_peak_bytes,
        limit_bytes=unit.memory_max_bytes,
        file_cache_bytes=None,
        oom_kills=None,
    )


def _own_folders(host: Host, unit: Unit) -> Iterator[tuple[str, int]]:
    if not unit.pid:
        return
    try:
        paths = parse_proc_cgroup(host.read(f"/proc/{unit.pid}/cgroup"))
        mounts = parse_memory_mounts(host.read("/proc/self/mountinfo"))
    except OSError:
        return
    for folder, version in dict.fromkeys(folders(mounts, paths, unit)):
        if str(unit.pid) in (_text(host, f"{folder}/cgroup.procs") or "").split():
            yield folder, version


def parse_stalled_percent(text: str) -> float | None:
    """Of memory.pressure: "full avg10=57.00 avg60=41.10 avg300=9.02 total=…", the one of a minute."""
    found = re.search(r"^full .*\bavg60=([0-9]+(?:\.[0-9]+)?)", text, re.MULTILINE)
    return float(found[1]) if found else None


def _read_v2(host: Host, folder: str) -> Memory:
    events = parse_flat_keys(_text(host, f"{folder}/memory.events") or "")
    return Memory(
        source="cgroup v2",
        current_bytes=_number(host, f"{folder}/memory.current"),
        peak_bytes=_number(host, f"{folder}/memory.peak"),
        limit_bytes=_number(host, f"{folder}/memory.max"),
        file_cache_bytes=_key(host, f"{folder}/memory.stat", "file"),
        oom_kills=events.get("oom_kill"),
        high_events=events.get("high"),
        max_events=events.get("max"),
        stalled_percent=parse_stalled_percent(_text(host, f"{folder}/memory.pressure") or ""),
    )


def _read_v1(host: Host, folder: str) -> Memory:
    return Memory(
        source="cgroup v1",
        current_bytes=_number(host, f"{folder}/memory.usage_in_bytes"),
        peak_bytes=_number(host, f"{folder}/memory.max_usage_in_bytes"),
        limit_bytes=_number(host, f"{folder}/memory.limit_in_bytes"),
        file_cache_bytes=_key(host, f"{folder}/memory.stat", "total_cache"),
        oom_kills=_key(host, f"{folder}/memory.oom_control", "oom_kill"),
    )


def _text(host: Host, path: str) -> str | None:
    try:
        return host.read(path)
    except OSError:
        return None


def _number(host: Host, path: str) -> int | None:
    text = (_text(host, path) or "").strip()
    if not text.isdigit() or int(text) >= _UNLIMITED_FROM:
        return None
    return int(text)


def _key(host: Host, path: str, key: str) -> int | None:
    return parse_flat_keys(_text(host, path) or "").get(key)
