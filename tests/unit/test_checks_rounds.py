"""Whole runs as cron starts them: what they leave behind, and that no broken step keeps another from its work."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import health, metrics, rounds, textfile, window
from checks.contract.config import Config
from checks.contract.paths import SAMPLES, TEXTFILE_FALLBACK
from checks.host import Command
from checks.samples import HEALTH, METRICS, Histogram, Kind, Sample, Store, StoreFullError
from checks.totals import Totals
from tests.unit.checks_support import (
    GATEWAY,
    MIB,
    NOW,
    PID,
    SERVICE,
    Admin,
    Api,
    FakeHost,
    entry,
    journalled,
    make_config,
    serve,
    serve_admin,
    serve_root,
    show,
)
from tests.unit.test_checks_window import GATEWAY_KILL, KILL, line

A, B = "local/default/2xx", "gateway/no-cloud/5xx"
TEXTFILE = f"{TEXTFILE_FALLBACK}/local_llm.prom"


@pytest.fixture
def server() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with serve_admin(tmp_path) as running:
        yield running


@pytest.fixture
def config(server: Api, admin: Admin, tmp_path: Path) -> Iterator[Config]:
    with serve_root(server, tmp_path):
        yield make_config(tmp_path, api_url=server.url, metrics_url=f"{server.url}/metrics")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY))
    host.rss[PID] = 1204 * MIB
    host.put("/var/lib/local-llm/drill.json", "{}")
    host.put("/proc/sys/kernel/random/boot_id", "boot\n")
    at(host, 1000)
    journal(host)
    return host


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "health.log"


def at(host: FakeHost, uptime_seconds: int, cpu_seconds: int = 0) -> None:
    host.put("/proc/uptime", f"{uptime_seconds}.00 1.00\n")
    host.put(f"/proc/{PID}/stat", f"{PID} (llama-server) S 1 2 3 4 5 6 7 8 9 10 {cpu_seconds * 100} 0 13 14\n")


def journal(host: FakeHost, *lines: str, cursor: str = "s=1") -> None:
    host.commands["journalctl"] = journalled(*lines, cursor=cursor)


def stored(host: FakeHost, kind: Kind = HEALTH) -> list[Sample]:
    with Store.open(host.path(SAMPLES)) as store:
        return list(store.between(0, 2e9, kind))


def state(host: FakeHost, key: str) -> str:
    with Store.open(host.path(SAMPLES)) as store:
        return store.get(key) or ""


def test_a_run_leaves_a_sample_a_line_and_a_text_file(config: Config, host: FakeHost, log: Path) -> None:
    run = rounds.health_run(config, host, str(log))
    assert run.ok
    assert log.read_text() == run.line + "\n"
    (sample,) = stored(host)
    assert health.format_line(sample) == run.line
    assert (sample.time, sample.window_seconds, sample.probe) == (int(NOW), None, "ok")
    assert "local_llm_up 1.0\n" in host.read(TEXTFILE)
    assert "local_llm_gateway_restarts_total 0.0\n" in host.read(TEXTFILE)
    assert host.status(TEXTFILE).mode == 0o644


def test_runs_count_on(config: Config, host: FakeHost, log: Path) -> None:
    rounds.health_run(config, host, str(log))
    at(host, 1300)
    journal(host, line(), line(backend="cloud", reason="default"), KILL, cursor="s=2")
    rounds.health_run(config, host, str(log))
    at(host, 1600)
    journal(host, line(), cursor="s=3")
    rounds.health_run(config, host, str(log))

    _, second, third = stored(host)
    assert (second.window_seconds, third.window_seconds) == (300.0, 300.0)
    assert second.requests == {"local/short-prompt/2xx": 1, "cloud/default/2xx": 1}
    assert (second.oom_kills, second.ok) == (1, False)
    assert (third.oom_kills, third.ok) == (1, True)
    assert third.probe == "skipped-traffic"
    assert [command for command in host.ran if "journalctl" in command][-1].count("--after-cursor=s=2 ") == 1
    totals = Totals.from_text(state(host, "totals"))
    assert totals.requests == {"local/short-prompt/2xx": 2, "cloud/default/2xx": 1}
    assert totals.responses["local"] == Histogram.of([1.5, 1.5])
    assert (totals.runs, totals.probes) == ({"ok": 2, "failed": 1}, {"ok": 1, "skipped-traffic": 2})
    assert 'local_llm_logged_requests_total{backend="local",code="2xx",reason="short-prompt"} 2.0' in host.read(
        TEXTFILE
    )


def test_what_a_person_asks_for_leaves_no_trace(config: Config, host: FakeHost, log: Path) -> None:
    rounds.health_run(config, host, str(log))
    journal(host, line(), cursor="s=2")
    before = (host.read(TEXTFILE), log.read_text())
    run = rounds.look(config, host)
    assert run.ok
    assert " requests=1 " in run.line
    assert len(stored(host)) == 1
    assert state(host, "journal-cursor") == "s=1"
    assert (host.read(TEXTFILE), log.read_text()) == before


def test_without_a_history_the_rest_goes_on(config: Config, host: FakeHost, log: Path) -> None:
    host.path(SAMPLES).mkdir()
    run = rounds.health_run(config, host, str(log))
    assert not run.ok
    assert "unable to open" in run.line
    assert " api=ok " in run.line
    assert log.read_text() == run.line + "\n"
    assert "local_llm_up 1.0\n" in host.read(TEXTFILE)
    assert " counter\n" not in host.read(TEXTFILE)


def test_a_damaged_history_is_told_of_once(config: Config, host: FakeHost, log: Path) -> None:
    host.put(SAMPLES, "no database" * 1000)
    assert "was damaged" in rounds.health_run(config, host, str(log)).line
    assert rounds.health_run(config, host, str(log)).ok


def test_damage_that_only_writing_finds_is_told_of(
    config: Config, host: FakeHost, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Store.prune

    def damaged(store: Store, keep_days: int) -> None:
        store.notice = "it was damaged"
        found(store, keep_days)

    monkeypatch.setattr(Store, "prune", damaged)
    assert 'reason="it was damaged"' in rounds.health_run(config, host, str(log)).line


def test_a_full_disk_is_a_reason_and_passes(
    config: Config, host: FakeHost, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds.health_run(config, host, str(log))
    journal(host, line(), cursor="s=2")

    def no_space(*_: object) -> None:
        raise StoreFullError("no space left on the disk for x")

    monkeypatch.setattr(Store, "append", no_space)
    run = rounds.health_run(config, host, str(log))
    assert (run.ok, run.unwritten) == (False, None)
    assert 'reason="this sample is not stored: no space left on the disk for x"' in log.read_text()
    monkeypatch.undo()

    # What the lost sample would have counted is in the next one.
    journal(host, line(), line(), cursor="s=3")
    assert rounds.health_run(config, host, str(log)).ok
    assert stored(host)[-1].requests == {"local/short-prompt/2xx": 2}
    assert "--after-cursor=s=1 " in [command for command in host.ran if "journalctl" in command][-1]


def test_a_log_that_cannot_be_written_still_leaves_a_sample(config: Config, host: FakeHost, tmp_path: Path) -> None:
    run = rounds.health_run(config, host, str(tmp_path))
    assert run.unwritten is not None
    assert len(stored(host)) == 1
    assert host.exists(TEXTFILE)


def broken(*_: object) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("where", "name", "reason"),
    [
        (window, "read", "ZeroDivisionError: a bug"),
        (textfile, "render", "the text file for Prometheus is not written: ZeroDivisionError: a bug"),
        (Store, "prune", "old samples are not dropped: ZeroDivisionError: a bug"),
    ],
)
def test_a_bug_in_one_step_is_a_reason(
    config: Config,
    host: FakeHost,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    reason: str,
) -> None:
    monkeypatch.setattr(where, name, broken)
    run = rounds.health_run(config, host, str(log))
    assert f'reason="{reason}"' in log.read_text()
    assert not run.ok
    assert len(stored(host)) == 1


def test_without_the_journal_nothing_is_counted_and_nothing_probed(config: Config, host: FakeHost, log: Path) -> None:
    host.commands["journalctl"] = Command(1, "", "No journal files were opened due to insufficient permissions.")
    assert "insufficient permissions" in rounds.health_run(config, host, str(log)).line
    (sample,) = stored(host)
    assert (sample.probe, sample.requests) == ("none", {})
    assert state(host, "journal-cursor") == ""


def test_old_samples_go(config: Config, host: FakeHost, log: Path) -> None:
    host.put(SAMPLES, "")
    with Store.open(host.path(SAMPLES)) as store:
        for moment in (int(NOW) - 92 * 86_400, *range(int(NOW) - 287 * 300, int(NOW), 300)):
            store.append(Sample(time=moment))
    rounds.health_run(config, host, str(log))
    assert [sample.time for sample in stored(host)] == list(range(int(NOW) - 287 * 300, int(NOW) + 1, 300))


def test_what_was_counted_is_stored_where_systemd_does_not_answer(config: Config, host: FakeHost, log: Path) -> None:
    rounds.health_run(config, host, str(log))
    journal(host, line(), KILL, GATEWAY_KILL, cursor="s=2")
    host.put_units()
    host.commands["systemctl show"] = Command(1, "", "Failed to connect to bus: Host is down")
    run = rounds.health_run(config, host, str(log))
    assert "killed local-llm.service for lack of memory since the last check" in run.line
    journal(host, cursor="s=3")
    rounds.health_run(config, host, str(log))
    host.put_units(show(SERVICE), show(GATEWAY))
    rounds.health_run(config, host, str(log))

    found = stored(host)
    assert [sample.service for sample in found] == ["active", "unknown", "unknown", "active"]
    assert found[1].requests == {"local/short-prompt/2xx": 1}
    assert [(sample.oom_kills, sample.gateway_oom_kills) for sample in found] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert Totals.from_text(state(host, "totals")).requests == {"local/short-prompt/2xx": 1}


def test_kills_are_counted_on_from_the_last_sample_that_knows_them(config: Config, host: FakeHost, log: Path) -> None:
    host.put(SAMPLES, "")
    with Store.open(host.path(SAMPLES)) as store:
        store.append(Sample(time=1, oom_kills=3, gateway_oom_kills=1), {"journal-cursor": "s=1"})
        store.append(Sample(time=2))
    journal(host, KILL, cursor="s=2")
    rounds.health_run(config, host, str(log))
    assert (stored(host)[-1].oom_kills, stored(host)[-1].gateway_oom_kills) == (4, 1)


def test_the_node_exporter_s_directory_is_used_if_there(config: Config, host: FakeHost, log: Path) -> None:
    host.put("/var/lib/prometheus/node-exporter/other.prom", "")
    rounds.health_run(config, host, str(log))
    assert host.names("/var/lib/prometheus/node-exporter").count("local_llm.prom") == 1
    assert not host.exists(TEXTFILE)


def test_the_hour(config: Config, host: FakeHost, server: Api, log: Path, tmp_path: Path) -> None:
    """An hour by hand: two health runs with three answers, 36 s of CPU, 100 tokens in 8 s."""
    out = tmp_path / "metrics.log"
    server.metrics = (200, b"llamacpp:tokens_predicted_total 50\nllamacpp:tokens_predicted_seconds_total 2\n")
    rounds.health_run(config, host, str(log))
    first = rounds.metrics_run(config, host, str(out))
    assert " window_s=- cpu_s=- " in first.line
    assert " requests=0 " in first.line

    journal(host, line(total_ms=1200), line(total_ms=1200), cursor="s=2")
    rounds.health_run(config, host, str(log))
    journal(host, line(backend="cloud", total_ms=4500), line(status=503, backend="gateway"), cursor="s=3")
    rounds.health_run(config, host, str(log))
    at(host, 4600, cpu_seconds=36)
    server.metrics = (200, b"llamacpp:tokens_predicted_total 150\nllamacpp:tokens_predicted_seconds_total 10\n")
    second = rounds.metrics_run(config, host, str(out))

    assert out.read_text() == f"{first.line}\n{second.line}\n"
    free = re.search(r"disk_free_mib=\d+", second.line)
    assert free
    assert second.line == (
        "2026-11-22T22:13:14Z window_s=3600 cpu_s=36.0 cpu_percent=1.0 rss_mib=1204 cgroup_mib=1310 peak_mib=- "
        f"limit_mib=3072 swap_mib=- load=- {free[0]} requests=4 local=2 cloud=1 failed=1 mean_ms=2300 p50_ms=1375 "
        "p95_ms=4850 p99_ms=4970 tokens_in=- tokens_out=100 tokens_per_s=12.5 restarts=0 oom_kills=0"
    )
    before, hour = stored(host, METRICS)
    assert before.requests == {}
    assert sum(hour.requests.values()) == 4
    assert metrics.format_line(hour, before) == second.line


def test_the_hour_for_a_person_is_not_stored(config: Config, host: FakeHost) -> None:
    run = rounds.metrics_run(config, host, None)
    assert run.ok
    assert stored(host, METRICS) == []


def test_the_hour_where_systemd_does_not_answer(config: Config, host: FakeHost, tmp_path: Path) -> None:
    out = tmp_path / "metrics.log"
    host.put_units()
    host.commands["systemctl show"] = Command(1, "", "Failed to connect to bus: Host is down")
    run = rounds.metrics_run(config, host, str(out))
    assert not run.ok
    assert "Failed to connect to bus" in out.read_text()
    (sample,) = stored(host, METRICS)
    assert (sample.service, sample.gateway, sample.ok) == ("unknown", "unknown", False)


def test_the_hour_without_a_history(config: Config, host: FakeHost, tmp_path: Path) -> None:
    host.path(SAMPLES).mkdir()
    run = rounds.metrics_run(config, host, str(tmp_path / "metrics.log"))
    assert not run.ok
    assert " rss_mib=1204 " in run.line
    assert "unable to open" in run.line


def test_totals_read_back_and_tell_what_is_new() -> None:
    one = Sample(time=1, probe="ok", requests={A: 1}, responses={"local": Histogram.of([1.0])})
    two = Sample(time=2, ok=False, healed="yes", requests={A: 2, B: 1})
    first = Totals().plus(one)
    both = first.plus(two)
    assert Totals.from_text(both.as_text()) == both
    assert both.since(first) == Totals(requests={A: 2, B: 1}, runs={"failed": 1}, heals=1)
    assert first.since(both) == first
    for text in (None, "", "[]", "{", json.dumps({"responses": {"local": 1}})):
        assert Totals.from_text(text) == Totals()


def test_totals_that_forged_names_had_blown_up_are_small_again() -> None:
    forged = {f"evil{number}/evil{number}/2xx": 1 for number in range(20_000)}
    grown = Totals(requests={A: 3, **forged}, responses={f"evil{number}": Histogram.of([1.0]) for number in range(9)})
    assert Totals.from_text(grown.as_text()) == Totals(requests={A: 3, "other/other/2xx": 20_000})


def test_an_orderly_shutdown_leaves_nothing(config: Config, host: FakeHost, server: Api, log: Path) -> None:
    rounds.health_run(config, host, str(log))
    before = log.read_text()
    host.put_units(show(SERVICE, ActiveState="inactive", MainPID="0"), show(GATEWAY, ActiveState="inactive"))
    server.health = (503, b"{}")
    journal(host, line(), cursor="s=2")
    host.commands["systemctl is-system-running"] = Command(1, "stopping\n", "")
    with pytest.raises(rounds.StoppingError):
        rounds.health_run(config, host, str(log))
    assert (log.read_text(), len(stored(host)), state(host, "journal-cursor")) == (before, 1, "s=1")
    assert not any("try-restart" in command for command in host.ran)

    # Where it is not, the same is an outage.
    host.commands["systemctl is-system-running"] = Command(1, "degraded\n", "")
    rounds.health_run(config, host, str(log))
    assert " FAIL service=inactive " in log.read_text()


def test_more_than_is_read_at_once_is_said(config: Config, host: FakeHost, log: Path) -> None:
    rounds.health_run(config, host, str(log))
    host.commands["journalctl"] = Command(0, entry(line(), __CURSOR="s=7") + "\n", "", cut=True)
    run = rounds.health_run(config, host, str(log))
    assert "has logged more since the last check than is read at once" in run.line
    assert state(host, "journal-cursor") == "s=7"
    assert stored(host)[-1].probe == "ok"


def test_what_others_say_makes_no_long_sample(config: Config, host: FakeHost, log: Path) -> None:
    host.commands["journalctl"] = Command(1, "", "x" * 100_000)
    assert len(rounds.health_run(config, host, str(log)).line) < 2000
