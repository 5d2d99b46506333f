"""Where a path of a process really lies, from /proc/PID/mountinfo (see proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.host import Host


@dataclass(frozen=True)
class Mount:
    """The part `root` of the file system `device` (major:minor), seen at `point`."""

    device: str
    root: PurePosixPath
    point: PurePosixPath


def parse(table: str) -> list[Mount]:
    """In the order of the table: of two mounts at one point, the later covers the earlier."""
    rows = (line.split() for line in table.splitlines())
    return [Mount(row[2], PurePosixPath(row[3]), PurePosixPath(row[4])) for row in rows if len(row) > 4]


def of_process(host: Host, pid: int) -> list[Mount]:
    """What a process sees; of other users' processes for root only."""
    return parse(host.read(f"/proc/{pid}/mountinfo"))


def origin(mounts: list[Mount], path: str) -> tuple[str, PurePosixPath] | None:
    """The file system that a path lies in, and where: equal for two processes that share what is there."""
    place, found = PurePosixPath(path), None
    for mount in mounts:
        if place.is_relative_to(mount.point) and (found is None or mount.point.is_relative_to(found.point)):
            found = mount
    return (found.device, found.root / place.relative_to(found.point)) if found else None


def below(mounts: list[Mount], directory: str) -> set[str]:
    """The mounts below a directory."""
    return {str(mount.point) for mount in mounts if PurePosixPath(directory) in mount.point.parents}
