"""Four plots of a report as SVG, each for a wide and for a narrow screen, in the colours of the page's style sheet.

Matplotlib knows fixed colours only, so each role has one that stands for the CSS variable of its name; a dark page
then needs no second picture.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from checks.goals import number, percent_text, seconds
from checks.history import CLOUD, DAY_SECONDS, HOUR_SECONDS, LOCAL, Timing, Window
from checks.host import MIB
from checks.week import Report

BACKENDS = {LOCAL: "local model", CLOUD: "cloud", "gateway": "refused by the gateway"}
"""In the order of their areas, each with its words."""
_COLOURS = {
    role: f"#01{index:02x}fe"
    for index, role in enumerate(
        ("text", "rule", "local", "cloud", "gateway", "up", "down", "goal", "limit", "gap"),
    )
}
_SIZES = {"wide": ((6.6, 2.3), 9.5), "narrow": ((4.6, 2.7), 11.0)}
"""Inches of 72 SVG units, and the size of letters in units. Both are shown larger than a unit is a pixel."""
_TICK_HOURS = (1, 2, 3, 6, 12, 24, 48, 72, 168, 336, 720, 2160)
STYLES = {
    "line": "a line",
    "dashes": "a dashed line",
    "dots": "a dotted line",
    "area": "an area",
    "hatch": "a hatched area",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "local-llm",
    "text.color": _COLOURS["text"],
    "axes.labelcolor": _COLOURS["text"],
    "axes.edgecolor": _COLOURS["rule"],
    "axes.facecolor": "none",
    "xtick.color": _COLOURS["rule"],
    "ytick.color": _COLOURS["rule"],
    "xtick.labelcolor": _COLOURS["text"],
    "ytick.labelcolor": _COLOURS["text"],
    "grid.color": _COLOURS["rule"],
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Plot:
    """A plot and its words: `summary` tells it to who cannot see it; `legend` holds role, style and label."""

    title: str
    summary: str
    legend: tuple[tuple[str, str, str], ...]
    wide: str
    narrow: str


Draw = Callable[[Axes, Report], None]


def draw(report: Report, prefix: str) -> list[Plot]:
    """The plots of a host; `prefix` keeps their ids apart from those of other hosts on one page."""
    return [
        _plot(report, f"{prefix}-{number}", *words, legend=legend, draw=function)
        for number, (function, words, legend) in enumerate(
            (
                (_availability, ("Availability", _availability_words(report)), _AVAILABILITY_LEGEND),
                (_response, ("Response time of the local model", _response_words(report)), _RESPONSE_LEGEND),
                (_memory, ("Memory", _memory_words(report)), _MEMORY_LEGEND),
                (_requests, ("Requests by backend", _requests_words(report)), _requests_legend(report)),
            )
        )
    ]


_GAP = ("gap", "hatch", "no samples")
_AVAILABILITY_LEGEND = (("up", "area", "up"), ("down", "area", "down"), _GAP)
_RESPONSE_LEGEND = (
    ("local", "line", "mean of the hour"),
    ("local", "dashes", "95 % are faster"),
    ("goal", "dots", "goal, for the mean"),
    _GAP,
)
_MEMORY_LEGEND = (
    ("local", "line", "resident"),
    ("local", "dashes", "with file cache"),
    ("goal", "dots", "goal, for resident"),
    ("limit", "line", "limit: the kernel kills"),
    _GAP,
)
_RULES_NAMED = 3


def _availability(axes: Axes, report: Report) -> None:
    hours = report.history.hours
    edges = _edges(report)
    up = _steps([hour.up / hour.expected * 100 if hour.expected else 0 for hour in hours])
    known = _steps([hour.known / hour.expected * 100 if hour.expected else 0 for hour in hours])
    _area(axes, edges, [0.0] * len(edges), up, "up")
    _area(axes, edges, up, known, "down")
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    hidden = [value < 100 for value in known]
    axes.fill_between(
        edges, known, 100, where=hidden, step="post", facecolor="none", edgecolor=_COLOURS["gap"], hatch="////",
        linewidth=0,
    )  # fmt: skip


def _response(axes: Axes, report: Report) -> None:
    timings = [hour.responses.get(LOCAL) for hour in report.history.hours]
    middles = _middles(report)
    _line(axes, middles, [_of(each, "p95") for each in timings], "local", "--", 0.9)
    _line(axes, middles, [_of(each, "mean") for each in timings], "local", "-", 1.6)
    goal = report.targets.response_seconds
    axes.axhline(goal, color=_COLOURS["goal"], linestyle=":", linewidth=1.6)
    highest = max([goal, *(each.p95 for each in timings if each)])
    axes.set_ylim(0, highest * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    _shade_gaps(axes, report)


def _memory(axes: Axes, report: Report) -> None:
    hours, targets = report.history.hours, report.targets
    _line(axes, _middles(report), [_mib(hour.memory_bytes) for hour in hours], "local", "--", 0.9)
    _line(axes, _middles(report), [_mib(hour.rss_bytes) for hour in hours], "local", "-", 1.6)
    axes.axhline(targets.memory_mib, color=_COLOURS["goal"], linestyle=":", linewidth=1.6)
    axes.axhline(targets.memory_max_mib, color=_COLOURS["limit"], linewidth=1.2)
    axes.set_ylim(0, targets.memory_max_mib * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f} MiB")
    _shade_gaps(axes, report)


def _requests(axes: Axes, report: Report) -> None:
    hours = report.history.hours
    edges = _edges(report)
    base = [0.0] * len(edges)
    for backend in BACKENDS:
        counts = _steps([float(hour.requests.get(backend, 0)) for hour in hours])
        top = [low + count for low, count in zip(base, counts, strict=True)]
        _area(axes, edges, base, top, backend)
        base = top
    axes.set_ylim(0, max([1.0, *base]) * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _shade_gaps(axes, report)


def _availability_words(report: Report) -> str:
    whole = report.history.whole
    up = f"up in {percent_text(whole.up, whole.known)} of the known time" if whole.known else "no sample"
    return f"Share of the health checks of each hour: {up}, known {percent_text(whole.known, whole.expected)}."


def _response_words(report: Report) -> str:
    timing = report.history.totals.responses.get(LOCAL)
    if timing is None:
        return "The local model answered nothing."
    return f"Seconds a whole answer takes, hour by hour: mean {seconds(timing.mean)}, p95 {seconds(timing.p95)}."


def _memory_words(report: Report) -> str:
    highest = report.history.whole.rss_bytes
    if highest is None:
        return "No sample knows the memory."
    return f"Highest of each hour: resident memory reached {number(highest / MIB)} MiB."


def _requests_words(report: Report) -> str:
    requests = report.history.whole.requests
    if not requests:
        return "No request was counted."
    parts = ", ".join(f"{backend} {number(requests.get(backend, 0))}" for backend in BACKENDS)
    return f"Requests an hour by who answered: {parts}."


def _requests_legend(report: Report) -> tuple[tuple[str, str, str], ...]:
    """Who answered, and by which rules: shares of the whole time, since an hour does not know its rules."""
    areas = tuple((backend, "area", words + _rule_words(report, backend)) for backend, words in BACKENDS.items())
    return (*areas, _GAP)


def _rule_words(report: Report, backend: str) -> str:
    rules: Counter[str] = Counter()
    for key, count in report.history.totals.requests.items():
        answered_by, _, rest = key.partition("/")
        if answered_by == backend and count:
            rules[rest.partition("/")[0]] += count
    named = rules.most_common(_RULES_NAMED)
    if others := rules.total() - sum(count for _, count in named):
        named.append(("others", others))
    shares = ", ".join(f"{rule} {count * 100 / rules.total():.0f} %" for rule, count in named)
    return f" ({shares})" if shares else ""


def _plot(
    report: Report, prefix: str, title: str, summary: str, *, legend: tuple[tuple[str, str, str], ...], draw: Draw
) -> Plot:
    wide, narrow = (_svg(report, f"{prefix}-{size}", title, summary, *_SIZES[size], draw) for size in _SIZES)
    return Plot(title, summary, legend, wide, narrow)


def _svg(
    report: Report, prefix: str, title: str, summary: str, inches: tuple[float, float], letters: float, draw: Draw
) -> str:
    with mpl.rc_context({**_SETTINGS, "font.size": letters}):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, report)
        window = report.history.window
        axes.set_xlim(window.since, window.until)
        axes.set_xticks(*_ticks(window, most=8 if inches[0] > 6 else 4))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix, title, summary)


def _inline(document: bytes, prefix: str, title: str, summary: str) -> str:
    """An SVG document as an element of an HTML page: words for who cannot see it, ids of its own, our colours."""
    root = ElementTree.fromstring(document)  # noqa: S314 - matplotlib's own
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    words = [(f"{prefix}-title", "title", title), (f"{prefix}-words", "desc", summary)]
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.set(name, re.sub(r"url\(#", f"url(#{prefix}-", value))
        if "id" in element.attrib:
            element.set("id", f"{prefix}-{element.get('id')}")
        if _LINK in element.attrib:
            element.set("href", f"#{prefix}-{element.attrib.pop(_LINK).removeprefix('#')}")
    for position, (identity, tag, text) in enumerate(words):
        child = ElementTree.Element(_SVG + tag, {"id": identity})
        child.text = text
        root.insert(position, child)
    root.attrib.pop("version", None)
    root.attrib.pop("id", None)
    root.set("role", "img")
    root.set("aria-labelledby", " ".join(identity for identity, _, _ in words))
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    text = ElementTree.tostring(root, encoding="unicode")
    for role, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    return text


def _ticks(window: Window, most: int) -> tuple[list[float], list[str]]:
    """Round times (UTC), no more than `most`, and their labels: dates, and between them hours."""
    span = window.until - window.since
    step = (
        next((hours for hours in _TICK_HOURS if span / (hours * HOUR_SECONDS) <= most), _TICK_HOURS[-1]) * HOUR_SECONDS
    )
    first = -(-window.since // step) * step
    times = [float(time) for time in range(first, window.until, step)]
    return times, [_label(time, days=step >= DAY_SECONDS) for time in times]


def _label(when: float, days: bool) -> str:
    moment = time.gmtime(when)
    return time.strftime("%d %b" if days or not moment.tm_hour else "%H:%M", moment)


def _edges(report: Report) -> list[float]:
    """Where each hour begins, and where the last one ends."""
    window = report.history.window
    return [float(max(hour.start, window.since)) for hour in report.history.hours] + [float(window.until)]


def _middles(report: Report) -> list[float]:
    return [hour.start + HOUR_SECONDS / 2 for hour in report.history.hours]


def _steps(values: Sequence[float]) -> list[float]:
    """A value for each edge: an area of steps takes the one at the step's beginning."""
    return [*values, values[-1] if values else 0.0]


def _area(axes: Axes, edges: Sequence[float], low: Sequence[float], high: Sequence[float], role: str) -> None:
    axes.fill_between(edges, low, high, step="post", color=_COLOURS[role], linewidth=0)


def _line(axes: Axes, times: Sequence[float], values: Sequence[float], role: str, style: str, width: float) -> None:
    """A line that breaks where nothing is known; a value between two breaks is a dot."""
    axes.plot(times, values, color=_COLOURS[role], linestyle=style, linewidth=width)
    known = [not math.isnan(value) for value in values]
    alone = [
        index
        for index, here in enumerate(known)
        if here and not any(known[max(0, index - 1) : index] + known[index + 1 : index + 2])
    ]
    if alone:
        axes.plot(
            [times[index] for index in alone], [values[index] for index in alone],
            color=_COLOURS[role], linestyle="none", marker="o" if style == "-" else "_", markersize=2.4,
        )  # fmt: skip


def _shade_gaps(axes: Axes, report: Report) -> None:
    for start, end in _long_gaps(report):
        axes.axvspan(start, end, facecolor="none", edgecolor=_COLOURS["gap"], hatch="////", linewidth=0)


def _long_gaps(report: Report) -> Iterator[tuple[int, int]]:
    """Gaps that are wide enough to be seen; the availability's plot shows the others by their height."""
    window = report.history.window
    for gap in report.history.gaps:
        if (gap.end - gap.start) * 250 >= window.until - window.since:
            yield gap.start, gap.end


def _of(timing: Timing | None, name: str) -> float:
    return math.nan if timing is None else float(getattr(timing, name))


def _mib(value: int | None) -> float:
    return math.nan if value is None else value / MIB
