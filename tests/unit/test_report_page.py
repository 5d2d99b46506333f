"""The page of all hosts' reports: complete, of one piece, safe with hostile text; and how a host's JSON gets there."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks import week
from checks.week import Report
from facts.report import HostReport, ReportError, parse_report
from operations import reports
from reporting import example, plots
from reporting.example import MIDNIGHT, report, samples
from reporting.page import Row, render, units, write

HOSTILE = """<script>alert("1")</script>&amp;'\u202e"""
PAGE = Path(plots.__file__).with_name("page.html.j2")


@cache
def troubled() -> Report:
    return report("vps1", list(samples(MIDNIGHT)))


@cache
def page() -> str:
    return example.page()


class Elements(HTMLParser):
    """The page's elements, with their attributes and the text within them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for name, attributes in self.found if name == tag)


def text_of(html: str) -> str:
    joined = " ".join(text for _, text in Elements(html).texts if text)
    return " ".join(joined.replace("\N{NO-BREAK SPACE}", " ").split())


def test_every_host_is_a_row_and_says_what_was_measured() -> None:
    said = text_of(page())
    assert "local-llm: 3 hosts, 1 without a report, 1 missed a goal" in said
    assert "203.0.113.7 no report it could not be reached" in said
    for goal in troubled().goals:
        assert f"{goal.title} {goal.verdict.value} {goal.text} , goal: {goal.target}" in said
        assert goal.detail in said
        assert all(week.hour_words(hour) in said for hour in goal.worst)
    assert "1,920 of 2,016 health checks are there: 95.23 % of the time is known." in said
    assert "Not known: 2026-11-17 13:00, 8.0 h (the machine was started in it)." in said
    # A day by its own samples: on the 17th 8 of 24 hours are missing.
    assert "Tue 2026-11-17 100.00 % 192 of 288" in said


def test_the_page_is_of_one_piece() -> None:
    html = page()
    assert set(re.findall(r"[a-z]+://[^\s\"'<>)]+", html)) <= {"http://www.w3.org/2000/svg"}
    elements = Elements(html)
    tags = Counter(tag for tag, _ in elements.found)
    assert not tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}
    assert not elements.open
    [policy] = [each["content"] for each in elements.all("meta") if "http-equiv" in each]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    references = [each.get("href", "") for _, each in elements.found if "href" in each]
    ids = Counter(each["id"] for _, each in elements.found if "id" in each)
    assert max(ids.values()) == 1
    assert all(reference.removeprefix("#") in ids for reference in references)
    assert all(name in ids for name in re.findall(r"url\(#([^)]+)\)", html))
    assert not re.findall(r"#01[0-9a-f]{2}fe", html)


def test_every_plot_has_words() -> None:
    elements = Elements(page())
    pictures = list(elements.all("svg"))
    assert len(pictures) == 2 * 4 * 2
    ids = {each["id"] for _, each in elements.found if "id" in each}
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(picture["aria-labelledby"].split()) <= ids
    words = [text for tag, text in elements.texts if tag == "desc"]
    assert "Share of the health checks of each hour: up in 99.73 % of the known time, known 95.23 %." in words


def test_the_requests_plot_names_the_rules_behind_each_backend() -> None:
    counts = {"local/utility-task/2xx": 60, "local/utility-task/aborted": 4, "local/short-prompt/2xx": 20}
    counts |= {"local/no-model/2xx": 10, "local/default/2xx": 4, "local/reasoning/2xx": 2, "cloud/default/2xx": 1}
    history = troubled().history
    counted = replace(troubled(), history=replace(history, totals=replace(history.totals, requests=counts)))
    *_, plot = plots.draw(counted, "x")
    assert plot.title == "Requests by backend"
    assert [label for _, _, label in plot.legend] == [
        "local model (utility-task 64 %, short-prompt 20 %, no-model 10 %, others 6 %)",
        "cloud (default 100 %)",
        "refused by the gateway",
        "no samples",
    ]


def test_hostile_text_stays_text() -> None:
    history = replace(troubled().history, healed=())
    goals = tuple(replace(goal, detail=HOSTILE, text=HOSTILE) for goal in troubled().goals)
    totals = replace(history.totals, requests={f"local/{HOSTILE}/2xx": 1, "odd": 1, HOSTILE: 2})
    hostile = replace(troubled(), host=HOSTILE, goals=goals, history=replace(history, totals=totals))
    html = render([Row(HOSTILE, hostile), Row(HOSTILE, problem=HOSTILE)], MIDNIGHT)
    assert "<script" not in html
    assert not Elements(html).open


@pytest.mark.parametrize("days", [1, 2, 30])
def test_other_numbers_of_days(days: int) -> None:
    of_days = report("vps1", list(samples(MIDNIGHT, days=days, trouble=False)), days)
    for plot in plots.draw(of_days, "x"):
        labels = [
            text for tag, text in Elements(plot.narrow).texts if tag == "text" and re.search(r"Nov|Oct|:00", text)
        ]
        assert 2 <= len(labels) <= 5


def test_a_host_without_a_single_sample() -> None:
    said = text_of(render([Row("new", report("new", []))], MIDNIGHT))
    assert "0 of 2,016 health checks are there" in said
    assert said.count("unknown") >= 5


def test_no_host_with_a_report() -> None:
    said = text_of(render([Row("a", problem="it could not be reached")], MIDNIGHT))
    assert "local-llm: 1 host, 1 without a report" in said


def test_the_page_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write(target, "\ud800")
    assert target.read_text() == "old"
    write(target, "new")
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o644)
    assert list(tmp_path.iterdir()) == [target]


def test_units_stay_with_their_numbers() -> None:
    assert units("90 % of 5 s, 3 smiles, 8.0 h") == "90\xa0% of 5\xa0s, 3 smiles, 8.0\xa0h"


def test_the_json_of_a_host_becomes_the_same_report() -> None:
    said = json.dumps(week.as_json(troubled()), ensure_ascii=False)
    assert "\n" not in said
    assert parse_report(["local-llm: warning: the store was damaged", said]) == troubled()
    assert HostReport().parse([said]) == troubled()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "the host said nothing"),
        (["Nothing is deployed here."], "Nothing is deployed here."),
        (["local-llm: samples.db is missing"], "local-llm: samples.db is missing"),
        (
            ["usage: local-llm [-h] COMMAND ...", "error: argument COMMAND: invalid choice: 'report' (choose from …)"],
            "its checks are older than this report: deploy to the host again",
        ),
        (['{"format": 2}'], "its report has format 2, this checkout reads 1: deploy to the host again"),
        (['{"format": 1}'], "its report cannot be read (host: Field required): deploy to the host again"),
        (["[1]"], "[1]"),
    ],
)
def test_what_is_no_report_is_a_reason(said: list[str], reason: str) -> None:
    with pytest.raises(ReportError) as problem:
        parse_report(said)
    assert str(problem.value) == reason
    assert isinstance(HostReport().parse(said), ReportError)


def test_a_later_format_may_hold_more() -> None:
    data = json.loads(json.dumps(week.as_json(troubled())))
    data["new"] = data["history"]["new"] = 1
    assert parse_report([json.dumps(data)]) == troubled()


ODD = [
    *(math.nan, math.inf, -math.inf, 1e308, 5e-324, -1, -0.5, 2**53, 2**53 + 1, 10**18, 10**400, 1e18),
    *(True, None, "5", "", "\x1b[2J\u202e<b>", "x" * 5000, [], [1], {}, {"a/b/2xx": 0}, 0, 0.0, 1, 59, 86_401),
]


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value of a report, by the keys that lead to it; of a list its first and last entries."""
    yield way
    if isinstance(data, dict):
        for name, part in data.items():
            yield from places(part, (*way, name))
    elif isinstance(data, list):
        for index in sorted({0, len(data) - 1} if data else set()):
            yield from places(data[index], (*way, index))


def with_value(data: Any, way: tuple[Any, ...], value: object) -> Any:
    if not way:
        return value
    part = with_value(data[way[0]], way[1:], value)
    if isinstance(data, dict):
        return {**data, way[0]: part}
    return [part if index == way[0] % len(data) else each for index, each in enumerate(data)]


@cache
def of_a_day() -> Any:
    """A report of one day with something of everything, as JSON."""
    found = week.as_json(report("vps1", list(samples(MIDNIGHT, days=1)), days=1))
    return json.loads(json.dumps(found))


def no_plots(*_: object) -> list[plots.Plot]:
    return []


def outcome(data: Any) -> Report | ReportError:
    found = HostReport().parse([json.dumps(data)])
    assert isinstance(found, Report | ReportError)
    return found


def test_every_value_of_a_report_may_be_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value of the record replaced by each odd one: never an exception, and the page of the others is there."""
    monkeypatch.setattr(plots, "draw", no_plots)
    ways = list(places(of_a_day()))
    believed = 0
    for number, way in enumerate(ways):
        for value in ODD:
            found = outcome(with_value(of_a_day(), way, value))
            if isinstance(found, ReportError):
                assert len(str(found)) < 1000
                continue
            believed += 1
            if believed % 100 == number % 100:
                html = render([Row("odd", found), Row("other", troubled())], 0.0)
                assert html.count('<section class="host"') == 2
                assert "\x1b" not in html
                assert "\u202e" not in html
    assert believed > 100


@given(st.data())
@settings(max_examples=40, deadline=20_000)
def test_odd_values_are_drawn_or_refused(data: st.DataObject) -> None:
    """Some values at once, and with the plots: bounded in time, whatever they are."""
    odd = st.sampled_from(ODD) | st.floats() | st.integers() | st.integers(0, 2**53) | st.text(max_size=5)
    record = of_a_day()
    for _ in range(data.draw(st.integers(1, 3))):
        record = with_value(record, data.draw(st.sampled_from([*places(record)][1:])), data.draw(odd))
        if not isinstance(record, dict):
            break
    found = outcome(record)
    if isinstance(found, Report):
        render([Row("odd", found)], 0.0)


def test_a_time_that_nobody_lives_to_see_costs_nothing() -> None:
    """A window of 1e18 seconds had an hour for each of them."""
    for value in (10**18, 2**53):
        found = outcome(with_value(of_a_day(), ("history", "window", "until"), value))
        assert isinstance(found, ReportError)


@pytest.mark.parametrize(
    "text",
    ['{"format": 1, "a": ' + "[" * depth + "]" * depth + "}" for depth in (200, 900, 5000)]
    + ["[" * 200_000, '{"format": 1, "a": ' * 20_000, "9" * 100_000, '{"format": NaN}', '{"format": 1e999}'],
)
def test_what_cannot_be_read_is_a_reason(text: str) -> None:
    assert isinstance(HostReport().parse([text]), ReportError)


def test_a_report_that_cannot_be_shown_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(report: Report, prefix: str) -> Any:
        return [] if prefix == "p1" else 1 / 0

    monkeypatch.setattr(plots, "draw", broken)
    html = render([Row("bad", troubled()), Row("good", troubled())], 0.0)
    assert "its report cannot be shown (ZeroDivisionError)" in html
    assert html.count('<section class="host"') == 1


class Inventory:
    """A run of pyinfra with three hosts: `first` is not reached, `last` lost its connection on the way."""

    def __init__(self) -> None:
        first, second, last, unwanted = (SimpleNamespace(name=name) for name in ("first", "second", "last", "unwanted"))
        self.inventory = [first, second, last, unwanted]
        self.activated_hosts = [second, last]
        self.active_hosts = [second]
        self.unwanted = unwanted

    def is_host_in_limit(self, host: object) -> bool:
        return host is not self.unwanted


def test_the_first_host_that_is_left_writes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = Inventory()
    monkeypatch.setattr(reports, "_collected", {"second": troubled()})
    assert reports._writer(run).name == "second"
    assert reports._rows(run) == [
        Row("first", problem="it could not be reached"),
        Row("second", troubled()),
        Row("last", problem="the connection was lost"),
    ]


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    style = PAGE.read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    text = [("text", "page"), ("text", "box"), ("soft", "page"), ("soft", "box"), ("local", "page"), ("local", "box")]
    text += [(f"{kind}-text", f"{kind}-page") for kind in ("good", "bad", "open")]
    assert {pair: ratio for pair in text if (ratio := contrast(*(colours[name] for name in pair))) < 4.5} == {}
    drawn = ["local", "cloud", "gateway", "up", "down", "goal", "limit", "gap"]
    assert {name: ratio for name in drawn if (ratio := contrast(colours[name], colours["page"])) < 3} == {}
