"""The checks of Prometheus see when it is down, reachable from elsewhere, or blind."""

from pathlib import Path
from typing import Any

import pytest

from checks import prometheus
from checks.config import Config
from checks.result import Result, Status
from tests.unit.checks_support import FakeHost, make_config, serve, show

UNIT = "local-llm-prometheus.service"
HEADER = "  sl  local_address rem_address   st …\n"
UP = {"labels": {"job": "gateway"}, "health": "up", "lastError": ""}
DOWN = {"labels": {"job": "node"}, "health": "down", "lastError": "connection refused"}
UNKNOWN = {"labels": {"job": "requests"}, "health": "unknown", "lastError": ""}
GOOD_RULE = {"name": "LocalLlmApiDown", "health": "ok"}
BAD_RULE = {"name": "LocalLlmDisk", "health": "err", "lastError": "no such function"}


def config(tmp_path: Path, port: int) -> Config:
    return make_config(tmp_path, prometheus=[{"unit": UNIT, "port": port}])


def services(tmp_path: Path, address: str = "0100007F", active: str = "active") -> list[Result]:
    host = FakeHost(tmp_path)
    host.put_units(show(UNIT, ActiveState=active))
    host.put("/proc/self/net/tcp", f"{HEADER}   0: {address}:2382 00000000:0000 0A 0:0 0:0 0 0 0 1 1 0\n")
    return list(prometheus.services(config(tmp_path, 9090), host))


def test_off_there_is_nothing_to_check(tmp_path: Path) -> None:
    off = make_config(tmp_path)
    assert list(prometheus.services(off, FakeHost(tmp_path))) == []
    assert list(prometheus.targets(off, FakeHost(tmp_path))) == []


def test_as_deployed(tmp_path: Path) -> None:
    assert [result.status for result in services(tmp_path)] == [Status.PASS, Status.PASS]


def test_open_to_the_network(tmp_path: Path) -> None:
    [_, port] = services(tmp_path, address="00000000")
    assert port.status is Status.FAIL
    assert "0.0.0.0:9090" in port.value
    assert f"systemctl stop {UNIT}" in port.remedy


def test_stopped(tmp_path: Path) -> None:
    [unit, _] = services(tmp_path, active="failed")
    assert unit.status is Status.FAIL
    assert "journalctl" in unit.remedy


def targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[Any], rules: list[Any] | None = None
) -> list[Result]:
    answers = {"targets?state=active": {"activeTargets": found}, "rules": {"groups": [{"rules": rules or [GOOD_RULE]}]}}
    monkeypatch.setattr(prometheus, "_ask", lambda url: answers[url.partition("/api/v1/")[2]])
    return list(prometheus.targets(config(tmp_path, 9090), FakeHost(tmp_path)))


def test_all_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = targets(tmp_path, monkeypatch, [UP, UP, UNKNOWN])
    assert [result.status for result in found] == [Status.PASS, Status.PASS]
    assert found[0].value == "2 up, 1 not asked yet"


@pytest.mark.parametrize(("found", "value"), [([UP, DOWN], "node: connection refused"), ([], "none")])
def test_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[Any], value: str) -> None:
    seen, _ = targets(tmp_path, monkeypatch, found)
    assert seen.status is Status.FAIL
    assert seen.value == value


def test_a_rule_that_cannot_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rules = targets(tmp_path, monkeypatch, [UP], [GOOD_RULE, BAD_RULE])
    assert rules.status is Status.FAIL
    assert rules.value == "LocalLlmDisk: no such function"


def test_no_answer(tmp_path: Path) -> None:
    with serve() as api:  # something else listens there
        port = int(api.url.rsplit(":", 1)[1])
        [result] = prometheus.targets(config(tmp_path, port), FakeHost(tmp_path))
    assert result.status is Status.FAIL
    [result] = prometheus.targets(config(tmp_path, port), FakeHost(tmp_path))
    assert result.status is Status.FAIL
    assert f"journalctl -u {UNIT}" in result.remedy
