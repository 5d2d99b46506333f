"""The line that cron writes: what it says, when it fails, and that only one is written at a time."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import health, output, probe, textfile
from checks.contract.config import Config
from checks.contract.paths import DEPLOY_LOCK, DRILL_RECORD
from checks.host import Command
from checks.samples import Sample
from checks.window import Window
from tests.unit.checks_support import (
    CLOUD,
    GATEWAY,
    MIB,
    NOW,
    PID,
    REFUSED_URL,
    SERVICE,
    Admin,
    Api,
    FakeHost,
    make_config,
    serve,
    serve_admin,
    serve_root,
    show,
    up,
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


SAMPLE = Sample(
    time=1795341900,
    service="active",
    gateway="active",
    api="ok",
    memory_limit_bytes=3072 * MIB,
    api_seconds=0.003,
    probe="none",
    rss_bytes=1204 * MIB,
    memory_bytes=1310 * MIB,
    restarts=0,
    gateway_restarts=0,
    oom_kills=0,
    cores=os.cpu_count(),
    cloud="none",
)


def test_the_line() -> None:
    sample = replace(
        SAMPLE,
        window_seconds=300.0,
        probe="ok",
        probe_seconds=0.0714,
        swap_used_bytes=0,
        load1=0.25,
        disk_free_bytes=5000 * MIB,
        requests={"local/no-cloud/2xx": 2, "gateway/no-cloud/5xx": 1},
        queue=0,
    )
    assert health.format_line(sample) == (
        "2026-11-22T10:05:00Z OK service=active gateway=active api=ok api_ms=3 probe=ok probe_ms=71 rss_mib=1204 "
        "cgroup_mib=1310 limit_mib=3072 restarts=0 oom_kills=0 swap_mib=0 load=0.25 disk_free_mib=5000 requests=3 "
        "queue=0 cloud=none memory_high=- memory_max=- memory_stalled_percent=-"
    )


def test_the_line_of_a_failure() -> None:
    bad = replace(
        SAMPLE,
        service="failed",
        api="http_503",
        api_seconds=None,
        rss_bytes=None,
        ok=False,
        healed="restarted it",
        reasons=("it is down", 'a "b"'),
    )
    assert health.format_line(bad) == (
        "2026-11-22T10:05:00Z FAIL service=failed gateway=active api=http_503 api_ms=- probe=none probe_ms=- rss_mib=- "
        "cgroup_mib=1310 limit_mib=3072 restarts=0 oom_kills=0 swap_mib=- load=- disk_free_mib=- requests=- queue=- "
        "cloud=none memory_high=- memory_max=- memory_stalled_percent=- "
        r'healed="restarted it" reason="it is down; a \"b\""'
    )


words = st.text(min_size=1, max_size=30)
numbers = st.none() | st.integers(0, 10**6)


@given(
    st.builds(
        Sample,
        time=st.integers(0, 4 * 10**9),
        service=words,
        gateway=words,
        api=words,
        restarts=numbers,
        oom_kills=numbers,
        queue=numbers,
        cloud=st.sampled_from(["up", "down", "none", None]),
        reasons=st.lists(words, max_size=3).map(tuple),
    )
)
def test_any_sample_is_one_line_that_reads_back(sample: Sample) -> None:
    sample = replace(sample, ok=not sample.reasons)
    line = health.format_line(sample)
    assert line.isprintable()
    record = health.parse_line(line)
    assert record is not None
    assert (record.time, record.ok) == (sample.time, sample.ok)
    for name in ("restarts", "oom_kills", "queue"):
        value = getattr(sample, name)
        assert record.values[name] == ("-" if value is None else str(value))
    for name in ("service", "gateway", "api"):
        assert record.values[name] == " ".join(output.printable(getattr(sample, name)).split())
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
    assert replace(sample, api_seconds=0.003, time=SAMPLE.time) == SAMPLE
    assert sample.time == int(NOW)
    assert sample.api_seconds is not None
    assert 0 < sample.api_seconds < 10
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
    assert (sample.ok, sample.api, sample.api_seconds) == (False, "http_503", None)


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
    assert (sample.rss_bytes, sample.memory_bytes) == (None, None)
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
    assert len(admin.commands) == 2  # one a side: CPU time


def test_a_cloud_that_cannot_be_asked_for_is_not_known(server: Api, tmp_path: Path, host: FakeHost) -> None:
    sample = health.measure(make_config(tmp_path, api_url=server.url, cloud=CLOUD), host)
    assert (sample.cloud, sample.ok) == (None, True)
    assert " cloud=-" in health.format_line(sample)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with serve_admin(tmp_path) as running:
        yield running


@pytest.fixture
def watched(server: Api, admin: Admin, tmp_path: Path) -> Iterator[Config]:
    """The configuration of a host whose gateway can be asked, by root also past its users."""
    with serve_root(server, tmp_path):
        yield make_config(tmp_path, api_url=server.url, metrics_url=f"{server.url}/metrics")


def test_an_idle_model_is_asked_for_one_token(server: Api, watched: Config, host: FakeHost) -> None:
    sample = health.measure(watched, host, Window())
    assert (sample.probe, sample.ok) == ("ok", True)
    assert sample.probe_seconds is not None
    assert server.requests == [{"model": "tiny", "prompt": "a", "max_tokens": 1}]
    assert [name for headers in server.received for name in headers if name.startswith("X-LLM-")] == []


def test_the_probe_takes_roots_own_way(server: Api, admin: Admin, tmp_path: Path, host: FakeHost) -> None:
    """Where nobody answers there, the API for users is not asked instead, and the model is not blamed."""
    sample = health.measure(make_config(tmp_path, api_url=server.url), host, Window())
    assert (sample.probe, sample.ok) == ("none", False)
    assert sample.reasons[0].startswith("the gateway does not answer on root's own socket: nothing listens there")
    assert server.requests == []


@pytest.mark.parametrize("row", [{"scur": "1"}, {"qcur": "1"}])
def test_a_model_at_work_is_left_alone(
    server: Api, admin: Admin, watched: Config, host: FakeHost, row: dict[str, str]
) -> None:
    admin.servers["llm/llama"] = up(**row)
    sample = health.measure(watched, host, Window())
    assert (sample.probe, sample.probe_seconds, sample.ok) == ("skipped-busy", None, True)
    assert server.requests == []


def test_a_model_that_has_answered_lately_keeps_its_prompts(server: Api, watched: Config, host: FakeHost) -> None:
    sample = health.measure(watched, host, Window(local_answers=1))
    assert (sample.probe, sample.ok) == ("skipped-traffic", True)
    assert server.requests == []


def test_a_model_that_does_not_answer_fails(server: Api, watched: Config, host: FakeHost) -> None:
    server.completion = (500, b"")
    sample = health.measure(watched, host, Window())
    assert (sample.probe, sample.ok) == ("failed", False)
    assert sample.reasons == ("the model does not answer a request for one token: HTTP status 500",)


@pytest.mark.parametrize(("status", "backend", "state"), [
    (503, "gateway", "refused"), (429, "gateway", "refused"), (502, "gateway", "failed"), (504, "gateway", "failed"),
    (500, "local", "failed"), (503, "local", "failed"),
])  # fmt: skip
def test_the_gateway_s_own_refusal_is_none_of_the_model_s(
    server: Api, watched: Config, host: FakeHost, status: int, backend: str, state: str
) -> None:
    server.completion, server.headers = (status, b""), {"X-LLM-Backend": backend}
    sample = health.measure(watched, host, Window())
    assert (sample.probe, sample.ok, sample.up) == (state, False, False)
    assert replace(sample, cloud="up").up is (state == "refused")


def test_a_model_that_was_taken_out_is_said_to_be(server: Api, admin: Admin, watched: Config, host: FakeHost) -> None:
    server.completion, server.headers = (503, b""), {"X-LLM-Backend": "gateway"}
    admin.servers["llm/llama"] = {"status": "MAINT"}
    sample = health.measure(watched, host, Window())
    assert sample.reasons == ("the gateway refuses a request for one token: HTTP status 503, the model is in MAINT",)


def busy_runs(
    watched: Config, host: FakeHost, *windows: Window, before: Sample, seconds: int = 300
) -> list[str | None]:
    """What health runs of a busy model say of it, one interval after the other."""
    states = []
    for window in windows:
        host.put("/proc/uptime", f"{(before.uptime_seconds or 0) + seconds} 1\n")
        before = health.measure(watched, host, window, before)
        states.append(before.probe)
    return states


@pytest.fixture
def busy(server: Api, admin: Admin, host: FakeHost) -> Sample:
    """The first sample of a model at work."""
    admin.servers["llm/llama"] = up(scur="1")
    server.metrics = (200, b"llamacpp:n_decode_total 70\n")
    host.put("/proc/sys/kernel/random/boot_id", "b\n")
    return Sample(time=1, boot_id="b", uptime_seconds=0.0, stalled_seconds=0.0, decodes=70)


def test_a_model_that_gets_nothing_done_fails(watched: Config, host: FakeHost, busy: Sample) -> None:
    assert busy_runs(watched, host, Window(), before=busy) == ["failed"]
    assert busy_runs(watched, host, Window(), before=replace(busy, stalled_seconds=None)) == ["skipped-busy"]
    assert busy_runs(watched, host, *[Window()] * 3, before=busy, seconds=100) == ["skipped-busy"] * 2 + ["failed"]


def test_a_model_that_goes_on_or_has_answered_is_only_busy(
    server: Api, watched: Config, host: FakeHost, busy: Sample
) -> None:
    assert busy_runs(watched, host, Window(local_answers=1), Window(), before=busy) == ["skipped-busy", "failed"]
    server.metrics = (200, b"llamacpp:n_decode_total 71\n")
    assert busy_runs(watched, host, Window(), before=busy) == ["skipped-busy"]


def test_another_process_begins_anew(watched: Config, host: FakeHost, busy: Sample) -> None:
    host.put_units(show(SERVICE, ActiveEnterTimestampMonotonic="4900000000"), show(GATEWAY))
    assert busy_runs(watched, host, Window(), before=busy) == ["skipped-busy"]


def test_a_model_that_tells_nothing_is_given_longer(server: Api, watched: Config, host: FakeHost, busy: Sample) -> None:
    """A prompt of 16,384 tokens takes 6 minutes, in which an older llama-server tells nothing."""
    server.metrics = (503, b"")
    assert busy_runs(watched, host, *[Window()] * 3, before=busy) == ["skipped-busy"] * 2 + ["failed"]
    server.metrics = (200, b"llamacpp:n_decode_total 99\n")
    silent = replace(busy, stalled_seconds=600.0, decodes=None)
    assert busy_runs(watched, host, Window(), before=silent) == ["skipped-busy"]


def test_a_lock_that_is_never_released_is_told(config: Config, host: FakeHost) -> None:
    host.path(DEPLOY_LOCK).parent.mkdir(parents=True)
    host.put("/proc/sys/kernel/random/boot_id", "b\n")
    host.put("/proc/uptime", "8000 1\n")
    assert health.measure(config, host).locked_seconds is None
    before = Sample(time=1, boot_id="b", uptime_seconds=7700.0, locked_seconds=6899.0)
    with health.lock(str(host.path(DEPLOY_LOCK))):
        assert health.measure(config, host).locked_seconds == 0
        assert health.measure(config, host, before=before).ok
        late = health.measure(config, host, before=replace(before, locked_seconds=6900.0))
    assert late.locked_seconds == 7200
    assert "has held its lock for 120 min" in late.reasons[0]


def test_a_probe_that_came_second_is_no_failure(
    server: Api, admin: Admin, watched: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: object) -> None:
        admin.servers["llm/llama"] = up(scur="1")
        raise probe.PostError("no answer in 10 s")

    monkeypatch.setattr(probe, "post_over_socket", overtaken)
    sample = health.measure(watched, host, Window())
    assert (sample.probe, sample.ok) == ("skipped-busy", True)


@pytest.mark.parametrize("changes", [{"health_probe": False}, {"admin_socket": "/nobody"}])
def test_no_probe_where_it_is_off_or_nobody_knows(
    server: Api, admin: Admin, tmp_path: Path, host: FakeHost, changes: dict[str, object]
) -> None:
    sample = health.measure(make_config(tmp_path, api_url=server.url, **changes), host, Window())
    assert (sample.probe, sample.ok) == ("none", True)
    assert server.requests == []


def test_no_probe_of_a_model_that_is_loading(server: Api, watched: Config, host: FakeHost) -> None:
    server.health = (503, b'{"error":{"message":"Loading model"}}')
    assert health.measure(watched, host, Window()).probe == "none"
    assert server.requests == []


@pytest.mark.parametrize(
    ("known", "new", "counter", "total", "ok"),
    [(3, 0, 0, 3, True), (3, 1, 0, 4, False), (None, 0, 0, 0, True), (0, 0, 1, 1, False), (1, 0, 1, 1, True)],
)
def test_kills_only_grow_and_fail_once(
    watched: Config, host: FakeHost, known: int | None, new: int, counter: int, total: int, ok: bool
) -> None:
    folder = f"/sys/fs/cgroup/system.slice/{SERVICE}"
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    host.put(f"{folder}/cgroup.procs", f"{PID}\n")
    host.put(f"{folder}/memory.current", "1000\n")
    host.put(f"{folder}/memory.events", f"oom_kill {counter}\n")
    before = Sample(time=1, oom_kills=known)
    sample = health.measure(watched, host, Window(oom_kills=new), before)
    assert (sample.oom_kills, sample.ok) == (total, ok)


@pytest.mark.parametrize(("full", "ok"), [("0.00", True), ("25.00", True), ("41.25", False)])
def test_a_service_that_waits_for_memory_is_told(watched: Config, host: FakeHost, full: str, ok: bool) -> None:
    folder = f"/sys/fs/cgroup/system.slice/{SERVICE}"
    host.put(f"/proc/{PID}/cgroup", f"0::/system.slice/{SERVICE}\n")
    host.put("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    host.put(f"{folder}/cgroup.procs", f"{PID}\n")
    host.put(f"{folder}/memory.current", "1000\n")
    host.put(f"{folder}/memory.events", "low 0\nhigh 16675\nmax 3\noom 0\noom_kill 0\n")
    host.put(f"{folder}/memory.pressure", f"full avg10=57.00 avg60={full} avg300=9.02 total=7\n")
    sample = health.measure(watched, host, Window(), Sample(time=1))
    assert sample.ok is ok
    assert sample.reasons == (() if ok else ("the service waited for memory for 41 % of the last minute",))
    assert f" memory_high=16675 memory_max=3 memory_stalled_percent={float(full)}" in health.format_line(sample)
    assert f"local_llm_memory_stalled_ratio {float(full) / 100}\n" in textfile.render(sample, None)


@pytest.mark.parametrize(
    ("uptime", "api", "probe", "up"),
    [
        (20.0, "http_503", "none", None),
        (20.0, "ok", "failed", None),
        (20.0, "ok", "ok", True),
        (200.0, "http_503", "none", False),
        (None, "refused", "none", False),
    ],
)
def test_while_the_machine_starts_it_is_not_down(uptime: float | None, api: str, probe: str, up: bool | None) -> None:
    assert Sample(time=1, uptime_seconds=uptime, api=api, probe=probe).up is up


def test_a_kill_of_the_gateway_is_told(watched: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE), show(GATEWAY, NRestarts="2"))
    sample = health.measure(
        watched, host, Window(gateway_oom_kills=1), Sample(time=1, oom_kills=5, gateway_oom_kills=2)
    )
    assert (sample.oom_kills, sample.gateway_oom_kills, sample.gateway_restarts) == (5, 3, 2)
    assert sample.reasons == ("the kernel killed local-llm-gateway.service for lack of memory since the last check",)


def test_without_the_journal_the_kills_that_are_known_stay(watched: Config, host: FakeHost) -> None:
    sample = health.measure(watched, host, None, Sample(time=1, oom_kills=5, gateway_oom_kills=2))
    assert (sample.oom_kills, sample.gateway_oom_kills, sample.ok) == (5, 2, True)


def test_the_machine_and_the_counters(server: Api, watched: Config, host: FakeHost) -> None:
    host.put("/proc/sys/kernel/random/boot_id", "b677dab0-f0be\n")
    host.put("/proc/uptime", "16157.78 20000.00\n")
    host.put("/proc/loadavg", "0.52 0.58 0.59 1/201 3251\n")
    host.put("/proc/meminfo", "MemTotal:  8000000 kB\nSwapTotal:  4096 kB\nSwapFree:  1024 kB\n")
    host.put(f"/proc/{PID}/stat", f"{PID} (llama (x) y) S 1 2 3 4 5 6 7 8 9 10 250 150 13 14\n")
    host.put("/var/lib/local-llm/samples.db", "")
    server.metrics = (
        200,
        b"# HELP llamacpp:prompt_tokens_total x\nllamacpp:prompt_tokens_total 2.5e+06\n"
        b"llamacpp:prompt_seconds_total 51.5\nllamacpp:tokens_predicted_total 12\n"
        b"llamacpp:tokens_predicted_seconds_total 243.659\nllamacpp:prompt_tokens_seconds 1\n",
    )
    sample = health.measure(watched, host)
    assert (sample.boot_id, sample.uptime_seconds, sample.load1) == ("b677dab0-f0be", 16157.78, 0.52)
    assert sample.swap_used_bytes == 3072 * 1024
    assert sample.cpu_seconds == 400 / os.sysconf("SC_CLK_TCK")
    assert (sample.tokens_in, sample.tokens_out) == (2_500_000, 12)
    assert (sample.prompt_seconds, sample.generation_seconds) == (51.5, 243.659)
    assert sample.disk_free_bytes is not None
    assert sample.disk_total_bytes is not None
    assert 0 < sample.disk_free_bytes <= sample.disk_total_bytes


@pytest.mark.parametrize(
    ("sides", "ok"),
    [
        ([True, True], True),
        ([True, None], True),
        ([None], None),
        ([True, False], False),
        ([None, False], False),
        ([], None),
    ],
)
def test_the_last_drill(config: Config, host: FakeHost, sides: list[bool | None], ok: bool | None) -> None:
    host.put(DRILL_RECORD, json.dumps({"sides": [{"ok": side} for side in sides]}))
    assert health.measure(config, host).drill_ok is ok


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"sides": 3}'])
def test_a_drill_record_that_cannot_be_read(config: Config, host: FakeHost, record: str) -> None:
    host.put(DRILL_RECORD, record)
    assert health.measure(config, host).drill_ok is None


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


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    health.append(str(log), "one")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))
    with pytest.raises(OSError, match="No space left"):
        health.append(str(log), "two")
    monkeypatch.undo()
    health.append(str(log), "three")
    assert log.read_text() == "one\nthree\n"


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


def test_the_locks_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("others than root make none")
    with health.lock(str(tmp_path / "run/locks/lock")):
        assert (tmp_path / "run/locks").stat().st_mode & 0o777 == 0o700


def test_no_lock_is_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with suppress(OSError), health.lock(str(tmp_path / "lock")):
        pass
    assert not (tmp_path / "elsewhere").exists()
