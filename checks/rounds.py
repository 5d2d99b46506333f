"""What cron starts: a health run every few minutes and a metrics run every hour.

Each measures, stores a sample and writes a line. No step can keep another from its work: what goes wrong in one, a full
disk or a bug, is a reason in the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from checks import alerts, healing, health, window
from checks.contract.paths import SAMPLES
from checks.samples import HEALTH, METRICS, Kind, Sample, Store, StoreError, window_seconds
from checks.totals import Totals

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.window import Window

_CURSOR = "journal-cursor"
# Running totals: as of the last sample of each kind.
_LATEST = 12
_LONGEST_REASON = 400
_TOTALS = {HEALTH: "totals", METRICS: "totals-of-metrics"}

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A finished run. `unwritten` is why its line is not in the log, `after` what went wrong after that line."""

    line: str
    ok: bool
    unwritten: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class _History:
    """The store, and what the run of this kind before has left there."""

    store: Store
    last: Sample | None
    cursor: str | None
    totals: Totals


class StoppingError(Exception):
    """The machine is being shut down: what is stopped is meant to be, and says nothing of the service."""


def look(config: Config, host: Host) -> Run:
    """A health run for a person: nothing is stored, written, healed or told to anybody. Raises StoppingError."""
    with _history(host, HEALTH) as (history, _):
        sample, _ = _measured(config, host, history)
    return Run(health.format_line(sample), sample.ok)


def health_run(config: Config, host: Host, log_file: str) -> Run:
    """Measure, heal, store, write the text file for Prometheus and the line, and tell whom it concerns.

    Raises StoppingError, and leaves nothing behind: the first run after the next boot counts on from the one before.
    """
    with _history(host, HEALTH) as (history, unopened):
        store = history.store if history else None
        sample, found = _measured(config, host, history)
        healed, unhealed = _attempt(lambda: healing.heal(config, host, store, sample))
        sample = _failed(replace(sample, healed=healed), unopened, unhealed and f"nothing can be healed: {unhealed}")

        totals = history.totals.plus(sample) if history else None
        unstored = unpruned = None
        if history and totals:
            stored, unstored = _attempt(lambda: _store_health(history.store, sample, found, totals))
            if stored:
                sample = stored
                _, unpruned = _attempt(lambda: history.store.prune(config.samples_retention_days))
        begun_anew = history.store.notice if history and not unopened else None
        _, no_textfile = _attempt(lambda: _write_textfile(config, host, sample, totals))
        sample = _failed(
            sample,
            begun_anew,
            unstored and f"this sample is not stored: {unstored}",
            unpruned and f"old samples are not dropped: {unpruned}",
            no_textfile and f"the text file for Prometheus is not written: {no_textfile}",
        )
        line = health.format_line(sample)
        _, unwritten = _attempt(lambda: health.append(log_file, line))
        untold, unjudged = _attempt(lambda: alerts.step(config, host, store, sample, log_file))
    return Run(line, sample.ok, unwritten, untold or (unjudged and f"alerts are not judged: {unjudged}"))


def metrics_run(config: Config, host: Host, log_file: str | None) -> Run:
    """Measure the time since the last metrics run; with a log, store the sample and write the line."""
    from checks import metrics

    with _history(host, METRICS) as (history, unopened):
        last = history.last if history else None
        seen = history.store.last(HEALTH) if history else None
        totals = Totals.from_text(history.store.get(_TOTALS[HEALTH])) if history else None
        counted = totals.since(history.totals) if history and totals else None
        sample = _failed(metrics.measure(config, host, counted, seen, last), unopened)
        unstored = unwritten = None
        if log_file is not None and history and totals:
            state = {_TOTALS[METRICS]: totals.as_text()}
            stored, unstored = _attempt(lambda: history.store.append(sample, state))
            sample = stored or sample
        sample = _failed(sample, unstored and f"this sample is not stored: {unstored}")
        line = metrics.format_line(sample, last)
        if log_file is not None:
            _, unwritten = _attempt(lambda: health.append(log_file, line))
    return Run(line, sample.ok, unwritten)


@contextmanager
def _history(host: Host, kind: Kind) -> Iterator[tuple[_History | None, str | None]]:
    """The history as far as a run of this kind needs it, or None; and what is wrong with it."""
    store, problem = _attempt(lambda: Store.open(host.path(SAMPLES)))
    history = None
    if store:
        history, problem = _attempt(
            lambda: _History(store, _last(store, kind), store.get(_CURSOR), Totals.from_text(store.get(_TOTALS[kind])))
        )
        problem = problem or store.notice
    try:
        yield history, problem
    finally:
        if store:
            store.close()


def _last(store: Store, kind: Kind) -> Sample | None:
    """The sample written last, with the kills that were known last."""
    latest = store.latest(_LATEST, kind)
    if not latest:
        return None
    known: dict[str, Any] = {
        name: next((value for sample in latest if (value := getattr(sample, name)) is not None), None)
        for name in ("oom_kills", "gateway_oom_kills")
    }
    return replace(latest[0], **known)


def _measured(config: Config, host: Host, history: _History | None) -> tuple[Sample, Window | None]:
    """The sample, and the window that it counts: what the journal tells since the run before.

    Without a history nobody knows what is new.
    """
    found = unread = None
    if history:
        found, unread = _attempt(lambda: window.read(config, host, history.cursor))
    last = history.last if history else None
    sample = health.measure(config, host, found, last)
    # Asked after all else, so that a shutdown that began meanwhile is seen; and only where something is wrong.
    if not sample.ok and host.is_stopping():
        raise StoppingError
    cut = "the gateway has logged more since the last check than is read at once; the next ones count the rest"
    sample = replace(sample, window_seconds=window_seconds(sample, last))
    return _failed(sample, unread, cut if found and found.cut else None), found


def _store_health(store: Store, sample: Sample, found: Window | None, totals: Totals) -> Sample:
    """Store the sample, how far the journal was read for it, and the totals with it: all or nothing."""
    state = {_TOTALS[HEALTH]: totals.as_text()}
    if found and found.cursor:
        state[_CURSOR] = found.cursor
    return store.append(sample, state)


def _write_textfile(config: Config, host: Host, sample: Sample, totals: Totals | None) -> None:
    # Imported here, so that a host without prometheus_client misses the text file and nothing else.
    from checks import textfile

    textfile.write(config, host, sample, totals)


def _failed(sample: Sample, *problems: str | None) -> Sample:
    """The sample with more reasons to fail; some quote what others said, at any length."""
    reasons = tuple(why[:_LONGEST_REASON] for why in (*sample.reasons, *problems) if why)
    return replace(sample, reasons=reasons, ok=not reasons)


def _attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """The action's result, or why there is none."""
    try:
        return action(), None
    except (StoreError, OSError) as error:
        return None, str(error)
    except Exception as error:  # A bug in one step is no reason to leave out the others.
        return None, f"{type(error).__name__}: {error}"
