"""Memory against its goal and its limit, and kills for lack of it."""

from pathlib import Path

import pytest

from checks import memory
from checks.contract.config import Config
from checks.host import Command
from checks.result import Status
from tests.unit.checks_support import (
    GATEWAY,
    MIB,
    NOW,
    PID,
    SERVICE,
    FakeHost,
    make_config,
    results,
    show,
    statuses,
)

FOLDER = f"/sys/fs/cgroup/system.slice/{SERVICE}"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY))
    host.rss[PID] = 1204 * MIB
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    host.put(f"{FOLDER}/cgroup.procs", f"{PID}\n")
    put(host, current=2900 * MIB, peak=3000 * MIB, max=3072 * MIB)
    host.put(f"{FOLDER}/memory.stat", f"file {1700 * MIB}\n")
    host.put(f"{FOLDER}/memory.events", "oom_kill 0\n")
    host.commands["journalctl"] = Command(1, "", "")
    return host


def put(host: FakeHost, **numbers: int) -> None:
    for name, number in numbers.items():
        host.put(f"{FOLDER}/memory.{name}", f"{number}\n")


@pytest.mark.parametrize(
    ("mib", "status"), [(1204, Status.PASS), (2560, Status.PASS), (2561, Status.WARN), (2800, Status.FAIL)]
)
def test_resident_memory(config: Config, host: FakeHost, mib: int, status: Status) -> None:
    host.rss[PID] = mib * MIB
    found = results(memory.resident, config, host)["resident memory"]
    assert (found.status, found.value) == (status, f"{mib} MiB")


def test_file_cache_does_not_count_against_the_goal(config: Config, host: FakeHost) -> None:
    found = results(memory.accounted, config, host)
    assert {result.status for result in found.values()} == {Status.PASS}
    assert found["accounted memory"].value == "cgroup v2: 2900 MiB, 1700 of it file cache"


def test_anything_else_does(config: Config, host: FakeHost) -> None:
    host.put(f"{FOLDER}/memory.stat", f"file {100 * MIB}\n")
    assert statuses(memory.accounted, config, host)["accounted memory"] is Status.WARN


def test_a_limit_that_did_not_hold(config: Config, host: FakeHost) -> None:
    put(host, peak=3500 * MIB)
    assert statuses(memory.accounted, config, host)["highest memory"] is Status.FAIL


@pytest.mark.parametrize("limit", ["max", str(4096 * MIB)])
def test_a_kernel_limit_other_than_configured(config: Config, host: FakeHost, limit: str) -> None:
    host.put(f"{FOLDER}/memory.max", limit)
    found = results(memory.accounted, config, host)["memory limit"]
    assert found.status is Status.FAIL
    assert "systemd 3072 MiB, cgroup v2" in found.value


@pytest.mark.parametrize("limit", ["infinity", str(2048 * MIB)])
def test_a_systemd_limit_other_than_configured(config: Config, host: FakeHost, limit: str) -> None:
    host.put_units(show(SERVICE, MemoryMax=limit))
    assert statuses(memory.accounted, config, host)["memory limit"] is Status.FAIL


def test_without_the_kernels_files_systemd_is_asked(config: Config, host: FakeHost) -> None:
    host.put("/proc/self/mountinfo", "")
    found = results(memory.accounted, config, host)
    assert found["accounted memory"].value == "systemd: 1310 MiB"
    assert found["memory limit"].status is Status.PASS


def test_memory_that_nobody_accounts(config: Config, host: FakeHost) -> None:
    host.put("/proc/self/mountinfo", "")
    host.put_units(show(SERVICE, MemoryCurrent="[not set]"))
    assert statuses(memory.accounted, config, host)["accounted memory"] is Status.WARN


def test_a_stopped_service(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, ActiveState="inactive", MainPID="0"))
    assert statuses(memory.resident, config, host) == {"resident memory": Status.FAIL}
    assert statuses(memory.accounted, config, host) == {"memory limit": Status.FAIL}


def test_no_kills(config: Config, host: FakeHost) -> None:
    found = results(memory.oom, config, host)["kills for lack of memory"]
    assert (found.status, found.value) == (Status.PASS, "0 in 7 days")
    (asked,) = [line for line in host.ran if line.startswith("journalctl")]
    assert f"UNIT={SERVICE}" in asked
    assert "--since=-7d" in asked


@pytest.mark.parametrize(("restarts", "status"), [("2", Status.FAIL), ("0", Status.WARN)])
def test_kills_in_the_journal_fail_until_somebody_acts(
    config: Config, host: FakeHost, restarts: str, status: Status
) -> None:
    host.put_units(show(SERVICE, NRestarts=restarts), show(GATEWAY))
    host.commands["journalctl"] = Command(0, f"{NOW - 9000} vps systemd[1]: …\n{NOW - 90} vps systemd[1]: …\n", "")
    found = results(memory.oom, config, host)["kills for lack of memory"]
    assert (found.status, found.value) == (status, "2 in 7 days")


def test_kills_that_only_the_kernel_counted(config: Config, host: FakeHost) -> None:
    host.put(f"{FOLDER}/memory.events", "oom_kill 3\n")
    found = results(memory.oom, config, host)["kills for lack of memory"]
    assert (found.status, found.value) == (Status.FAIL, "3 in 7 days")


def test_under_v1_a_sigkill_is_a_warning(config: Config, host: FakeHost) -> None:
    host.put("/proc/self/mountinfo", "")
    host.commands = {
        f"journalctl --no-pager --quiet --output=short-unix --since=-7d _PID=1 UNIT={SERVICE} EXIT_CODE": Command(
            0, f"{NOW - 90} vps systemd[1]: Main process exited, code=killed, status=9/KILL\n", ""
        ),
        **host.commands,
    }
    found = results(memory.oom, config, host)["kills for lack of memory"]
    assert found.status is Status.WARN
    assert "1 by SIGKILL" in found.value


def test_a_journal_that_cannot_be_read_is_no_good_news(config: Config, host: FakeHost) -> None:
    host.commands["journalctl"] = Command(1, "", "Failed to open journal: input/output error")
    with pytest.raises(OSError, match="journalctl does not answer"):
        list(memory.oom(config, host))


@pytest.mark.parametrize(
    ("swaps", "value", "status"),
    [
        ("/var/swap/local-llm file 4194300 0 -2\n", "4096 MiB", Status.PASS),
        ("/var/swap/local-llm file 1048572 0 -2\n", "1024 MiB", Status.WARN),
        ("/dev/vdb partition 4194300 0 -2\n", "not in use", Status.WARN),
        ("", "not in use", Status.WARN),
    ],
)
def test_the_swap_file_is_in_use(tmp_path: Path, host: FakeHost, swaps: str, value: str, status: Status) -> None:
    host.put("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n" + swaps)
    found = results(memory.swap, make_config(tmp_path, swap_file_mib=4096), host)["swap file"]
    assert (found.value, found.status) == (value, status)
    assert ("swapon /var/swap/local-llm" in found.remedy) == (status is not Status.PASS)


def test_no_swap_file_is_no_check(config: Config, host: FakeHost) -> None:
    assert not results(memory.swap, config, host)
