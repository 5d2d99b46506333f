"""The report of seven days: figures checked against arithmetic by hand, gaps that are no uptime, counters that fall."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import cli, week
from checks.contract.config import Config
from checks.contract.paths import SAMPLES
from checks.goals import Goal, Targets, Verdict, judge
from checks.history import History, Window, grown, growth, summarise, window
from checks.samples import Histogram, Sample, Store
from checks.week import Report
from tests.unit.checks_support import MIB, FakeHost, make_config

Capture = pytest.CaptureFixture[str]

INTERVAL = 300
UNTIL = 1_795_384_800  # 2026-11-22 22:00 UTC
SINCE = UNTIL - 7 * 86_400
WEEK = Window(SINCE, UNTIL, INTERVAL)
TARGETS = Targets(utility_percent=90.0, response_seconds=5.0, uptime_percent=99.0, memory_mib=2560, memory_max_mib=3072)


def sample(slot: int, **changes: Any) -> Sample:
    """A sample of a host that does well, a second after the slot's beginning; `slot` 0 is the week's first."""
    time = SINCE + slot * INTERVAL + 1
    well = Sample(
        time=time,
        window_seconds=300.0,
        boot_id="first",
        uptime_seconds=1_000_000.0 + slot * INTERVAL,
        service="active",
        gateway="active",
        api="ok",
        probe="ok",
        rss_bytes=1700 * MIB,
        memory_bytes=1750 * MIB,
        oom_kills=0,
        restarts=0,
    )
    return replace(well, **changes)


def good_week(skip: Iterable[int] = (), **changes: Any) -> list[Sample]:
    missing = set(skip)
    return [sample(slot, **changes) for slot in range(2016) if slot not in missing]


def judged(samples: list[Sample], before: Sample | None = None) -> dict[str, Goal]:
    return {goal.name: goal for goal in judge(summarise(WEEK, samples, before), TARGETS)}


def test_a_week_by_hand() -> None:
    """2,016 checks are expected. One hour of them is missing, one found it down on Monday at 10, and on Monday at noon
    the cloud answered; each of the others brings one local answer of 2 s."""
    monday_ten = 12 * 12  # in slots: the week begins on Sunday, 2026-11-15, at 22:00
    samples = []
    for number in range(2016):
        if 600 <= number < 612:  # 2,004 samples are left
            continue
        changes: dict[str, Any] = {
            "requests": {"local/utility-task/2xx": 1},
            "responses": {"local": Histogram.of([2.0])},
            "tokens_out": 10 * number,
            "generation_seconds": 1.0 * number,
        }
        if number == monday_ten + 3:  # down: nobody was answered by the model
            changes |= {"api": "refused", "probe": "none", "requests": {"gateway/utility-task/5xx": 4}, "responses": {}}
        if number == monday_ten + 24:
            changes |= {
                "requests": {"cloud/short-prompt/2xx": 3, "cloud/utility-task/2xx": 1, "cloud/reasoning/2xx": 1},
                "responses": {"cloud": Histogram.of([1.0, 1.0, 1.0, 1.0, 40.0])},
                "rss_bytes": 1800 * MIB,
            }
        samples.append(sample(number, **changes))
    found = judged(samples)

    # 2,004 samples, two of which brought no local answer: 2,002 local, 4 by the cloud. 2002/2006 = 99.8006 %.
    utility = found["utility-local"]
    assert (utility.verdict, utility.value, utility.text) == (Verdict.PASS, 99.8006, "99.80 %")
    assert utility.detail == ("2,002 of 2,006 answered utility requests; 4 more failed")
    assert [week.hour_words(hour) for hour in utility.worst] == ["2026-11-16 12:00: 4 of 15 by the cloud"]

    # Every local answer took 2 s; the cloud's mean is (4 × 1 s + 40 s) / 5.
    response = found["response-time"]
    assert (response.verdict, response.value) == (Verdict.PASS, 2.0)
    assert "cloud: 5 answers, mean 8.80 s" in response.detail

    assert (found["oom-kills"].verdict, found["oom-kills"].value) == (Verdict.PASS, 0.0)

    # 2,003 of 2,016 are known to be up, 99.355 %; of the 2,004 known ones 99.950 %; at most 2,015: 99.950 %.
    uptime = found["uptime"]
    assert (uptime.verdict, uptime.text) == (Verdict.PASS, "99.95 % of known time")
    assert uptime.detail == (
        "2,003 of 2,016 checks found it up, 1 down, 12 are missing: between 99.35 % and 99.95 % of the whole time"
    )
    assert [week.hour_words(hour) for hour in uptime.worst] == ["2026-11-16 10:00: down in 1 of 12 checks"]

    assert (found["memory"].verdict, found["memory"].value) == (Verdict.PASS, 1800.0)
    assert [week.hour_words(hour) for hour in found["memory"].worst] == ["2026-11-16 12:00: 1,800 MiB"]

    # From sample 0 to 2,015: 20,150 tokens in 2,015 s.
    totals = summarise(WEEK, samples).totals
    assert (totals.tokens_out, totals.generated_tokens_per_second) == (20_150, 10.0)


def test_hours_and_days_add_up_to_the_whole() -> None:
    histogram = Histogram.of([1.0, 3.0])
    changes: dict[str, Any] = {"requests": {"local/short-prompt/2xx": 2}, "responses": {"local": histogram}}
    history = summarise(WEEK, good_week(skip=range(100, 150), **changes))
    for periods in (history.hours, history.days):
        assert sum(period.expected for period in periods) == 2016
        assert sum(period.known for period in periods) == 1966
        assert sum(period.requests.get("local", 0) for period in periods) == 2 * 1966
        assert sum(period.responses["local"].count for period in periods if period.responses) == 2 * 1966
    assert len(history.hours) == 168
    # From 22:00 of the first day to 22:00 of the last: 8 days of the calendar, two of them in part.
    assert [day.expected for day in history.days] == [24, *[288] * 6, 264]
    assert history.hours[0].responses["local"].mean == 2.0


@pytest.mark.parametrize(
    ("missing", "down", "verdict"),
    [
        (0, 20, Verdict.PASS),  # 1996/2016 = 99.008 %
        (0, 21, Verdict.FAIL),  # 1995/2016 = 98.958 %
        (20, 0, Verdict.PASS),  # even if it was down whenever nobody looked
        (21, 0, Verdict.UNKNOWN),  # it may have been
        (10, 11, Verdict.UNKNOWN),
        (1000, 20, Verdict.UNKNOWN),
        (1000, 21, Verdict.FAIL),  # it was down for more than 1 % of the time, whatever the rest was
        (2016, 0, Verdict.UNKNOWN),
    ],
)
def test_a_gap_is_not_uptime(missing: int, down: int, verdict: Verdict) -> None:
    samples = good_week(skip=range(missing))
    samples = [replace(each, api="timeout") for each in samples[:down]] + samples[down:]
    assert judged(samples)["uptime"].verdict is verdict


def test_a_probe_that_fails_is_down_and_one_that_was_skipped_is_not() -> None:
    assert judged(good_week(probe="failed"))["uptime"].value == 0
    assert judged(good_week(probe="skipped-busy"))["uptime"].value == 100
    assert judged(good_week(api="loading", probe="none"))["uptime"].value == 0


def test_what_a_sample_does_not_know_is_a_gap() -> None:
    assert judged(good_week(api=None))["uptime"].text == "not known"


def test_without_a_sample_nothing_is_known() -> None:
    found = judged([])
    assert {goal.verdict for goal in found.values()} == {Verdict.UNKNOWN}
    assert {goal.value for goal in found.values()} == {None}


@pytest.mark.parametrize(("missing", "verdict"), [(201, Verdict.PASS), (202, Verdict.UNKNOWN)])
def test_a_goal_is_met_only_where_nine_tenths_are_known(missing: int, verdict: Verdict) -> None:
    changes: dict[str, Any] = {"requests": {"local/utility-task/2xx": 1}, "responses": {"local": Histogram.of([1.0])}}
    found = judged(good_week(skip=range(missing), **changes))
    assert {found[name].verdict for name in ("utility-local", "response-time", "oom-kills", "memory")} == {verdict}


def test_a_goal_is_missed_however_little_is_known() -> None:
    samples = [
        sample(0),
        sample(
            1,
            oom_kills=1,
            rss_bytes=2561 * MIB,
            requests={"local/utility-task/2xx": 8, "cloud/utility-task/2xx": 1},
            responses={"local": Histogram.of([5.0])},
        ),
    ]
    found = judged(samples)
    assert {name for name, goal in found.items() if goal.verdict is Verdict.FAIL} == {
        "utility-local",
        "response-time",
        "oom-kills",
        "memory",
    }
    assert [week.hour_words(hour) for hour in found["oom-kills"].worst] == ["2026-11-15 22:00: 1 killed"]


def test_what_counts_as_a_utility_task() -> None:
    requests = {
        "local/utility-task/2xx": 3,
        "local/short-prompt/2xx": 3,
        "local/local-model/2xx": 1,
        "local/asked-local/2xx": 1,
        "local/no-cloud/2xx": 1,
        "cloud/short-prompt/2xx": 1,
        # None of these: not small, not answered, not a user's.
        "local/default/2xx": 50,
        "cloud/default/2xx": 50,
        "cloud/asked-cloud/2xx": 50,
        "cloud/short-prompt/5xx": 2,
        "local/utility-task/aborted": 2,
        "gateway/utility-task/5xx": 2,
    }
    found = judged(good_week(skip=range(1, 2016), requests=requests))["utility-local"]
    assert found.value == 90.0
    assert found.detail == (
        "9 of 10 answered utility requests, 3 of them kept local by the client or for want of a cloud; "
        "of the 7 that the rules routed, 85.71 % local; 4 more failed"
    )


def test_requests_that_name_the_local_model_do_not_hide_what_the_rules_did() -> None:
    requests = {"local/utility-task/2xx": 60, "cloud/utility-task/2xx": 40, "local/local-model/2xx": 500}
    found = judged(good_week(skip=range(1, 2016), requests=requests))["utility-local"]
    assert (found.text, "of the 100 that the rules routed, 60.00 % local" in found.detail) == ("93.33 %", True)


@pytest.mark.parametrize("reason", ["utility-task", "no-cloud"])
def test_one_kind_of_utility_requests_has_one_figure(reason: str) -> None:
    found = judged(good_week(requests={f"local/{reason}/2xx": 1}))["utility-local"]
    assert "that the rules routed" not in found.detail


def test_a_counter_that_falls_began_anew() -> None:
    counts = [5, 8, 2, 2, 4]  # +3, then a restart: +2, +0, +2
    samples = [sample(slot, tokens_out=count) for slot, count in enumerate(counts)]
    assert grown(samples, None, lambda each: each.tokens_out) == 7
    assert grown(samples, sample(-1, tokens_out=1), lambda each: each.tokens_out) == 11
    assert grown(samples[:1], None, lambda each: each.tokens_out) is None


def test_a_counter_that_was_not_known_for_a_while_goes_on() -> None:
    samples = [sample(slot, tokens_out=count) for slot, count in enumerate([5, None, 9])]
    assert grown(samples, None, lambda each: each.tokens_out) == 4


def test_kills_before_the_week_are_not_the_weeks() -> None:
    assert judged(good_week(oom_kills=3))["oom-kills"].value == 0
    assert judged(good_week(oom_kills=3), sample(-1, oom_kills=2))["oom-kills"].value == 1


def test_a_clock_that_jumps_back_counts_nothing_twice() -> None:
    """At slot 20 the clock is set back by 10 slots, so that slots 10 to 19 are seen a second time."""
    counts = iter(range(0, 10_100, 10))
    first = [sample(slot, tokens_out=next(counts)) for slot in range(20)]
    again = [
        replace(sample(slot + 10, tokens_out=next(counts)), time=sample(slot).time + 1) for slot in range(10, 1000)
    ]
    samples = sorted([*first, *again], key=lambda each: each.time)
    history = summarise(WEEK, samples)
    assert history.totals.tokens_out == 10 * (20 + 990 - 1)
    assert history.whole.known == 1000
    assert history.whole.up == 1000


@pytest.mark.parametrize("states", [("ok", "refused"), ("refused", "ok")])
def test_a_slot_with_two_samples_is_down_if_one_was(states: tuple[str, str]) -> None:
    twice = [sample(0, api=states[0]), replace(sample(0, api=states[1]), time=SINCE + 100), sample(1)]
    assert (summarise(WEEK, twice).whole.known, summarise(WEEK, twice).whole.up) == (2, 1)


def test_gaps_are_named_with_what_is_known_of_them() -> None:
    samples = [
        replace(each, boot_id="second", uptime_seconds=each.uptime_seconds) if each.time > SINCE + 500 * 300 else each
        for each in good_week(skip=[*range(300), 400, *range(500, 572)])
    ]
    history = summarise(WEEK, samples)
    assert [(gap.end - gap.start, gap.rebooted) for gap in history.gaps] == [
        (300 * 300, False),
        (300, False),
        (72 * 300, True),
    ]
    said = " ".join(week.notes(history))
    assert said == (
        "1,643 of 2,016 health checks are there: 81.49 % of the time is known. Below 90 % no goal can be said to be "
        "met; a report of fewer days may know more. The first sample in this time is of 2026-11-16 23:00 UTC. "
        "Not known: 2026-11-15 22:00, 25.0 h; 2026-11-17 15:40, 6.0 h (the machine was started in it); "
        "2026-11-17 07:20, 5 min."
    )


@given(
    st.lists(st.integers(0, 100), max_size=30),
    st.lists(st.integers(-400, 2500), max_size=60),
    st.sampled_from(["ok", "refused", None]),
)
def test_whatever_the_clock_does_the_parts_add_up(counts: list[int], slots: list[int], api: str | None) -> None:
    samples = sorted(
        (sample(slot, oom_kills=count, api=api) for slot, count in zip(slots, counts, strict=False)),
        key=lambda each: each.time,
    )
    inside = [each for each in samples if SINCE <= each.time < UNTIL]
    history = summarise(WEEK, inside)
    whole = history.whole
    assert 0 <= whole.up <= whole.known <= whole.expected == 2016
    assert sum(hour.known for hour in history.hours) == whole.known
    assert sum(hour.oom_kills for hour in history.hours) == whole.oom_kills
    assert sum(gap.end - gap.start for gap in history.gaps) == (2016 - whole.known) * INTERVAL
    assert all(step >= 0 for _, step in growth(inside, None, lambda each: each.oom_kills))
    judge(history, TARGETS)


def test_the_window_ends_with_the_last_check_that_is_over() -> None:
    # At 22:00:30 the check of 22:00 may be under way: the window ends with the slot of 21:55 …
    assert window(7, INTERVAL, UNTIL + 30, UNTIL - 299) == WEEK
    # … unless its sample is there already.
    assert window(7, INTERVAL, UNTIL + 30, UNTIL + 2).until == UNTIL + 300
    assert window(7, INTERVAL, UNTIL + 61, None).until == UNTIL + 300


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    host = FakeHost(tmp_path)
    host.path(SAMPLES).parent.mkdir(parents=True)
    monkeypatch.setattr(host, "now", lambda: UNTIL + 10.0)
    monkeypatch.setattr(cli, "Host", lambda: host)
    return host


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def options(tmp_path: Path, config: Config) -> list[str]:
    return ["report", "--config", str(tmp_path / "checks.json")]


def store(host: FakeHost, samples: Iterable[Sample]) -> None:
    with Store.open(host.path(SAMPLES)) as opened:
        for each in samples:
            opened.append(each)


def test_the_command(host: FakeHost, options: list[str], capsys: Capture) -> None:
    changes: dict[str, Any] = {"requests": {"local/utility-task/2xx": 1}, "responses": {"local": Histogram.of([2.0])}}
    store(host, [sample(-1), *good_week(**changes), sample(2100), sample(2101)])
    assert cli.main(options) == 0
    shown = capsys.readouterr().out
    assert "7 days, 2026-11-15 22:00 to 2026-11-22 22:00 UTC" in shown
    assert "2,016 of 2,016 health checks are there: 100.00 % of the time is known." in shown
    assert "2 samples are of a time still to come" in " ".join(shown.split())
    assert shown.count("  PASS     ") == 5
    assert max(map(len, shown.splitlines())) <= 100
    assert "\033" not in shown


def test_the_command_fails_where_a_goal_is_missed(host: FakeHost, options: list[str], capsys: Capture) -> None:
    store(host, good_week(skip=range(2000), api="refused", probe="none"))
    assert cli.main([*options, "--days", "1"]) == 1
    shown = capsys.readouterr().out
    assert "  FAIL     Uptime" in shown
    assert "16 of 288 health checks are there" in shown


def test_the_command_for_a_program(host: FakeHost, options: list[str], capsys: Capture) -> None:
    store(host, [sample(-1, tokens_out=5), *good_week(requests={"local/default/2xx": 1}, tokens_out=8)])
    assert cli.main([*options, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    said = json.loads(out)
    assert said["format"] == 1
    assert said["history"]["window"] == {"since": SINCE, "until": UNTIL, "interval_seconds": 300}
    assert [goal["name"] for goal in said["goals"]] == [
        "utility-local",
        "response-time",
        "oom-kills",
        "uptime",
        "memory",
    ]
    assert {goal["verdict"] for goal in said["goals"]} == {"PASS", "unknown"}
    assert said["history"]["hours"][0]["requests"] == {"local": 12}
    # Counted on from the last sample before the week.
    assert said["history"]["totals"]["tokens_out"] == 3


def test_without_a_history_the_command_says_so(host: FakeHost, options: list[str], capsys: Capture) -> None:
    assert cli.main(options) == 1
    assert "samples.db is missing: the health check, which makes it, has not run yet." in capsys.readouterr().err
    assert not host.path(SAMPLES).exists()


@pytest.mark.parametrize("days", ["0", "367", "-1", "x"])
def test_days_that_are_none(host: FakeHost, options: list[str], days: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*options, "--days", days])
    assert ended.value.code == 2


def test_ninety_days_in_the_store_cost_a_report_of_seven_next_to_nothing(
    host: FakeHost, config: Config, options: list[str]
) -> None:
    """Not its speed but its cause: only the week's samples are read."""
    store(host, [sample(slot) for slot in range(-3000, 2016, 1)])
    with Store.open(host.path(SAMPLES)) as opened:
        read = []
        between = opened.between
        opened.between = lambda *arguments: (read.append(each) or each for each in between(*arguments))  # type: ignore
        report = week.measure(config, opened, 7, UNTIL + 10.0)
    assert report.history.whole.known == 2016
    assert len(read) <= 2016 + 288 + 2


def report_of(history: History) -> Report:
    return Report(1, "vps1", "1.0.0", UNTIL, 7, TARGETS, judge(history, TARGETS), history)
