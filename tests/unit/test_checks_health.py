"""The line that cron writes: what it says, when it fails, and that only one is written at a time."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import health
from checks.config import Config
from checks.host import Command
from tests.unit.checks_support import (
    CLOUD,
    GATEWAY,
    MIB,
    NOW,
    PID,
    REFUSED_URL,
    SERVICE,
    Api,
    FakeHost,
    make_config,
    serve,
    serve_admin,
    show,
)


@pytest.fixture
def server() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def config(server: Api, tmp_path: Path) -> Config:
    return make_config(tmp_path, api_url=server.url)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY))
    host.rss[PID] = 1204 * MIB
    return host


SAMPLE = health.Sample(
    time=1795341900.0,
    service="active",
    gateway="active",
    api="ok",
    limit_mib=3072,
    api_ms=3,
    rss_mib=1204,
    cgroup_mib=1310,
    restarts=0,
    oom_kills=0,
    cloud="none",
)


def test_the_line() -> None:
    assert health.format_line(SAMPLE) == (
        "2026-11-22T10:05:00Z OK service=active gateway=active api=ok api_ms=3 rss_mib=1204 cgroup_mib=1310 "
        "limit_mib=3072 restarts=0 oom_kills=0 cloud=none"
    )


def test_the_line_of_a_failure() -> None:
    bad = replace(SAMPLE, service="failed", api="http_503", api_ms=None, rss_mib=None, reasons=("it is down", 'a "b"'))
    assert health.format_line(bad) == (
        "2026-11-22T10:05:00Z FAIL service=failed gateway=active api=http_503 api_ms=- rss_mib=- cgroup_mib=1310 "
        r'limit_mib=3072 restarts=0 oom_kills=0 cloud=none reason="it is down; a \"b\""'
    )


words = st.text(min_size=1, max_size=30)
numbers = st.none() | st.integers(0, 10**6)


@given(
    st.builds(
        health.Sample,
        time=st.integers(0, 4 * 10**9).map(float),
        service=words,
        gateway=words,
        api=words,
        limit_mib=st.integers(1, 10**6),
        api_ms=numbers,
        rss_mib=numbers,
        cgroup_mib=numbers,
        restarts=numbers,
        oom_kills=numbers,
        cloud=st.sampled_from(["up", "down", "none", None]),
        reasons=st.lists(words, max_size=3).map(tuple),
    )
)
def test_any_sample_is_one_line_that_reads_back(sample: health.Sample) -> None:
    line = health.format_line(sample)
    assert line.isprintable()
    record = health.parse_line(line)
    assert record is not None
    assert (record.time, record.ok) == (sample.time, sample.ok)
    for name in ("api_ms", "rss_mib", "cgroup_mib", "restarts", "oom_kills"):
        value = getattr(sample, name)
        assert record.values[name] == ("-" if value is None else str(value))
    for name in ("service", "gateway", "api"):
        printable = "".join(char if char.isprintable() else " " for char in getattr(sample, name))
        assert record.values[name] == " ".join(printable.split())
    assert ("reason" in record.values) is not sample.ok


@given(st.text())
def test_no_text_upsets_the_reader(text: str) -> None:
    health.parse_line(text)
    health.parse_line(f"2026-11-22T10:05:00Z OK {text}")


@pytest.mark.parametrize("line", ["", "2026-11-22T10:05:00Z", "2026-11-22T10:05:00Z MAYBE a=b", "yesterday OK a=b"])
def test_other_lines_are_none(line: str) -> None:
    assert health.parse_line(line) is None


def test_a_healthy_host(config: Config, host: FakeHost) -> None:
    sample = health.measure(config, host)
    assert sample.ok
    assert replace(sample, api_ms=3, time=SAMPLE.time) == SAMPLE
    assert sample.time == NOW
    assert [line.split()[0] for line in host.ran] == ["systemctl"]  # one command: CPU time


@pytest.mark.parametrize(
    ("service", "gateway", "reason"),
    [
        ("failed", "active", "local-llm.service is failed"),
        ("activating", "active", "local-llm.service is activating"),
        ("active", "inactive", "local-llm-gateway.service is inactive"),
    ],
)
def test_a_unit_that_is_down(config: Config, host: FakeHost, service: str, gateway: str, reason: str) -> None:
    host.put_units(show(SERVICE, ActiveState=service), show(GATEWAY, ActiveState=gateway))
    sample = health.measure(config, host)
    assert sample.reasons == (reason,)
    assert (sample.service, sample.gateway) == (service, gateway)


def test_an_api_that_fails(server: Api, config: Config, host: FakeHost) -> None:
    server.health = (503, b"")
    sample = health.measure(config, host)
    assert (sample.ok, sample.api, sample.api_ms) == (False, "http_503", None)


def test_an_api_that_is_gone(tmp_path: Path, host: FakeHost) -> None:
    sample = health.measure(make_config(tmp_path, api_url=REFUSED_URL), host)
    assert (sample.ok, sample.api) == (False, "refused")


@pytest.mark.parametrize(("mib", "ok"), [(2764, True), (2765, False), (3000, False)])
def test_memory_near_the_limit(config: Config, host: FakeHost, mib: int, ok: bool) -> None:
    host.rss[PID] = mib * MIB
    assert health.measure(config, host).ok is ok


def test_a_stopped_service_has_no_memory(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, ActiveState="inactive", MainPID="0"), show(GATEWAY))
    sample = health.measure(config, host)
    assert (sample.rss_mib, sample.cgroup_mib) == (None, None)
    assert not sample.ok


@pytest.mark.parametrize(("age", "ok"), [(299, False), (301, True)])
def test_a_kill_fails_once(config: Config, host: FakeHost, age: float, ok: bool) -> None:
    host.put_units(show(SERVICE, NRestarts="1"), show(GATEWAY))
    host.commands["journalctl"] = Command(0, f"{NOW - age} vps systemd[1]: killed by the OOM killer\n", "")
    sample = health.measure(config, host)
    assert (sample.restarts, sample.oom_kills, sample.ok) == (1, 1, ok)


def test_a_restart_without_a_kill_is_no_failure(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, NRestarts="1"), show(GATEWAY))
    host.commands["journalctl"] = Command(1, "", "")
    sample = health.measure(config, host)
    assert (sample.restarts, sample.oom_kills, sample.ok) == (1, 0, True)


@pytest.mark.parametrize(
    ("status", "word"), [("UP", "up"), ("UP 1/3", "up"), ("DOWN", "down"), ("MAINT", "down"), ("DRAIN", "down")]
)
def test_a_cloud_is_told_and_fails_nothing(tmp_path: Path, host: FakeHost, status: str, word: str) -> None:
    with serve() as api, serve_admin(tmp_path) as admin:
        admin.servers["cloud/cloud"] = {"status": status}
        sample = health.measure(make_config(tmp_path, api_url=api.url, cloud=CLOUD), host)
    assert (sample.cloud, sample.ok) == (word, True)
    assert f" cloud={word}" in health.format_line(sample)
    assert len(admin.commands) == 1


def test_a_cloud_that_cannot_be_asked_for_is_not_known(server: Api, tmp_path: Path, host: FakeHost) -> None:
    sample = health.measure(make_config(tmp_path, api_url=server.url, cloud=CLOUD), host)
    assert (sample.cloud, sample.ok) == (None, True)
    assert " cloud=-" in health.format_line(sample)


def test_without_systemd_there_is_still_a_line(config: Config, host: FakeHost) -> None:
    host.put_units()
    host.commands["systemctl show"] = Command(1, "", "Failed to connect to bus: Host is down")
    sample = health.measure(config, host)
    assert (sample.service, sample.api) == ("unknown", "ok")
    assert "Failed to connect to bus" in health.format_line(sample)


def test_lines_are_added(tmp_path: Path) -> None:
    log = tmp_path / "health.log"
    health.append(str(log), "one")
    health.append(str(log), "two")
    assert log.read_text() == "one\ntwo\n"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        health.append(str(tmp_path / "log"), "x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []

    def write(_descriptor: int, data: bytes) -> int:
        writes.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    health.append(str(tmp_path / "log"), "one")
    assert writes == [b"one\n"]


def test_the_lock_is_for_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with health.lock(path):
        with pytest.raises(health.AlreadyRunningError), health.lock(path):
            pass
        assert Path(path).stat().st_mode & 0o777 == 0o600
    with health.lock(path):
        pass


def test_the_lock_is_freed_by_a_failure(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), health.lock(path):
        _ = 1 / 0
    with health.lock(path):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_lock_file_of_another_user_does_not_stop_root(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch(mode=0o666)
    os.chown(path, 65534, 65534)
    with health.lock(str(path)):
        assert path.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is stopped by nobody")
def test_a_link_as_the_lock_does_not_stop_root(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with health.lock(str(tmp_path / "lock")):
        assert not (tmp_path / "elsewhere").exists()
