"""A service's memory is found wherever the kernel keeps it, and never that of somebody else."""

from pathlib import Path

import pytest

from checks import cgroup, systemd
from tests.unit.checks_support import MIB, PID, SERVICE, FakeHost, show

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def unit(control_group: str = f"/system.slice/{SERVICE}") -> systemd.Unit:
    return systemd.parse_show(show(SERVICE, ControlGroup=control_group))[SERVICE]


def put_v2(host: FakeHost, folder: str, current_mib: int = 1310, procs: int = PID) -> None:
    host.put(f"{folder}/cgroup.procs", f"{procs}\n")
    host.put(f"{folder}/memory.current", f"{current_mib * MIB}\n")
    host.put(f"{folder}/memory.peak", f"{1500 * MIB}\n")
    host.put(f"{folder}/memory.max", f"{3072 * MIB}\n")
    host.put(f"{folder}/memory.stat", f"anon {300 * MIB}\nfile {1000 * MIB}\n")
    host.put(f"{folder}/memory.events", "low 0\nhigh 7\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n")
    host.put(
        f"{folder}/memory.pressure",
        "some avg10=60.00 avg60=45.20 avg300=11.00 total=9\nfull avg10=57.00 avg60=41.25 avg300=9.02 total=7\n",
    )


def put_v1(host: FakeHost, folder: str, procs: int = PID) -> None:
    host.put(f"{folder}/cgroup.procs", f"17\n{procs}\n")
    host.put(f"{folder}/memory.usage_in_bytes", f"{900 * MIB}\n")
    host.put(f"{folder}/memory.max_usage_in_bytes", f"{1000 * MIB}\n")
    host.put(f"{folder}/memory.limit_in_bytes", f"{3072 * MIB}\n")
    host.put(f"{folder}/memory.stat", f"cache 1\ntotal_cache {600 * MIB}\n")
    host.put(f"{folder}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")


def test_v2_on_a_plain_host(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", V2_MOUNT)
    put_v2(host, f"/sys/fs/cgroup/system.slice/{SERVICE}")
    assert cgroup.read(host, unit()) == cgroup.Memory(
        "cgroup v2",
        1310 * MIB,
        1500 * MIB,
        3072 * MIB,
        1000 * MIB,
        oom_kills=1,
        high_events=7,
        max_events=4,
        stalled_percent=41.25,
    )


def test_a_kernel_that_tells_no_pressure(tmp_path: Path) -> None:
    assert cgroup.parse_stalled_percent("") is None
    assert cgroup.parse_stalled_percent("some avg10=1.00 avg60=2.00 avg300=3.00 total=4\n") is None


@pytest.mark.parametrize(
    ("path", "root", "folder"),
    [
        (f"/system.slice/{SERVICE}", "/", f"/sys/fs/cgroup/memory/system.slice/{SERVICE}"),
        # a container that sees the machine's whole tree
        (f"/docker/abc/system.slice/{SERVICE}", "/", f"/sys/fs/cgroup/memory/docker/abc/system.slice/{SERVICE}"),
        # a container whose mount starts at its own cgroup
        (f"/docker/abc/system.slice/{SERVICE}", "/docker/abc", f"/sys/fs/cgroup/memory/system.slice/{SERVICE}"),
        # the mount's root is written as the engine sees it, the process' path as the container does
        (f"/outer/docker/abc/system.slice/{SERVICE}", "/x", f"/sys/fs/cgroup/memory/docker/abc/system.slice/{SERVICE}"),
    ],
)
def test_v1_whatever_the_roots(tmp_path: Path, path: str, root: str, folder: str) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", f"9:name=systemd:{path}\n4:memory:{path}\n0::/\n")
    host.put("/proc/self/mountinfo", V1_MOUNTS.format(root=root))
    put_v1(host, folder)
    assert cgroup.read(host, unit()) == cgroup.Memory(
        "cgroup v1", 900 * MIB, 1000 * MIB, 3072 * MIB, 600 * MIB, oom_kills=2
    )


def test_the_control_group_of_systemd_is_tried_too(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", "0::/../../elsewhere\n")
    host.put("/proc/self/mountinfo", V2_MOUNT)
    put_v2(host, f"/sys/fs/cgroup/system.slice/{SERVICE}")
    assert cgroup.read(host, unit()).source == "cgroup v2"


def test_a_folder_without_the_process_is_not_ours(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", V2_MOUNT)
    put_v2(host, f"/sys/fs/cgroup/system.slice/{SERVICE}", current_mib=1, procs=PID + 1)
    memory = cgroup.read(host, unit())
    assert (memory.source, memory.current_bytes, memory.oom_kills) == ("systemd", 1310 * MIB, None)


def test_the_cgroup_of_the_whole_container_is_not_ours(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", "4:memory:/docker/abc\n")
    host.put("/proc/self/mountinfo", V1_MOUNTS.format(root="/"))
    put_v1(host, "/sys/fs/cgroup/memory/docker/abc")
    assert cgroup.read(host, unit()).source == "systemd"


def test_no_limit_is_none(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n4:memory:/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", V2_MOUNT)
    folder = f"/sys/fs/cgroup/system.slice/{SERVICE}"
    put_v2(host, folder)
    host.put(f"{folder}/memory.max", "max\n")
    assert cgroup.read(host, unit()).limit_bytes is None
    host.put("/proc/self/mountinfo", V1_MOUNTS.format(root="/"))
    put_v1(host, f"/sys/fs/cgroup/memory/system.slice/{SERVICE}")
    host.put(f"/sys/fs/cgroup/memory/system.slice/{SERVICE}/memory.limit_in_bytes", "9223372036854771712\n")
    assert cgroup.read(host, unit()).limit_bytes is None


def test_v1_controllers_that_share_a_mount() -> None:
    mounts = cgroup.parse_memory_mounts("1 2 0:3 / /sys/fs/cgroup/all rw - cgroup cgroup rw,cpu,memory\nbroken\n")
    assert mounts == [cgroup.Mount("/", "/sys/fs/cgroup/all", 1)]
    assert cgroup.parse_proc_cgroup("7:cpu,memory:/a:b\n") == {"cpu": "/a:b", "memory": "/a:b"}


def test_a_stopped_unit_has_no_folder(tmp_path: Path) -> None:
    stopped = systemd.parse_show(show(SERVICE, MainPID="0", MemoryCurrent="[not set]"))[SERVICE]
    assert cgroup.read(FakeHost(tmp_path), stopped).current_bytes is None
