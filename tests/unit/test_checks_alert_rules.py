"""Alerts over generated months: a quiet one raises nothing, a faulty one misses nothing, flapping ends in silence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.alert_rules import RULES, Limits, Message, Seen, State, opened, step
from checks.samples import Histogram, Sample
from tests.unit.checks_support import make_config

START = 1_795_305_600  # midnight, UTC
INTERVAL = 300
MONTH = 31 * 86400
HOUR = 3600
MIB = 1024**2
GIB = 1024**3

LIMITS = Limits(
    memory_bytes=2560 * MIB,
    response_seconds=5.0,
    uptime_percent=99.0,
    disk_free_percent=10.0,
    restarts_per_hour=3,
    after=2,
    clear_after=2,
    interval_seconds=INTERVAL,
)

WELL = Sample(
    time=START,
    window_seconds=float(INTERVAL),
    uptime_seconds=86400.0,
    service="active",
    gateway="active",
    api="ok",
    api_seconds=0.003,
    probe="ok",
    rss_bytes=1204 * MIB,
    oom_kills=0,
    gateway_oom_kills=0,
    restarts=0,
    gateway_restarts=0,
    disk_free_bytes=20 * GIB,
    disk_total_bytes=100 * GIB,
    cloud="up",
    drill_ok=True,
)


def seen(number: int = 0, *, paused: Any = False, refused: Any = False, **changes: Any) -> Seen:
    """The sample of some interval, well but for the changes."""
    sample = replace(WELL, time=START + number * INTERVAL, **changes)
    return Seen(sample, paused, cloud_text="down: it refuses the key" if refused else "", cloud_refused=refused)


def answers(*seconds: float) -> dict[str, Histogram]:
    return {"local": Histogram.of(seconds)}


def play(samples: Iterator[Seen] | list[Seen], limits: Limits = LIMITS, state: State | None = None) -> list[Message]:
    """All messages; the state is written and read back now and then, as between any two runs."""
    state = state or State()
    messages = []
    for number, each in enumerate(samples):
        messages += step(limits, state, each)
        if number % 20 == 0:
            vars(state).update(vars(State.from_json(json.loads(json.dumps(state.as_json())))))
    return messages


def told(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.alert, message.event) for message in messages]


# A quiet month: everything that happens on a machine that is well.


def quiet_month(chance: random.Random, undisturbed: Callable[[int], bool] = lambda _now: False) -> Iterator[Seen]:
    """31 days of a busy, healthy machine: deploys, reboots, gaps, blips of one sample, single crashes, long answers."""
    restarts, free, next_event, blip, booted = 0, 30.0, 0, "", START - 86400
    for now in range(START, START + MONTH, INTERVAL):
        event = ""
        if now >= next_event and not undisturbed(now):
            event = chance.choice(
                ["deploy", "reboot", "off", "crash", "restart", "slow start", "cloud", "spike", "busy", "drill"]
            )
            next_event = now + chance.randrange(12 * HOUR, 36 * HOUR)
        if event == "off":
            next_event = max(next_event, now + 3 * HOUR + INTERVAL)
            booted = now + 3 * HOUR
        if now < booted:
            continue
        if event == "reboot":
            restarts, booted = 0, now - 20
        restarts = {"crash": restarts + 1, "restart": 0, "deploy": 0}.get(event, restarts)
        free = min(60.0, max(10.4, free + chance.gauss(0, 0.3)))
        changes: dict[str, Any] = {}
        if event == "reboot":
            changes = {"service": "inactive", "gateway": "inactive", "api": "refused", "probe": "none"}
        elif event in ("crash", "restart", "deploy"):
            changes = {"service": "activating", "api": "http_503", "probe": "none", "rss_bytes": None}
        elif event == "slow start":
            changes = {"api": "http_503", "probe": "none"}
        elif event == "cloud":
            changes = {"cloud": "down"}
        elif event == "spike":
            changes = {"rss_bytes": 2700 * MIB}
        elif event == "busy":
            changes = {"probe": "skipped-busy"}
        elif event == "drill":
            changes = {"api": "http_503", "cloud": "down", "probe": "none"}
        elif blip != "unknown" and chance.random() < 0.01:
            blip = "unknown"
            changes = {
                "api": None,
                "service": None,
                "gateway": None,
                "cloud": None,
                "oom_kills": None,
                "rss_bytes": None,
            }
        else:
            blip = ""
        sample = replace(
            WELL,
            time=now + chance.randrange(5),
            uptime_seconds=float(now - booted),
            restarts=restarts,
            responses=_traffic(chance, now),
            disk_free_bytes=int(free * GIB),
            **{"rss_bytes": int(chance.gauss(1400, 150)) * MIB, **changes},
        )
        yield Seen(sample, paused=event in ("deploy", "drill"))


def _traffic(chance: random.Random, now: int) -> dict[str, Histogram]:
    """Requests by day, few by night; a thirtieth of the local answers are long texts: 3.7 s on average."""
    busy = 8 <= now % 86400 // HOUR < 23
    local = [
        60.0 if chance.random() < 1 / 30 else chance.uniform(0.5, 3) for _ in range(chance.randrange(12 if busy else 2))
    ]
    return {"local": Histogram.of(local), "cloud": Histogram.of([30.0] * 5), "gateway": Histogram.of([0.001])}


@pytest.mark.parametrize("seed", range(4))
def test_a_quiet_month_raises_nothing(seed: int) -> None:
    samples = list(quiet_month(random.Random(seed)))
    assert len(samples) > 8000
    assert play(samples) == []


BUSY = replace(WELL, responses=answers(*[1.0] * 5))

# A faulty month: every fault, several times, long enough to matter.


@dataclass(frozen=True)
class Fault:
    """What samples look like while it lasts, the alert that it must raise, and the intervals that this may take."""

    alert: str
    within: int
    change: Callable[[Sample, int], Seen]
    lasts: int = 12
    clears_within: int = 4


def _as(**changes: Any) -> Callable[[Sample, int], Seen]:
    return lambda sample, _number: Seen(replace(sample, **changes))


def _refused(sample: Sample, _number: int) -> Seen:
    return Seen(replace(sample, cloud="down"), cloud_text="down: it refuses the key", cloud_refused=True)


def _crashing(times: int) -> Callable[[Sample, int], Seen]:
    return lambda sample, number: Seen(replace(sample, restarts=(sample.restarts or 0) + times * (number + 1)))


FAULTS = [
    Fault("api-down", 1, _as(service="failed", api="http_503", probe="none", rss_bytes=None)),
    Fault("api-down", 1, _as(service="inactive", api="http_503", probe="none", rss_bytes=None)),
    Fault("api-down", 1, _as(gateway="inactive", api="refused", probe="none")),
    Fault("api-down", 2, _as(api="http_503", probe="none")),
    Fault("api-down", 2, _as(api="timeout", probe="none")),
    Fault("api-down", 2, _as(probe="failed")),
    Fault("api-down", 2, _as(service="activating", api="http_503", probe="none", rss_bytes=None)),
    Fault("memory", 2, _as(rss_bytes=2600 * MIB)),
    Fault("oom-kill", 1, lambda sample, number: Seen(replace(sample, oom_kills=1 + number // 6)), 12, 12 + 4),
    Fault("memory-stall", 2, _as(memory_stalled_percent=57.0)),
    Fault("restart-loop", 1, _crashing(30), 12, 12 + 4),
    Fault("restart-loop", 3, _crashing(1), 12, 12 + 4),
    Fault("disk", 2, _as(disk_free_bytes=9 * GIB)),
    Fault("disk", 2, _as(disk_free_bytes=0)),
    Fault("cloud-down", 2, _as(cloud="down")),
    Fault("cloud-refused", 2, _refused),
    Fault("drill-failed", 1, _as(drill_ok=False)),
    Fault("slow-responses", 2, _as(responses=answers(*[6.5] * 20)), 12, 6),
    Fault("slow-responses", 8, _as(responses=answers(9.0, 7.0, 8.0)), 24, 8),
    # A quarter of an hour is 1 % of a day; it is over a day later.
    Fault("uptime", 3, _as(service="failed", api="http_503", probe="none"), 12, 24 * 12 + 4),
    # 1 % of a week is 1 h 41 min.
    Fault("uptime", 3, _as(api="timeout", probe="none"), 24, 7 * 24 * 12 + 4),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.alert)
def test_a_fault_is_told_once_and_its_end_once(fault: Fault) -> None:
    began = START + 2 * HOUR
    ended = began + fault.lasts * INTERVAL
    times = range(START, ended + (fault.clears_within + 12) * INTERVAL, INTERVAL)
    messages = play([_with_fault(fault, Seen(replace(BUSY, time=now)), began, ended) for now in times])
    own = [message for message in messages if message.alert == fault.alert]
    assert [message.event for message in own] == ["raised", "cleared"]
    assert began <= own[0].time < began + fault.within * INTERVAL
    assert ended <= own[1].time <= ended + fault.clears_within * INTERVAL
    assert own[0].text
    assert own[0].remedy
    # What else is told is told of the same trouble.
    assert {message.alert for message in messages} - {fault.alert} <= {"api-down", "uptime"}


@pytest.mark.parametrize("seed", range(2))
def test_a_faulty_month_misses_nothing_and_invents_nothing(seed: int) -> None:
    """Every fault in turn, more than a day apart, in a month that is otherwise as busy as the quiet one."""
    begins = {START + 86400 + number * 33 * HOUR: fault for number, fault in enumerate(FAULTS)}

    def in_a_fault(now: int) -> bool:
        return any(began - 4 * HOUR < now < began + fault.lasts * INTERVAL for began, fault in begins.items())

    samples = []
    for usual in quiet_month(random.Random(seed), undisturbed=in_a_fault):
        faulty = usual
        for began, fault in begins.items():
            faulty = _with_fault(fault, faulty, began, began + fault.lasts * INTERVAL)
        samples.append(faulty)
    assert samples[-1].sample.time > max(begins) + 8 * HOUR

    # Time without service adds up, so that its alert spans faults.
    raised = [message for message in play(samples) if message.event == "raised" and message.alert != "uptime"]
    found = []
    for began, fault in begins.items():
        span = range(began, began + fault.lasts * INTERVAL)
        names = [message.alert for message in raised if int(message.time) in span]
        assert names == ([fault.alert] if fault.alert != "uptime" else ["api-down"]), began
        found += names
    assert len(raised) == len(found)


def _with_fault(fault: Fault, usual: Seen, began: int, ended: int) -> Seen:
    if not began <= usual.sample.time < ended or usual.paused:
        return usual
    sample = replace(BUSY, time=usual.sample.time, restarts=usual.sample.restarts)
    return fault.change(sample, (sample.time - began) // INTERVAL)


def test_every_alert_has_a_fault() -> None:
    assert {fault.alert for fault in FAULTS} == set(RULES)


# Flapping


@given(st.lists(st.booleans(), min_size=1, max_size=600))
def test_no_day_brings_a_storm(outages: list[bool]) -> None:
    messages = play([seen(n, **({"cloud": "down"} if bad else {})) for n, bad in enumerate(outages)])
    times = [message.time for message in messages]
    for begin in times:
        assert sum(begin <= time < begin + 86400 for time in times) <= 16


@pytest.mark.parametrize("period", [2, 4, 6, 12])
def test_a_cloud_that_comes_and_goes_all_day_is_told_a_few_times(period: int) -> None:
    samples = [seen(n, **({"cloud": "down"} if n % period < period // 2 else {})) for n in range(288)]
    assert len(play(samples)) <= 8


def test_messages_alternate() -> None:
    chance = random.Random(1)
    samples = [seen(n, **({"cloud": "down"} if chance.random() < 0.5 else {})) for n in range(3000)]
    events = [message.event for message in play(samples)]
    assert events
    assert events == [("raised", "cleared")[n % 2] for n in range(len(events))]


# Single rules


def test_after_and_clear_after_are_counted() -> None:
    limits = replace(LIMITS, after=3, clear_after=4)
    samples = [seen(n, rss_bytes=(2600 if 10 <= n < 20 else 1200) * MIB) for n in range(40)]
    messages = play(samples, limits)
    assert told(messages) == [("memory", "raised"), ("memory", "cleared")]
    assert [(message.time - START) / INTERVAL for message in messages] == [12, 23]
    assert messages[1].since == messages[0].time


def test_between_the_limit_and_its_margin_nothing_changes() -> None:
    assert play([seen(n, rss_bytes=2550 * MIB) for n in range(20)]) == []
    samples = [seen(n, rss_bytes=(2600 if n < 5 else 2550) * MIB) for n in range(20)]
    assert told(play(samples)) == [("memory", "raised")]


def test_what_is_not_known_is_neither_good_nor_bad() -> None:
    names = "api service gateway rss_bytes oom_kills restarts cloud disk_free_bytes disk_total_bytes drill_ok probe"
    nothing: dict[str, Any] = dict.fromkeys(names.split())
    assert play([seen(n, **nothing) for n in range(50)]) == []
    state = State()
    down: dict[str, Any] = {"service": "failed", "api": "http_503", "cloud": "down", "disk_free_bytes": 0}
    assert {name for name, _ in told(play([seen(n, **down) for n in range(3)], state=state))} >= {"api-down", "disk"}
    assert {alert for alert, event in told(play([seen(n, **nothing) for n in range(3, 50)], state=state))} == set()


def test_a_gap_changes_nothing() -> None:
    samples = [seen(0), seen(1, api="timeout", probe="none"), seen(200, window_seconds=199.0 * INTERVAL)]
    assert play(samples) == []
    # Two bad ones in a row are two, whatever lies between.
    assert told(play([seen(0, rss_bytes=2600 * MIB), seen(50, rss_bytes=2600 * MIB)])) == [("memory", "raised")]


def test_a_gap_is_no_downtime() -> None:
    samples = [seen(n, window_seconds=50.0 * INTERVAL, api="timeout", probe="none") for n in (0, 50)]
    assert "uptime" not in {name for name, _ in told(play(samples))}


def test_a_deploy_or_a_drill_is_no_outage() -> None:
    down = {"service": "inactive", "gateway": "inactive", "api": "refused", "probe": "none", "cloud": "down"}
    assert play([seen(n, paused=True, **down) for n in range(10)]) == []


def test_a_machine_that_starts_is_given_time() -> None:
    down = {"service": "inactive", "gateway": "inactive", "api": "refused", "probe": "none"}
    assert play([seen(0, uptime_seconds=30.0, **down), seen(1)]) == []
    assert told(play([seen(0, uptime_seconds=200.0, **down)])) == [("api-down", "raised")]


def test_counters_that_begin_anew_are_no_events() -> None:
    samples = [seen(0, restarts=50, oom_kills=4), seen(1, restarts=50, oom_kills=4), seen(2), seen(3, restarts=1)]
    assert play(samples) == []


def test_a_kill_right_after_a_restart_is_seen() -> None:
    assert told(play([seen(0, oom_kills=4), seen(1, oom_kills=1)])) == [("oom-kill", "raised")]


def test_the_gateway_s_kills_and_crashes_are_told() -> None:
    (killed,) = play([seen(0), seen(1, gateway_oom_kills=1)])
    assert (killed.alert, killed.text) == (
        "oom-kill",
        "the kernel killed local-llm-gateway once in the last hour for lack of memory",
    )
    (looping,) = play([seen(0), seen(1, gateway_restarts=2, restarts=1)])
    assert (looping.alert, looping.text) == (
        "restart-loop",
        "local-llm crashed once and local-llm-gateway crashed 2 times in the last hour",
    )


def test_a_gateway_that_refuses_is_down_where_no_cloud_stands_in() -> None:
    refusing = [seen(n, probe="refused", cloud="none") for n in range(2)]
    (message,) = play(refusing)
    assert message.alert == "api-down"
    assert "systemctl reload local-llm-gateway" in message.text
    assert play([seen(n, probe="refused", cloud="up") for n in range(5)]) == []


def test_a_healed_service_counts_as_restarted() -> None:
    samples = [seen(n, healed="restarted local-llm.service") for n in range(3)]
    assert told(play(samples)) == [("restart-loop", "raised")]


def test_the_text_tells_of_restarts_in_vain() -> None:
    samples = [seen(n, api="timeout", probe="none", healed="restarted" if n == 1 else None) for n in range(2)]
    assert "restarted once in the last hour" in play(samples)[0].text


def test_a_refused_key_is_not_told_twice() -> None:
    assert told(play([seen(n, refused=True, cloud="down") for n in range(10)])) == [("cloud-refused", "raised")]


def test_requests_that_the_cloud_refuses_are_told_though_its_checks_are_well() -> None:
    refused = {"cloud_refusals": {"401": 3, "402": 1}, "requests": {"local/default/2xx": 4}}
    (message,) = play([seen(0, **refused), seen(1, **refused), seen(2)])
    assert (message.alert, message.event) == ("cloud-refused", "raised")
    assert message.text == "the cloud refuses every request: HTTP status 401 3 times, HTTP status 402 once"
    answered = {"requests": {"cloud/default/2xx": 1}}
    assert told(play([seen(0, **refused), *[seen(n, **answered) for n in (1, 2)]]))[1] == ("cloud-refused", "cleared")
    assert play([seen(0, **{**refused, **answered})]) == []
    assert play([seen(0, paused=True, **refused)]) == []


@pytest.mark.parametrize("other", ["gateway", "cloud"])
def test_only_the_local_models_answers_count(other: str) -> None:
    slow, fast = Histogram.of([6.0] * 20), Histogram.of([0.001] * 1000)
    assert told(play([seen(n, responses={"local": slow, other: fast}) for n in range(2)])) == [
        ("slow-responses", "raised")
    ]
    assert play([seen(n, responses={"local": fast, other: slow}) for n in range(20)]) == []


@pytest.mark.parametrize(("longest", "raised"), [(30.0, False), (100.0, True)])
def test_a_few_long_texts_are_judged_by_their_mean(longest: float, raised: bool) -> None:
    """One text among ten: 3.9 s on average is well, 10.9 s is not, but that takes more than ten to be sure of."""
    messages = play([seen(n, responses=answers(*[1.0] * 9, longest)) for n in range(40)])
    assert bool(messages) is raised
    assert all(message.time > START + 2 * INTERVAL for message in messages)


def test_reminders_come_while_it_is_open() -> None:
    limits = replace(LIMITS, reminder_seconds=6 * 3600.0)
    samples = [seen(n, cloud="down" if n < 200 else "up") for n in range(300)]
    messages = [message for message in play(samples, limits) if message.alert == "cloud-down"]
    assert [message.event for message in messages] == ["raised", "reminder", "reminder", "cleared"]


@pytest.mark.parametrize("jump", [-30 * 86400, -3600, 3600, 30 * 86400])
def test_a_clock_that_jumps_raises_nothing_and_stops_nothing(jump: int) -> None:
    well = [seen(n) for n in range(20)]
    later = [Seen(replace(each.sample, time=each.sample.time + jump)) for each in (seen(n) for n in range(20, 40))]
    assert play([*well, *later]) == []
    down = [Seen(replace(each.sample, time=each.sample.time + jump, cloud="down")) for each in well]
    assert told(play([*[seen(n, cloud="down") for n in range(5)], *down[5:], *later])) == [
        ("cloud-down", "raised"),
        ("cloud-down", "cleared"),
    ]


@pytest.mark.parametrize("jump", [120 * 86400, -30 * 86400, -START])
def test_a_wrong_clock_for_one_sample_makes_nothing_forgotten(jump: int) -> None:
    crashed: dict[str, Any] = {"restarts": 2}
    down: dict[str, Any] = {"api": "timeout", "probe": "none"}
    before = [seen(0), *(seen(n, **crashed, **down) for n in (1, 2)), seen(3, **crashed)]
    astray = Seen(replace(WELL, time=START + jump, **crashed))
    assert set(told(play([*before, astray]))) <= {("api-down", "raised"), ("api-down", "cleared")}
    messages = play([*before, astray, seen(4, restarts=3, **down), seen(5, restarts=3)])
    assert ("restart-loop", "raised") in told(messages)
    assert ("uptime", "raised") in told(messages)


def test_what_is_remembered_is_bounded() -> None:
    state = State()
    for n in range(3000):
        step(LIMITS, state, seen(n, restarts=n * 60, oom_kills=n, api="timeout", probe="none"))
    assert len(json.dumps(state.as_json())) < 30_000


def test_open_alerts_are_listed_in_order() -> None:
    state = State()
    for n in range(10):
        step(LIMITS, state, seen(n, cloud="down", rss_bytes=(2600 if n > 4 else 1200) * MIB))
    assert list(opened(state)) == ["cloud-down", "memory"]


def test_limits_come_from_the_configuration(tmp_path: Path) -> None:
    limits = Limits.of(make_config(tmp_path))
    assert limits == LIMITS
