"""Memory: what the service uses, what it may use, and whether the kernel had to kill it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from checks import cgroup, journal
from checks.contract.paths import SWAP_FILE
from checks.host import MIB
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.systemd import Unit

# At 100 % the kernel kills.
NEAR_LIMIT = 0.9

STALLED_PERCENT = 25.0
"""So much of a minute, and the service as good as stands still: while it did, the kernel said 57 % (full, of 10 s)."""


def resident(config: Config, host: Host) -> Iterator[Result]:
    """Resident memory: over the goal is a WARN, near the limit a FAIL."""
    name, limit = "resident memory", f"at most {config.memory_goal_mib} MiB"
    unit = host.unit(config.service_unit)
    if not unit.pid:
        yield _not_running(config, name, limit)
        return
    used_mib = host.rss_bytes(unit.pid) / MIB
    near_limit = used_mib >= config.memory_max_mib * NEAR_LIMIT
    yield judge(
        name,
        used_mib <= config.memory_goal_mib,
        f"{used_mib:.0f} MiB",
        limit,
        f"At {config.memory_max_mib} MiB the kernel kills the service. A smaller context takes less memory; "
        f"until then: sudo systemctl restart {config.service_unit}",
        otherwise=Status.FAIL if near_limit else Status.WARN,
    )


def accounted(config: Config, host: Host) -> Iterator[Result]:
    """What the kernel accounts to the service, file cache included: now, at its highest, and the limit."""
    unit = host.unit(config.service_unit)
    goal = f"at most {config.memory_goal_mib} MiB without file cache"
    if not unit.pid:
        yield _not_running(config, "memory limit", f"{config.memory_max_mib} MiB")
        return
    memory = cgroup.read(host, unit)
    if memory.current_bytes is None:
        yield Result(
            "accounted memory",
            Status.WARN,
            "unknown",
            goal,
            "Neither the kernel nor systemd accounts this unit's memory. See: "
            f"systemctl show -p MemoryAccounting,ControlGroup {config.service_unit}",
        )
    else:
        cache = memory.file_cache_bytes
        reclaimable = f", {cache / MIB:.0f} of it file cache" if cache is not None else ""
        needed = memory.current_bytes - (cache or 0)
        yield judge(
            "accounted memory",
            needed <= config.memory_goal_mib * MIB,
            f"{memory.source}: {memory.current_bytes / MIB:.0f} MiB{reclaimable}",
            goal,
            f"The service needs more than planned. See: systemctl status {config.service_unit}",
            otherwise=Status.WARN,
        )
    if memory.peak_bytes is not None:
        yield judge(
            "highest memory",
            memory.peak_bytes <= config.memory_max_mib * MIB,
            f"{memory.peak_bytes / MIB:.0f} MiB since the start",
            f"at most {config.memory_max_mib} MiB",
            "The service has used more than its limit allows: the limit did not hold. "
            f"See: systemctl show -p MemoryMax {config.service_unit}",
        )
    yield from _limit(config, unit, memory)


def _limit(config: Config, unit: Unit, memory: cgroup.Memory) -> Iterator[Result]:
    """The configured limit is the one that systemd knows and the kernel enforces."""
    expected = config.memory_max_mib * MIB
    known = {"systemd": unit.memory_max_bytes, memory.source: memory.limit_bytes}
    yield judge(
        "memory limit",
        all(value == expected for value in known.values()),
        ", ".join(f"{source} {_mib_or_none(value)}" for source, value in known.items()),
        f"{config.memory_max_mib} MiB",
        "Without its limit the service can take all of the machine's memory. Reload and restart: "
        f"sudo systemctl daemon-reload && sudo systemctl restart {config.service_unit}; if it stays, deploy again",
    )


def oom(config: Config, host: Host) -> Iterator[Result]:
    """Kills for lack of memory within the days that logs are kept.

    A FAIL while the process that was started after a kill still runs, a WARN once somebody has acted and restarted
    or deployed since. Under cgroup v1 systemd is not told of them, so that only a SIGKILL is known: a WARN, because an
    administrator may have sent it.
    """
    name, days = "kills for lack of memory", config.log_retention_days
    host.require_root("the journal")
    unit = host.unit(config.service_unit)
    memory = cgroup.read(host, unit)
    kills = max(len(journal.times(host, journal.oom_kills(unit.name), days)), memory.oom_kills or 0)
    unexplained = 0
    if memory.source != "cgroup v2":
        unexplained = len(journal.times(host, journal.sigkills(unit.name), days))
    value = f"{kills} in {days} days"
    value += f", {unexplained} by SIGKILL from an unknown sender" if unexplained else ""
    yield judge(
        name,
        kills == 0 and not unexplained,
        value,
        "0",
        "The kernel stops the service when it reaches its memory limit; requests in flight are lost. "
        f"When: journalctl -u {unit.name} --since -{days}d | grep -iE 'oom|kill'; a smaller context helps",
        otherwise=Status.FAIL if kills and (unit.restarts or memory.oom_kills) else Status.WARN,
    )


def swap(config: Config, host: Host) -> Iterator[Result]:
    """The swap file that was asked for is in use."""
    if not config.swap_file_mib:
        return
    lines = [line.split() for line in host.read("/proc/swaps").splitlines()]
    # The kernel counts in KiB, without the file's first page.
    sizes_mib = [round(int(fields[2]) / 1024) for fields in lines if fields[0] == SWAP_FILE]
    yield judge(
        "swap file",
        sizes_mib == [config.swap_file_mib],
        f"{sizes_mib[0]} MiB" if sizes_mib else "not in use",
        f"{config.swap_file_mib} MiB",
        f"Other programs of the host have less room than planned. Use it: sudo swapon {SWAP_FILE}; or deploy again",
        otherwise=Status.WARN,
    )


def _not_running(config: Config, name: str, limit: str) -> Result:
    return Result(
        name,
        Status.FAIL,
        "not running",
        limit,
        f"{config.service_unit} has no process to measure. Start it: sudo systemctl start {config.service_unit}",
    )


def _mib_or_none(value: int | None) -> str:
    return "no limit" if value is None else f"{value / MIB:.0f} MiB"
