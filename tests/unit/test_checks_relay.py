"""What only Prometheus sees goes out once each way, by the ways of the host's own alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import alert_rules, alerts, delivery, prometheus, relay
from checks.alert_rules import Limits, State
from checks.host import Command
from tests.unit.checks_support import NOW, FakeHost, make_config

WATCHED = {"socket": "/prometheus.sock", "units": ["local-llm-prometheus.service"]}
OWN = {"disk_free_percent": 10.0, "restarts_per_hour": 3, "after_checks": 2, "clear_after_checks": 2,
       "reminder_hours": None, "webhook_format": "json", "command": None}  # fmt: skip
DOWN = "prometheus-down"


def alert(rule: str, state: str = "firing", summary: str = "It is so.") -> dict[str, Any]:
    return {"labels": {"alertname": rule}, "annotations": {"summary": summary}, "state": state}


class Watch:
    """Runs of the relay, and what each told; an answer of None is none."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, on: bool = True) -> None:
        self.host = FakeHost(folder)
        self.host.commands["systemctl start --no-block"] = Command(0, "", "")
        self.config = make_config(folder, prometheus=WATCHED if on else None, alerts=OWN)
        self.log = str(folder / "health.log")
        self.answer: Sequence[dict[str, Any]] | None = []
        monkeypatch.setattr(prometheus, "ask", self._ask)
        monkeypatch.setattr(delivery, "to_journal", lambda *_: None)

    def _ask(self, *_: object) -> Any:
        if self.answer is None:
            raise ConnectionRefusedError
        return {"alerts": self.answer}

    def run(self, *answers: Sequence[dict[str, Any]] | None) -> list[tuple[str, str]]:
        before = len(list(delivery.waiting(self.host, "webhook")))
        for answer in answers:
            self.answer = answer
            relay.run(self.config, self.host, self.log)
        told = [json.loads(path.read_text()) for path in delivery.waiting(self.host, "webhook")][before:]
        return [(each["alert"], each["event"]) for each in told]


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path, monkeypatch)


def test_one_message_each_way(watch: Watch) -> None:
    stopped = [alert("LocalLlmChecksStopped")]
    assert watch.run([], stopped, stopped) == [("checks-stopped", "raised")]
    assert "alert=checks-stopped" in Path(watch.log).read_text()
    assert list(alert_rules.opened(alerts.current(watch.config, watch.host))) == ["checks-stopped"]
    assert watch.run([], [], []) == [("checks-stopped", "cleared")]


def test_several_of_one_rule_are_one_alert_that_names_them_all(watch: Watch) -> None:
    watch.run([alert("LocalLlmTargetDown", summary="node"), alert("LocalLlmTargetDown", summary="gateway")])
    [path] = delivery.waiting(watch.host, "webhook")
    assert json.loads(path.read_text())["text"] == "gateway node"


def test_a_prometheus_that_restarts_clears_nothing(watch: Watch) -> None:
    watch.run([alert("LocalLlmTargetDown")])
    waits = [alert("LocalLlmTargetDown", "pending")]
    assert watch.run(None, waits, waits, waits, waits) == []


def test_what_the_host_tells_itself_is_not_told_again(watch: Watch) -> None:
    assert watch.run([alert("LocalLlmApiDown"), alert("LocalLlmDisk")]) == []


def test_a_prometheus_that_is_gone_is_told_as_well(watch: Watch) -> None:
    assert watch.run(None) == []
    assert watch.run(None, None) == [(DOWN, "raised")]
    assert watch.run([], []) == [(DOWN, "cleared")]


@pytest.mark.parametrize("answer", [[{}], [{"labels": {}}], ["x"], 7])
def test_what_is_no_answer_of_prometheus_says_nothing_of_it(watch: Watch, answer: Any) -> None:
    assert watch.run(answer, answer) == [(DOWN, "raised")]


def test_off_nothing_is_asked_or_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = Watch(tmp_path, monkeypatch)
    on.run([alert("LocalLlmTargetDown")])
    off = Watch(tmp_path, monkeypatch, on=False)
    assert off.run(None, None, None) == []
    assert not alert_rules.opened(alerts.current(off.config, off.host))


STATES = st.lists(st.sampled_from(["firing", "pending", "gone", "no answer"]), max_size=40)


@given(STATES)
def test_messages_alternate_and_say_what_is(states: list[str]) -> None:
    """Whatever comes: raised and cleared by turns, raised only by what fires, cleared only by what is gone."""
    limits = Limits(1, 5.0, 99.0, 10.0, 3, after=2, clear_after=2, interval_seconds=300.0)
    state, told = State(), []
    for number, what in enumerate(states):
        if what == "no answer":
            found = relay.silent()
        else:
            found = relay.verdicts([] if what == "gone" else [alert("LocalLlmTargetDown", what)])
        for message in alert_rules.advanced(limits, state, found, NOW + 300 * number):
            if message.alert == "target-down":
                told.append(message.event)
                assert {"raised": "firing", "cleared": "gone"}[message.event] == what
    assert told == ["raised", "cleared"] * (len(told) // 2) + ["raised"] * (len(told) % 2)
    assert bool(told) == ("firing" in states)
