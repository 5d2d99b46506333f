"""The checks of Prometheus see when it is down or blind."""

from pathlib import Path
from typing import Any

import pytest

from checks import prometheus
from checks.contract.config import Config
from checks.result import Result, Status
from tests.unit.checks_support import FakeHost, make_config, show

UNIT = "local-llm-prometheus.service"
RELAY = "local-llm-alert-relay.timer"
UP = {"labels": {"job": "gateway"}, "health": "up", "lastError": ""}
DOWN = {"labels": {"job": "node"}, "health": "down", "lastError": "connection refused"}
UNKNOWN = {"labels": {"job": "requests"}, "health": "unknown", "lastError": ""}
GOOD_RULE = {"name": "LocalLlmApiDown", "health": "ok"}
BAD_RULE = {"name": "LocalLlmDisk", "health": "err", "lastError": "no such function"}


def config(tmp_path: Path) -> Config:
    return make_config(tmp_path, prometheus={"socket": "/prometheus.sock", "units": [UNIT, RELAY]})


def services(tmp_path: Path, active: str = "active") -> list[Result]:
    host = FakeHost(tmp_path)
    host.put_units(show(UNIT, ActiveState=active), show(RELAY))
    return list(prometheus.services(config(tmp_path), host))


def test_off_there_is_nothing_to_check(tmp_path: Path) -> None:
    off = make_config(tmp_path)
    assert list(prometheus.services(off, FakeHost(tmp_path))) == []
    assert list(prometheus.targets(off, FakeHost(tmp_path))) == []


def test_as_deployed(tmp_path: Path) -> None:
    assert [result.status for result in services(tmp_path)] == [Status.PASS, Status.PASS]


def test_stopped(tmp_path: Path) -> None:
    [unit, _] = services(tmp_path, active="failed")
    assert unit.status is Status.FAIL
    assert "journalctl" in unit.remedy


def targets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: list[Any],
    rules: list[Any] | None = None,
    uptime_seconds: int = 4000,
) -> list[Result]:
    answers = {"targets?state=active": {"activeTargets": found}, "rules": {"groups": [{"rules": rules or [GOOD_RULE]}]}}
    monkeypatch.setattr(prometheus, "ask", lambda _prometheus, _host, what: answers[what])
    host = FakeHost(tmp_path)
    host.put_units(show(UNIT, ActiveEnterTimestampMonotonic=str(int(host.monotonic() - uptime_seconds) * 10**6)))
    return list(prometheus.targets(config(tmp_path), host))


def test_all_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = targets(tmp_path, monkeypatch, [UP, UP, UNKNOWN])
    assert [result.status for result in found] == [Status.PASS, Status.PASS]
    assert found[0].value == "2 up, 1 not asked yet"


@pytest.mark.parametrize(("found", "value"), [([UP, DOWN], "node: connection refused"), ([], "none")])
def test_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[Any], value: str) -> None:
    seen, _ = targets(tmp_path, monkeypatch, found)
    assert seen.status is Status.FAIL
    assert seen.value == value


def test_one_that_has_just_started_knows_no_targets_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = targets(tmp_path, monkeypatch, [], uptime_seconds=3)
    assert (seen.status, seen.value) == (Status.PASS, "none known yet")
    seen, _ = targets(tmp_path, monkeypatch, [DOWN], uptime_seconds=3)
    assert seen.status is Status.FAIL


def test_a_rule_that_cannot_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rules = targets(tmp_path, monkeypatch, [UP], [GOOD_RULE, BAD_RULE])
    assert rules.status is Status.FAIL
    assert rules.value == "LocalLlmDisk: no such function"


def test_no_answer(tmp_path: Path) -> None:
    [result] = prometheus.targets(config(tmp_path), FakeHost(tmp_path))
    assert result.status is Status.FAIL
    assert f"journalctl -u {UNIT}" in result.remedy
