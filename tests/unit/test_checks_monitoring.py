"""Who watches the watchers: cron, logrotate, the health log, the metrics."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from checks import monitoring
from checks.contract.config import Config
from checks.contract.paths import CRON_FILE, DRILL_RECORD, HEALTH_LOG, LOGROTATE_FILE
from checks.host import Command
from checks.result import Status
from tests.unit.checks_support import CLOUD, NOW, REFUSED_URL, FakeHost, make_config, results, serve, show, statuses

CRON = "PATH=/usr/bin\n*/5 * * * * root /usr/local/bin/local-llm health --log\n"
LOGROTATE = """\
reading config file /etc/logrotate.d/local-llm
rotating pattern: /var/log/llm-health.log  after 1 days (7 rotations)
empty log files are not rotated, old logs are removed
rotating pattern: /var/log/local-llm/*.log  monthly (1 rotations)
"""
NAME = "last scheduled health check"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show("cron.service"))  # up for 4000 s
    put_cron(host, CRON)
    host.put(LOGROTATE_FILE, "")
    host.commands["logrotate --debug"] = Command(0, "", LOGROTATE)
    host.put(HEALTH_LOG, line(60))
    return host


def put_cron(host: FakeHost, text: str, mode: int = 0o644, age_seconds: float = 3600) -> None:
    path = host.put(CRON_FILE, text, mode)
    os.utime(path, (NOW - age_seconds, NOW - age_seconds))


def line(age_seconds: float, state: str = "OK", rest: str = "service=active") -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - age_seconds)) + f" {state} {rest}\n"


def test_as_deployed(config: Config, host: FakeHost) -> None:
    for check in (monitoring.cron, monitoring.log_rotation, monitoring.last_health):
        assert set(statuses(check, config, host).values()) == {Status.PASS}, check


@pytest.mark.parametrize("text", ["", "# */5 * * * * root local-llm health\n", "* * * * * root local-llm status\n"])
def test_cron_without_the_health_check(config: Config, host: FakeHost, text: str) -> None:
    put_cron(host, text)
    assert statuses(monitoring.cron, config, host)["cron file"] is Status.FAIL


def test_no_cron_file(config: Config, host: FakeHost) -> None:
    host.path(CRON_FILE).unlink()
    assert results(monitoring.cron, config, host)["cron file"].value == "missing"


def test_a_cron_file_that_cron_ignores(config: Config, host: FakeHost) -> None:
    put_cron(host, CRON, mode=0o664)
    assert "cron ignores it" in results(monitoring.cron, config, host)["cron file"].value
    put_cron(host, CRON)
    host.owners[CRON_FILE] = ("nobody", "root")
    assert statuses(monitoring.cron, config, host)["cron file"] is Status.FAIL


def test_cron_is_down(config: Config, host: FakeHost) -> None:
    host.put_units(show("cron.service", ActiveState="inactive"))
    assert statuses(monitoring.cron, config, host)["cron"] is Status.FAIL


@pytest.mark.parametrize(
    ("code", "report"),
    [
        (1, LOGROTATE),
        (0, "error: local-llm:3 unknown option 'rotat'\n" + LOGROTATE),
        (0, LOGROTATE.replace("(7", "(8")),
        (0, LOGROTATE.replace("after 1 days", "weekly")),
        (0, ""),
    ],
)
def test_logs_that_are_not_rotated_as_planned(config: Config, host: FakeHost, code: int, report: str) -> None:
    host.commands["logrotate --debug"] = Command(code, "", report)
    assert statuses(monitoring.log_rotation, config, host) == {"log rotation": Status.FAIL}


def test_no_logrotate_file(config: Config, host: FakeHost) -> None:
    host.path(LOGROTATE_FILE).unlink()
    assert statuses(monitoring.log_rotation, config, host) == {"log rotation": Status.FAIL}


def test_several_logs_in_one_pattern() -> None:
    report = "rotating pattern: /var/log/a.log /var/log/llm-health.log  after 1 days empty… (30 rotations)\n"
    assert monitoring.kept_days(report, HEALTH_LOG) == 30


def test_an_old_health_line(config: Config, host: FakeHost) -> None:
    host.put(HEALTH_LOG, line(601))
    found = results(monitoring.last_health, config, host)[NAME]
    assert (found.status, found.value) == (Status.FAIL, "10 min old")


def test_an_old_line_while_cron_has_just_begun(config: Config, host: FakeHost) -> None:
    host.put(HEALTH_LOG, line(86400))
    host.put_units(show("cron.service", ActiveEnterTimestampMonotonic="4900000000"))
    assert statuses(monitoring.last_health, config, host) == {NAME: Status.PASS}


@pytest.mark.parametrize(("age", "status"), [(30, Status.PASS), (3600, Status.FAIL)])
def test_no_health_line(config: Config, host: FakeHost, age: float, status: Status) -> None:
    host.path(HEALTH_LOG).unlink()
    put_cron(host, CRON, age_seconds=age)
    found = results(monitoring.last_health, config, host)[NAME]
    assert found.status is status
    assert found.value.startswith("none yet")


def test_the_last_line_failed(config: Config, host: FakeHost) -> None:
    host.put(HEALTH_LOG, line(300) + line(10, "FAIL", 'service=failed reason="local-llm.service is failed"'))
    found = results(monitoring.last_health, config, host)[NAME]
    assert (found.status, found.value) == (Status.WARN, "FAIL, 10 s old")
    assert "local-llm.service is failed" in found.remedy


def test_half_a_line_is_passed_over(config: Config, host: FakeHost) -> None:
    host.put(HEALTH_LOG, line(10) + "2026-11-22T1")
    assert statuses(monitoring.last_health, config, host) == {NAME: Status.PASS}


def test_just_after_a_rotation(config: Config, host: FakeHost) -> None:
    host.put(HEALTH_LOG, "")
    host.put(f"{HEALTH_LOG}.1", line(200))
    assert results(monitoring.last_health, config, host)[NAME].value == "OK, 3 min old"
    host.path(f"{HEALTH_LOG}.1").unlink()
    host.path(f"{HEALTH_LOG}.1.gz").write_bytes(gzip.compress(line(250).encode()))
    assert results(monitoring.last_health, config, host)[NAME].value == "OK, 4 min old"


def test_metrics(tmp_path: Path, host: FakeHost) -> None:
    with serve() as server:
        config = make_config(tmp_path, metrics_url=f"{server.url}/metrics")
        assert results(monitoring.metrics, config, host)["metrics"].value == "2 series"
        server.metrics = (200, b"<html>")
        assert statuses(monitoring.metrics, config, host) == {"metrics": Status.FAIL}
        server.metrics = (403, b"haproxy_up 1\n")
        assert statuses(monitoring.metrics, config, host) == {"metrics": Status.FAIL}


def test_no_metrics(tmp_path: Path, host: FakeHost) -> None:
    config = make_config(tmp_path, metrics_url=REFUSED_URL)
    assert results(monitoring.metrics, config, host)["metrics"].value == "nothing listens there"


DRILL = "last fallback drill"


def put_drill(host: FakeHost, age_days: float, ok: bool | None = True) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - age_days * 86400))
    side = {"name": "cloud", "ok": ok, "answered_by": "local", "seconds": 0.41, "note": ""}
    host.put(DRILL_RECORD, json.dumps({"time": when, "ok": ok, "sides": [side]}))


@pytest.mark.parametrize(
    ("cloud", "weekly", "age_days", "ok", "status"),
    [
        (CLOUD, True, 1, True, Status.PASS),
        (CLOUD, True, 7.9, True, Status.PASS),
        (CLOUD, True, 8.1, True, Status.WARN),
        (CLOUD, False, 80, True, Status.PASS),
        (None, True, 80, True, Status.PASS),
        (CLOUD, True, 1, False, Status.WARN),
        (CLOUD, True, 1, None, Status.WARN),
        (None, False, 1, False, Status.WARN),
    ],
)
def test_the_last_drill(
    tmp_path: Path, host: FakeHost, cloud: object, weekly: bool, age_days: float, ok: bool | None, status: Status
) -> None:
    put_drill(host, age_days, ok)
    config = make_config(tmp_path, cloud=cloud, drill_weekly=weekly)
    found = results(monitoring.last_drill, config, host)[DRILL]
    assert found.status is status
    assert "without cloud: local answered in 410 ms" in found.value


@pytest.mark.parametrize(
    ("weekly", "installed_days", "status"),
    [(True, 1, Status.PASS), (True, 9, Status.WARN), (True, None, Status.WARN), (False, 9, Status.PASS)],
)
def test_no_drill_yet(
    tmp_path: Path, host: FakeHost, weekly: bool, installed_days: float | None, status: Status
) -> None:
    if installed_days is not None:
        unit = host.put("/etc/systemd/system/local-llm-drill.service", "")
        os.utime(unit, (NOW - installed_days * 86400,) * 2)
    config = make_config(tmp_path, cloud=CLOUD, drill_weekly=weekly)
    assert statuses(monitoring.last_drill, config, host) == {DRILL: status}


def test_without_a_cloud_no_drill_is_missed(config: Config, host: FakeHost) -> None:
    assert statuses(monitoring.last_drill, config, host) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": "x", "sides": []}', '{"time": "2026-11-22T10:05:00Z"}'])
def test_a_record_that_is_none(tmp_path: Path, host: FakeHost, text: str) -> None:
    host.put(DRILL_RECORD, text)
    assert statuses(monitoring.last_drill, make_config(tmp_path, cloud=CLOUD), host) == {DRILL: Status.WARN}
