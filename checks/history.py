"""What the samples of some days say, hour by hour and day by day, and how much of the time they say it of.

Pure: from samples to figures. A slot is one health interval; a slot without a sample is not known, never up. Several
samples in one slot (a run by hand, a clock that was set back) count once, and as down if one of them found it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Protocol

from checks.samples import Histogram, Sample

HOUR_SECONDS = 3600
DAY_SECONDS = 86_400
LOCAL, CLOUD = "local", "cloud"
_GRACE_SECONDS = 60
"""How long after its time a health check may still be under way."""

ROUTED_UTILITY = ("utility-task", "short-prompt", "asked-local-first")
KEPT_UTILITY = ("no-cloud", "local-model", "unlisted-model", "asked-local")
"""Reasons of small work. The first may go to the cloud; the others are answered by the local model or not at all: it
was named or asked for by the client, which is how OpenClaw is given its utility model, or there is no cloud."""


@dataclass(frozen=True)
class Window:
    """Whole slots from since until before until, in seconds since the epoch."""

    since: int
    until: int
    interval_seconds: int

    @property
    def slots(self) -> int:
        return (self.until - self.since) // self.interval_seconds

    def slot(self, time: float) -> int:
        return int(time - self.since) // self.interval_seconds

    def start(self, slot: int) -> int:
        return self.since + slot * self.interval_seconds


def window(days: int, interval_seconds: int, now: float, newest: float | None) -> Window:
    """The days that end with the last slot whose check is over, or has left its sample already.

    `newest` is the time of the newest sample that is not ahead of the clock.
    """
    last = int(now - _GRACE_SECONDS) // interval_seconds
    if newest is not None:
        last = max(last, int(newest) // interval_seconds)
    until = (last + 1) * interval_seconds
    return Window(until - days * DAY_SECONDS, until, interval_seconds)


@dataclass(frozen=True)
class Timing:
    """Durations in seconds; the percentiles are interpolated within the buckets of a histogram."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Period:
    """One hour or day (UTC). `requests` counts by backend, `responses` times the whole 2xx answers of a backend.

    Memory is the highest that a sample saw. `utility_local` and `utility_cloud` are answered utility requests.
    """

    start: int
    expected: int = 0
    known: int = 0
    up: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    responses: Mapping[str, Timing] = field(default_factory=dict)
    utility_local: int = 0
    utility_cloud: int = 0
    rss_bytes: int | None = None
    memory_bytes: int | None = None
    oom_kills: int = 0

    @property
    def down(self) -> int:
        return self.known - self.up


@dataclass(frozen=True)
class Gap:
    """Time without samples. `rebooted`: the machine was started in it, so it was off for some of it."""

    start: int
    end: int
    rebooted: bool


@dataclass(frozen=True)
class Incident:
    """What the health check restarted, and why."""

    time: int
    text: str


@dataclass(frozen=True)
class Totals:
    """Figures of the whole window; None is not known. `requests` counts by "backend/reason/status"."""

    requests: Mapping[str, int] = field(default_factory=dict)
    responses: Mapping[str, Timing] = field(default_factory=dict)
    first_bytes: Mapping[str, Timing] = field(default_factory=dict)
    probes: Mapping[str, int] = field(default_factory=dict)
    tokens_in: int | None = None
    tokens_out: int | None = None
    prompt_tokens_per_second: float | None = None
    generated_tokens_per_second: float | None = None
    crashes: int | None = None
    gateway_crashes: int | None = None
    cpu_seconds: float | None = None
    queue_seconds_max: float | None = None
    memory_peak_bytes: int | None = None
    swap_used_bytes_max: int | None = None
    disk_free_bytes_min: int | None = None
    cloud_up: int = 0
    cloud_down: int = 0


@dataclass(frozen=True)
class History:
    """`ahead`: samples whose time is still to come, because the clock was wrong; they are left out."""

    window: Window
    whole: Period
    hours: tuple[Period, ...]
    days: tuple[Period, ...]
    gaps: tuple[Gap, ...]
    totals: Totals
    first_sample: int | None = None
    healed: tuple[Incident, ...] = ()
    ahead: int = 0


class _Counter(Protocol):
    def __call__(self, sample: Sample, /) -> float | None: ...


def summarise(window: Window, samples: Sequence[Sample], before: Sample | None = None, ahead: int = 0) -> History:
    """The history of a window from its health samples by time; counters grow from `before`, the sample ahead of it."""
    states = _states(window, samples)
    kills = {id(sample): int(grown) for sample, grown in growth(samples, before, lambda s: s.oom_kills)}

    def periods(seconds: int) -> tuple[Period, ...]:
        by_start = {
            start: list(group) for start, group in groupby(samples, key=lambda sample: _floor(sample.time, seconds))
        }
        return tuple(
            _period(start, seconds, window, states, by_start.get(start, ()), kills)
            for start in range(_floor(window.since, seconds), window.until, seconds)
        )

    whole = _period(window.since, window.until - window.since, window, states, samples, kills)
    return History(
        window=window,
        whole=whole,
        hours=periods(HOUR_SECONDS),
        days=periods(DAY_SECONDS),
        gaps=tuple(_gaps(window, states, samples, before)),
        totals=_totals(samples, before),
        first_sample=samples[0].time if samples else None,
        healed=tuple(Incident(sample.time, sample.healed) for sample in samples if sample.healed),
        ahead=ahead,
    )


def growth(samples: Iterable[Sample], before: Sample | None, counter: _Counter) -> Iterator[tuple[Sample, float]]:
    """How much a counter grew with each sample, from the second one that knows it on.

    A counter that fell began anew at 0, so what it shows has all been counted since. Samples of one boot are taken by
    the machine's uptime: a clock that was set back or forth does not look like a fall.
    """
    last = None if before is None else counter(before)
    for sample in _in_true_order(samples):
        value = counter(sample)
        if value is None:
            continue
        if last is not None:
            yield sample, value - last if value >= last else value
        last = value


def grown(samples: Iterable[Sample], before: Sample | None, counter: _Counter) -> float | None:
    """The whole growth of a counter; None where fewer than two samples know it."""
    steps = [step for _, step in growth(samples, before, counter)]
    return sum(steps) if steps else None


def timing(histogram: Histogram) -> Timing | None:
    mean = histogram.mean_seconds
    p50, p95, p99 = (histogram.quantile(share) for share in (0.50, 0.95, 0.99))
    if mean is None or p50 is None or p95 is None or p99 is None:
        return None
    return Timing(histogram.count, *(round(value, 4) for value in (mean, p50, p95, p99)))


def _in_true_order(samples: Iterable[Sample]) -> list[Sample]:
    boots: dict[str | None, int] = {}
    keyed = []
    for number, sample in enumerate(samples):
        boot = boots.setdefault(sample.boot_id, number)
        known = sample.boot_id is not None and sample.uptime_seconds is not None
        keyed.append(((boot, sample.uptime_seconds if known else 0.0, number), sample))
    return [sample for _, sample in sorted(keyed, key=lambda pair: pair[0])]


def _floor(time: float, seconds: int) -> int:
    return int(time) // seconds * seconds


def _states(window: Window, samples: Iterable[Sample]) -> dict[int, bool]:
    """Slots that are known, and whether they were up."""
    states: dict[int, bool] = {}
    for sample in samples:
        if sample.up is not None:
            slot = window.slot(sample.time)
            states[slot] = states.get(slot, True) and sample.up
    return states


def _period(
    start: int,
    seconds: int,
    window: Window,
    states: Mapping[int, bool],
    samples: Sequence[Sample],
    kills: Mapping[int, int],
) -> Period:
    first, end = max(start, window.since), min(start + seconds, window.until)
    slots = range(window.slot(first), window.slot(end))
    found = [states[slot] for slot in slots if slot in states]
    requests = _requests(samples)
    by_backend: dict[str, int] = {}
    for key, count in requests.items():
        backend = key.split("/", 1)[0]
        by_backend[backend] = by_backend.get(backend, 0) + count
    return Period(
        start=start,
        expected=len(slots),
        known=len(found),
        up=sum(found),
        requests=by_backend,
        responses=_timings(sample.responses for sample in samples),
        utility_local=_answered(requests, LOCAL, (*ROUTED_UTILITY, *KEPT_UTILITY)),
        utility_cloud=_answered(requests, CLOUD, ROUTED_UTILITY),
        rss_bytes=_highest(sample.rss_bytes for sample in samples),
        memory_bytes=_highest(sample.memory_bytes for sample in samples),
        oom_kills=sum(kills.get(id(sample), 0) for sample in samples),
    )


def _requests(samples: Iterable[Sample]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sample in samples:
        for key, count in sample.requests.items():
            counts[key] = counts.get(key, 0) + count
    return counts


def _answered(requests: Mapping[str, int], backend: str, reasons: Sequence[str]) -> int:
    return sum(requests.get(f"{backend}/{reason}/2xx", 0) for reason in reasons)


def _timings(each: Iterable[Mapping[str, Histogram]]) -> dict[str, Timing]:
    merged: dict[str, Histogram] = {}
    for histograms in each:
        for backend, histogram in histograms.items():
            merged[backend] = merged.get(backend, Histogram()) + histogram
    return {backend: found for backend, histogram in merged.items() if (found := timing(histogram))}


def _gaps(
    window: Window, states: Mapping[int, bool], samples: Sequence[Sample], before: Sample | None
) -> Iterator[Gap]:
    known = sorted(states)
    boots = {window.slot(sample.time): sample.boot_id for sample in samples if sample.boot_id}
    if before is not None and before.boot_id:
        boots[-1] = before.boot_id
    for left, right in pairwise([-1, *known, window.slots]):
        if right - left > 1:
            rebooted = left in boots and right in boots and boots[left] != boots[right]
            yield Gap(window.start(left + 1), window.start(right), rebooted)


def _totals(samples: Sequence[Sample], before: Sample | None) -> Totals:
    tokens_in = grown(samples, before, lambda sample: sample.tokens_in)
    tokens_out = grown(samples, before, lambda sample: sample.tokens_out)
    clouds = [sample.cloud for sample in samples]
    probes: dict[str, int] = {}
    for sample in samples:
        if sample.probe is not None:
            probes[sample.probe] = probes.get(sample.probe, 0) + 1
    return Totals(
        requests=dict(sorted(_requests(samples).items())),
        responses=_timings(sample.responses for sample in samples),
        first_bytes=_timings(sample.first_bytes for sample in samples),
        probes=probes,
        tokens_in=_whole(tokens_in),
        tokens_out=_whole(tokens_out),
        prompt_tokens_per_second=_rate(tokens_in, grown(samples, before, lambda sample: sample.prompt_seconds)),
        generated_tokens_per_second=_rate(tokens_out, grown(samples, before, lambda sample: sample.generation_seconds)),
        crashes=_whole(grown(samples, before, lambda sample: sample.restarts)),
        gateway_crashes=_whole(grown(samples, before, lambda sample: sample.gateway_restarts)),
        cpu_seconds=grown(samples, before, lambda sample: sample.cpu_seconds),
        queue_seconds_max=max((s.queue_seconds_max for s in samples if s.queue_seconds_max is not None), default=None),
        memory_peak_bytes=_highest(sample.memory_peak_bytes for sample in samples),
        swap_used_bytes_max=_highest(sample.swap_used_bytes for sample in samples),
        disk_free_bytes_min=min((s.disk_free_bytes for s in samples if s.disk_free_bytes is not None), default=None),
        cloud_up=clouds.count("up"),
        cloud_down=clouds.count("down"),
    )


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _rate(amount: float | None, seconds: float | None) -> float | None:
    return round(amount / seconds, 2) if amount is not None and seconds else None
