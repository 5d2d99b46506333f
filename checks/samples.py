"""The history of measurements: one sample a health run and one a metrics run, in SQLite, with what must outlive a run.

A sample and the state that belongs to it (how far the journal is read, running totals) are written in one transaction,
so that whatever ends a run, nothing is half written or counted twice. Times are the wall clock's, which may jump; the
order of writing is kept beside them. Imports little, because it runs all day (see `probe`).
"""

from __future__ import annotations

import json
import os
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

from checks import words

Kind = Literal["health", "metrics"]
HEALTH: Kind = "health"
METRICS: Kind = "metrics"

T = TypeVar("T")

BUCKETS_SECONDS = (
    *(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    *(10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0),
    *(120.0, 180.0, 300.0),
)
"""Upper bounds, inclusive, of a histogram's buckets; one more bucket has no bound. A stored sample relies on them: a
change of this list needs a new name for the field."""

BOOT_SECONDS = 180.0
"""After the machine's start services may still be on their way up."""

_BUSY_SECONDS = 5.0
# Less than this and SQLite cannot write: its shared-memory file alone takes 32 KiB.
_FULL_BELOW_BYTES = 256 * 1024
_DAY_SECONDS = 86400
_WITNESSES = 288
"""Samples that tell the time, a day's at 5 minutes: a single one may have been taken under a wrong clock."""
_LARGE_BYTES = 64 * 1024
"""More than any sample takes: its keys are of closed lists (`words`), its texts are short."""
_VERSION = 1
"""Of the stored samples: 1 since keys are of closed lists."""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, time INTEGER NOT NULL, data TEXT NOT NULL, UNIQUE (kind, time)
);
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


_Change = Callable[[sqlite3.Connection], object]


class StoreError(Exception):
    """The store cannot be read or written; the message is one line for a person."""


class StoreFullError(StoreError):
    """There is no space left for the sample; what was stored before can still be read."""


@dataclass(frozen=True)
class Histogram:
    """Durations, counted by `BUCKETS_SECONDS`; buckets at the end that count nothing are left out."""

    count: int = 0
    sum_seconds: float = 0.0
    buckets: tuple[int, ...] = ()

    @classmethod
    def of(cls, durations_seconds: Iterable[float]) -> Histogram:
        counts = [0] * (len(BUCKETS_SECONDS) + 1)
        total = 0.0
        for seconds in durations_seconds:
            counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
            total += seconds
        return cls(sum(counts), total, _trimmed(counts))

    def __add__(self, other: Histogram) -> Histogram:
        pairs = zip_longest(self.buckets, other.buckets, fillvalue=0)
        return Histogram(
            self.count + other.count, self.sum_seconds + other.sum_seconds, _trimmed([a + b for a, b in pairs])
        )

    def __sub__(self, earlier: Histogram) -> Histogram:
        """What was counted after an earlier state of the same histogram."""
        pairs = zip_longest(self.buckets, earlier.buckets, fillvalue=0)
        counts = [max(0, a - b) for a, b in pairs]
        return Histogram(sum(counts), max(0.0, self.sum_seconds - earlier.sum_seconds), _trimmed(counts))

    @property
    def mean_seconds(self) -> float | None:
        return self.sum_seconds / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The duration that a share (0 to 1) of the others do not exceed, interpolated within its bucket.

        None without any; the largest bound where it lies beyond that.
        """
        if not self.count:
            return None
        rank, below = share * self.count, 0
        for index, count in enumerate(self.buckets):
            if count and below + count >= rank:
                if index == len(BUCKETS_SECONDS):
                    break
                lower = BUCKETS_SECONDS[index - 1] if index else 0.0
                return lower + (BUCKETS_SECONDS[index] - lower) * max(0.0, rank - below) / count
            below += count
        return BUCKETS_SECONDS[-1]

    def as_json(self) -> dict[str, Any]:
        return {"count": self.count, "sum_seconds": round(self.sum_seconds, 3), "buckets": list(self.buckets)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        return cls(data["count"], data["sum_seconds"], tuple(data["buckets"]))


@dataclass(frozen=True)
class Sample:
    """One measurement; None is not known.

    `window_seconds` is the time since the sample of this kind before, by a clock that does not jump; the first has
    none. What the window counts: `requests` by "backend/reason/status" (2xx, 4xx, 5xx, aborted by the client, broken
    off by the backend; all of `words`), `responses` (whole answers) and `first_bytes` of 2xx answers by backend,
    `queue_seconds_max`.
    The gateway's own answers and refusals count as backend gateway; probes and questions (/health, X-LLM-Explain) not.
    `cloud_refusals` are the cloud's answers that refuse the gateway whatever is asked, by status.

    Counters that only grow, and fall to 0: with the service `cpu_seconds`, `tokens_in`, `tokens_out`, `prompt_seconds`,
    `generation_seconds`, `decodes` (steps of the model's work); with a start on purpose `restarts` and
    `gateway_restarts`; with the history `oom_kills` and `gateway_oom_kills`. `uptime_seconds` is the machine's.

    `memory_high_events` and `memory_max_events` count with the service how often it was held up at memory.high, or had
    to give memory back at memory.max; `memory_stalled_percent` of the last minute all of it waited for memory.

    `stalled_seconds`: how long the model has been busy without any progress; None where it is idle. `locked_seconds`:
    how long the lock of deploys and drills has been held; None where it is free.
    """

    time: int
    kind: Kind = HEALTH
    window_seconds: float | None = None
    ok: bool = True
    reasons: tuple[str, ...] = ()
    boot_id: str | None = None
    uptime_seconds: float | None = None
    service: str | None = None
    gateway: str | None = None
    api: str | None = None
    api_seconds: float | None = None
    probe: str | None = None
    probe_seconds: float | None = None
    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_high_events: int | None = None
    memory_max_events: int | None = None
    memory_stalled_percent: float | None = None
    oom_kills: int | None = None
    gateway_oom_kills: int | None = None
    restarts: int | None = None
    gateway_restarts: int | None = None
    swap_used_bytes: int | None = None
    load1: float | None = None
    cores: int | None = None
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    requests: Mapping[str, int] = field(default_factory=dict)
    responses: Mapping[str, Histogram] = field(default_factory=dict)
    first_bytes: Mapping[str, Histogram] = field(default_factory=dict)
    tokens_in: int | None = None
    tokens_out: int | None = None
    prompt_seconds: float | None = None
    generation_seconds: float | None = None
    decodes: int | None = None
    stalled_seconds: float | None = None
    queue: int | None = None
    queue_seconds_max: float | None = None
    cloud: str | None = None
    cloud_refusals: Mapping[str, int] = field(default_factory=dict)
    healed: str | None = None
    drill_ok: bool | None = None
    locked_seconds: float | None = None

    @property
    def up(self) -> bool | None:
        """Whether requests were served; None where the sample does not know.

        /health was answered, and the small completion where it was tried. One that the gateway refused itself counts
        as served where the cloud stands in. While the machine starts, the time in which it was off goes on.
        """
        if self.api is None:
            return None
        served = self.api == "ok" and self.probe != "failed" and (self.probe != "refused" or self.cloud == "up")
        booting = self.uptime_seconds is not None and self.uptime_seconds < BOOT_SECONDS
        return None if booting and not served else served

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; what is not known or empty is left out."""
        data: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or (each.name != "time" and value in ((), {})):
                continue
            if each.name in _HISTOGRAMS:
                value = {backend: histogram.as_json() for backend, histogram in value.items()}
            data[each.name] = round(value, 3) if isinstance(value, float) else value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """From `as_json`, of this version or another: keys that are not known are ignored."""
        known = {name: data[name] for name in _NAMES if name in data}
        known["reasons"] = tuple(known.get("reasons", ()))
        for name in _HISTOGRAMS & known.keys():
            known[name] = histograms(known[name])
        if "requests" in known:
            known["requests"] = words.requests(known["requests"])
        return cls(**known)


def histograms(data: Mapping[str, Any]) -> dict[str, Histogram]:
    """By backend, from `Histogram.as_json`; those of no backend are left out."""
    return {backend: Histogram.from_json(each) for backend, each in data.items() if backend in words.BACKENDS}


_NAMES = tuple(each.name for each in fields(Sample))
_HISTOGRAMS = {"responses", "first_bytes"}


class Store:
    """Samples and state on disk.

    Opening it makes it if it is missing. A file that is damaged, or no database any more, is moved aside as
    PATH.corrupt and begun anew as soon as SQLite finds out; `notice` says so then. Where there is no space to write,
    the old samples can still be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice: str | None = None
        self._writable = True
        self._db = self._opened()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Raises StoreError where it can neither be written nor read."""
        return cls(Path(path))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def append(self, sample: Sample, state: Mapping[str, str] | None = None) -> Sample:
        """Store a sample and state in one transaction; raises StoreError, StoreFullError.

        A time that is taken, because the clock was set back, becomes the next one that is free; the sample is returned
        as it was stored.
        """
        stored = sample

        def write(db: sqlite3.Connection) -> None:
            nonlocal stored
            stored = _at_free_time(db, sample)
            row = (stored.kind, stored.time, _as_text(stored))
            db.execute("INSERT INTO samples (kind, time, data) VALUES (?, ?, ?)", row)
            _put(db, state or {})

        self._write(write)
        return stored

    def put(self, key: str, value: str) -> None:
        """Store a value of state; raises like `append`."""
        self._write(lambda db: _put(db, {key: value}))

    def get(self, key: str) -> str | None:
        """A value of state; raises StoreError."""
        rows = self._read("SELECT value FROM state WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def between(self, start: float, end: float, kind: Kind = HEALTH) -> Iterator[Sample]:
        """Samples from start until before end (seconds since the epoch), by time; raises StoreError."""
        rows = self._read(
            "SELECT data FROM samples WHERE kind = ? AND time >= ? AND time < ? ORDER BY time", kind, start, end
        )
        return _samples(rows)

    def last(self, kind: Kind = HEALTH) -> Sample | None:
        """The sample written last, whatever its time says; raises StoreError."""
        return next(iter(self.latest(1, kind)), None)

    def latest(self, count: int, kind: Kind = HEALTH) -> list[Sample]:
        """The samples written last, the latest first; raises StoreError."""
        rows = self._read("SELECT data FROM samples WHERE kind = ? ORDER BY id DESC LIMIT ?", kind, count)
        return list(_samples(rows))

    def prune(self, keep_days: int) -> None:
        """Drop what is older, or more than a day ahead, by the median time of the last samples; raises like `append`.

        A clock that was wrong for less than half of them drops nothing but what it wrote; before there are enough of
        them, everything stays.
        """
        rows = self._read("SELECT time FROM samples WHERE kind = ? ORDER BY id DESC LIMIT ?", HEALTH, _WITNESSES)
        if len(rows) < _WITNESSES:
            return
        now = sorted(rows)[_WITNESSES // 2][0]
        bounds = (now - keep_days * _DAY_SECONDS, now + _DAY_SECONDS)
        # As ranges of the index (kind, time); a plain OR over all kinds would read the whole table each time.
        statements = [
            "DELETE FROM samples WHERE kind = ? AND time < ?",
            "DELETE FROM samples WHERE kind = ? AND time > ?",
        ]
        self._write(
            lambda db: [
                db.execute(statement, (kind, bound))
                for kind in (HEALTH, METRICS)
                for statement, bound in zip(statements, bounds, strict=True)
            ]
        )

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.Error as error:
            if _is_corrupt(error):
                return self._begun_anew()
            return self._readable(error)

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # A power cut may take the last samples with it, never the database (SQLite's own words on WAL).
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            _shrink(db)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _begun_anew(self) -> sqlite3.Connection:
        aside = self.path.with_name(self.path.name + ".corrupt")
        self.notice = f"{self.path} was damaged: it was moved to {aside}, and a new history begins"
        try:
            self.path.replace(aside)
            # A write-ahead log belongs to its database; to another it is poison.
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            return self._connected()
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from None

    def _readable(self, error: sqlite3.Error) -> sqlite3.Connection:
        """The store as it lies on the disk, for reading only: this takes no space beside it."""
        self._writable = False
        try:
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
            db.execute("SELECT 1 FROM samples, state LIMIT 1")
        except sqlite3.Error:
            raise self._error(error) from None
        return db

    def _write(self, change: _Change) -> None:
        self._whole(lambda: self._changed(change))

    def _whole(self, action: Callable[[], T]) -> T:
        """What the action returns, with a new history where it finds the old one damaged."""
        try:
            return action()
        except sqlite3.Error as error:
            # What may only be read is read without its write-ahead log, so that it can look damaged.
            if not (self._writable and _is_corrupt(error)):
                raise self._error(error) from None
        self.close()
        self._db = self._begun_anew()
        try:
            return action()
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _changed(self, change: _Change) -> None:
        if not self._writable:
            # There may be space again.
            db = self._connected()
            self.close()
            self._db, self._writable = db, True
        self._db.execute("BEGIN IMMEDIATE")
        try:
            change(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._whole(lambda: self._db.execute(statement, values).fetchall())

    def _error(self, error: Exception) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or self._disk_is_full():
            return StoreFullError(f"no space left on the disk for {self.path}")
        if isinstance(error, OSError):
            return StoreError(f"{self.path}: {error.strerror or error}")
        return StoreError(f"{self.path}: {error}")

    def _disk_is_full(self) -> bool:
        """SQLite says "unable to open" and "I/O error" too where there is no space."""
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return False
        no_inodes = found.f_files > 0 and not found.f_favail
        return no_inodes or found.f_bavail * found.f_frsize < _FULL_BELOW_BYTES


def window_seconds(sample: Sample, before: Sample | None) -> float | None:
    """Time between two samples, by the machine's uptime, which does not jump; by the clock over a restart of it."""
    if before is None:
        return None
    same_boot = sample.boot_id is not None and sample.boot_id == before.boot_id
    if same_boot and sample.uptime_seconds is not None and before.uptime_seconds is not None:
        return max(0.0, sample.uptime_seconds - before.uptime_seconds)
    passed = float(sample.time - before.time)
    return passed if passed > 0 else None


def increase(before: float | None, now: float | None) -> float | None:
    """How much a counter has grown that begins at 0 again when its process is restarted."""
    if before is None or now is None:
        return None
    return now - before if now >= before else now


def _shrink(db: sqlite3.Connection) -> None:
    """Once: samples that hold keys without end, made of a log that anybody wrote into, are stored anew without."""
    if db.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
        return
    too_large = "SELECT id, data FROM samples WHERE length(CAST(data AS BLOB)) > ?"
    # Where another process writes, or there is no space, the next one does it.
    with suppress(sqlite3.OperationalError):
        found = db.execute(too_large, (_LARGE_BYTES,)).fetchall()
        for number, text in found:
            for sample in _samples([(text,)]):
                db.execute("UPDATE samples SET data = ? WHERE id = ?", (_as_text(sample), number))
        db.execute("DELETE FROM samples WHERE length(CAST(data AS BLOB)) > ?", (_LARGE_BYTES,))
        if found:
            db.execute("VACUUM")
        db.execute(f"PRAGMA user_version = {_VERSION}")


def _as_text(sample: Sample) -> str:
    return json.dumps(sample.as_json(), ensure_ascii=False, separators=(",", ":"))


def _at_free_time(db: sqlite3.Connection, sample: Sample) -> Sample:
    free = sample.time
    while db.execute("SELECT 1 FROM samples WHERE kind = ? AND time = ?", (sample.kind, free)).fetchone():
        free += 1
    return sample if free == sample.time else replace(sample, time=free)


def _put(db: sqlite3.Connection, values: Mapping[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", list(values.items()))


def _samples(rows: Iterable[tuple[Any, ...]]) -> Iterator[Sample]:
    for (text,) in rows:
        # What this version cannot read is as good as missing.
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            yield Sample.from_json(json.loads(text))


def _trimmed(counts: list[int]) -> tuple[int, ...]:
    while counts and not counts[-1]:
        counts = counts[:-1]
    return tuple(counts)


def _is_corrupt(error: sqlite3.Error) -> bool:
    # Extended codes carry the plain one in their lowest byte.
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _CORRUPT
