"""The history on disk: what is stored is read back, whatever ends the writing, fills the disk or turns the clock."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import words
from checks.samples import (
    BUCKETS_SECONDS,
    METRICS,
    Histogram,
    Sample,
    Store,
    StoreError,
    StoreFullError,
    increase,
    window_seconds,
)

ROOT = Path(__file__).parents[2]
DAY = 86_400

SAMPLE = Sample(
    time=1795341900,
    window_seconds=300.25,
    ok=False,
    reasons=("it is down", "twice"),
    boot_id="b",
    api="http_503",
    rss_bytes=0,
    requests={"local/no-cloud/2xx": 3, "gateway/no-cloud/5xx": 1},
    responses={"local": Histogram(3, 6.5, (0, 1, 0, 2))},
    first_bytes={"local": Histogram(1, 0.25, (1,))},
    drill_ok=False,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.db"


def test_a_sample_reads_back(path: Path) -> None:
    with Store.open(path) as store:
        assert store.append(SAMPLE, {"cursor": "s=1"}) == SAMPLE
        store.append(replace(SAMPLE, kind=METRICS, ok=True))
    with Store.open(path) as store:
        assert list(store.between(0, 2e9)) == [SAMPLE]
        assert store.last() == SAMPLE
        assert store.last(METRICS) == replace(SAMPLE, kind=METRICS, ok=True)
        assert (store.get("cursor"), store.get("other")) == ("s=1", None)


def test_an_empty_store(path: Path) -> None:
    with Store.open(path) as store:
        assert (store.last(), store.latest(3), list(store.between(0, 2e9)), store.get("x")) == (None, [], [], None)


def test_another_version_reads_what_it_knows() -> None:
    assert Sample.from_json({"time": 5, "from_the_future": [1]}) == Sample(time=5)


def test_a_row_of_something_else_is_left_out(path: Path) -> None:
    with Store.open(path) as store:
        store.append(Sample(time=5))
    rows = [("{", 1), ("[]", 2), ("{}", 3), ('{"time":4,"responses":{"local":7}}', 4)]
    with sqlite3.connect(path) as db:
        db.executemany("INSERT INTO samples (kind, time, data) VALUES ('health', ?2, ?1)", rows)
    with Store.open(path) as store:
        assert [sample.time for sample in store.between(0, 10)] == [5]


def test_the_interval_has_its_start_and_not_its_end(path: Path) -> None:
    with Store.open(path) as store:
        for moment in (30, 10, 20):
            store.append(Sample(time=moment))
        assert [sample.time for sample in store.between(10, 30)] == [10, 20]
        assert [sample.time for sample in store.latest(2)] == [20, 10]


def test_a_clock_that_is_set_back_loses_nothing(path: Path) -> None:
    with Store.open(path) as store:
        for moment in (100, 400, 100, 100):
            stored = store.append(Sample(time=moment, restarts=moment))
        assert stored.time == 102
        assert [sample.time for sample in store.between(0, 1000)] == [100, 101, 102, 400]
        assert store.last() == stored


def fill(store: Store, end: int, count: int = 288) -> None:
    """Samples five minutes apart, the last one at `end`."""
    for number in range(count - 1, -1, -1):
        store.append(Sample(time=end - number * 300))


def test_old_samples_and_those_of_a_wrong_future_go(path: Path) -> None:
    now = 100 * DAY
    with Store.open(path) as store:
        for moment in (now - 92 * DAY, now - 89 * DAY, now + DAY // 3, now + 300 * DAY):
            store.append(Sample(time=moment))
        store.append(Sample(time=now - 92 * DAY, kind=METRICS))
        fill(store, now)
        store.prune(90)
        times = [sample.time for sample in store.between(0, 1000 * DAY)]
        assert (times[0], times[-1], len(times)) == (now - 89 * DAY, now + DAY // 3, 290)
        assert store.last(METRICS) is None


@pytest.mark.parametrize("jump", [120 * DAY, -30 * DAY, -20_000 * DAY])
@pytest.mark.parametrize("runs", [1, 100])
def test_a_wrong_clock_for_a_while_drops_nothing_but_what_it_wrote(path: Path, jump: int, runs: int) -> None:
    now = 20_500 * DAY
    with Store.open(path) as store:
        fill(store, now, 500)
        for number in range(1, runs + 1):
            store.append(Sample(time=now + jump + number * 300))
            store.prune(90)
        fill(store, now + 600, 2)
        store.prune(90)
        kept = [sample.time for sample in store.between(now - 10 * DAY, now + DAY)]
        assert len(kept) == 502


def test_a_young_store_drops_nothing(path: Path) -> None:
    with Store.open(path) as store:
        fill(store, 20_500 * DAY, 100)
        store.append(Sample(time=0))
        store.prune(90)
        assert len(list(store.between(0, 20_501 * DAY))) == 101


def test_state_and_sample_come_together_or_not_at_all(path: Path) -> None:
    with Store.open(path) as store:
        store.append(Sample(time=1), {"cursor": "old"})
        with pytest.raises(StoreError):
            store.append(Sample(time=2), {"cursor": object()})  # type: ignore[dict-item]
        assert store.last() == Sample(time=1)
        assert store.get("cursor") == "old"


def test_two_writers_wait_for_each_other(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        one.append(Sample(time=1))
        other.append(Sample(time=1))
        one.put("key", "value")
        assert other.get("key") == "value"
        assert [sample.time for sample in one.between(0, 9)] == [1, 2]


_WRITER = """
import sys
from checks.samples import Sample, Store
with Store.open(sys.argv[1]) as store:
    for number in range(1, 10**9):
        store.append(Sample(time=number, requests={"local/no-cloud/2xx": number}), {"total": str(number)})
        print(number, flush=True)
"""


def test_kill_9_in_mid_write_loses_at_most_that_sample(path: Path) -> None:
    """Killed again and again: everything that was said to be stored is there, with the state that belongs to it."""
    for number in range(6):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout
        writer.stdout.readline()
        time.sleep(0.05 + 0.013 * number)
        writer.send_signal(signal.SIGKILL)
        said = int((writer.stdout.read().split() or [b"1"])[-1])
        writer.wait()
        with Store.open(path) as store:
            assert store.notice is None
            times = [sample.time for sample in store.between(0, 2e9)]
            assert times == list(range(1, len(times) + 1))
            assert len(times) - said in (0, 1)
            assert store.get("total") == str(times[-1])
            store.append(Sample(time=10**9))


def full(store: Store) -> None:
    """As if the disk had no page left for this database."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_says_so_and_keeps_the_past(path: Path) -> None:
    with Store.open(path) as store:
        store.append(Sample(time=1), {"cursor": "old"})
        full(store)
        with pytest.raises(StoreFullError, match="no space left on the disk"):
            store.append(replace(Sample(time=2), reasons=("x" * 100_000,)), {"cursor": "new"})
        assert (store.last(), store.get("cursor")) == (Sample(time=1), "old")
        store._db.execute("PRAGMA max_page_count = 1000000")
        store.append(Sample(time=3))


@pytest.mark.parametrize("damage", [b"no database at all" * 100, None])
def test_a_damaged_file_is_moved_aside_and_begun_anew(path: Path, damage: bytes | None) -> None:
    with Store.open(path) as store:
        for moment in range(200):
            store.append(Sample(time=moment, reasons=("x" * 100,)))
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:4096] + b"\0" * (len(whole) - 4096))
    with Store.open(path) as store:
        store.append(Sample(time=7))
        assert store.notice == f"{path} was damaged: it was moved to {path}.corrupt, and a new history begins"
        assert list(store.between(0, 9)) == [Sample(time=7)]
    assert Path(f"{path}.corrupt").exists()
    with Store.open(path) as store:
        assert (store.notice, store.last()) == (None, Sample(time=7))


def test_damage_that_only_reading_finds_begins_anew(path: Path) -> None:
    with Store.open(path) as store:
        for moment in range(200):
            store.append(Sample(time=moment, reasons=("x" * 100,)))
    data = bytearray(path.read_bytes())
    with sqlite3.connect(path) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'samples'").fetchone()
    page = data[16] << 8 | data[17]
    data[(root - 1) * page : root * page] = b"\xff" * page
    path.write_bytes(data)
    with Store.open(path) as store:
        assert store.notice is None
        assert store.last() is None
        assert store.notice is not None
        assert Path(f"{path}.corrupt").read_bytes() == data
        store.append(Sample(time=7))
        assert store.last() == Sample(time=7)


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    with Store.open(path) as store:
        assert store.notice is None
        store.append(Sample(time=1))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        Store.open(tmp_path / "missing" / "samples.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read(path: Path) -> None:
    with Store.open(path) as store:
        store.append(Sample(time=1))
    path.parent.chmod(0o500)
    try:
        with Store.open(path) as store:
            assert store.last() == Sample(time=1)
            with pytest.raises(StoreError):
                store.append(Sample(time=2))
    finally:
        path.parent.chmod(0o700)


durations = st.lists(st.floats(0, 1000), max_size=50)


@given(durations, durations)
def test_histograms_add_up(one: list[float], other: list[float]) -> None:
    both, first = Histogram.of(one + other), Histogram.of(one)
    added = first + Histogram.of(other)
    assert (added.count, added.buckets) == (both.count, both.buckets)
    assert added.sum_seconds == pytest.approx(both.sum_seconds)
    rest = added - first
    assert (rest.count, rest.buckets) == (Histogram.of(other).count, Histogram.of(other).buckets)
    assert Histogram.from_json(both.as_json()).buckets == both.buckets


@given(st.lists(st.floats(0, 299), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    estimate = Histogram.of(values).quantile(share)
    assert estimate is not None
    true = sorted(values)[max(0, -(-int(share * len(values) * 1000) // 1000) - 1)]
    index = bisect_left(BUCKETS_SECONDS, true)
    assert (BUCKETS_SECONDS[index - 1] if index else 0.0) <= estimate <= BUCKETS_SECONDS[index]


def test_quantiles_by_hand() -> None:
    # Ten in (1, 1.5], ten in (4, 5].
    histogram = Histogram.of([1.2] * 10 + [4.5] * 10)
    assert histogram.mean_seconds == pytest.approx(2.85)
    assert histogram.quantile(0.25) == pytest.approx(1.25)
    assert histogram.quantile(0.95) == pytest.approx(4.9)
    assert Histogram().quantile(0.5) is None
    assert Histogram().mean_seconds is None
    assert Histogram.of([5000.0]).quantile(0.5) == 300.0


def test_the_goal_is_a_bound() -> None:
    """How many answers took longer than 5 s must not be a guess."""
    assert 5.0 in BUCKETS_SECONDS
    assert list(BUCKETS_SECONDS) == sorted(BUCKETS_SECONDS)


@pytest.mark.parametrize(
    ("before", "sample", "seconds"),
    [
        (None, Sample(time=5), None),
        (Sample(time=100), Sample(time=400), 300),
        (Sample(time=400), Sample(time=100), None),
        # The clock jumped an hour ahead, and back.
        (Sample(time=0, boot_id="a", uptime_seconds=10.0), Sample(time=3900, boot_id="a", uptime_seconds=310.0), 300),
        (Sample(time=3900, boot_id="a", uptime_seconds=10.0), Sample(time=0, boot_id="a", uptime_seconds=310.0), 300),
        # Another start of the machine has another uptime.
        (Sample(time=0, boot_id="a", uptime_seconds=9000.0), Sample(time=600, boot_id="b", uptime_seconds=60.0), 600),
    ],
)
def test_windows(before: Sample | None, sample: Sample, seconds: float | None) -> None:
    assert window_seconds(sample, before) == seconds


@pytest.mark.parametrize(
    ("before", "now", "grown"), [(3, 5, 2), (5, 3, 3), (None, 3, None), (3, None, None), (4, 4, 0)]
)
def test_counters_that_begin_again(before: float | None, now: float | None, grown: float | None) -> None:
    assert increase(before, now) == grown


def test_90_days_fit_into_50_mb(path: Path) -> None:
    """Of a busy host, with a cloud: every five minutes a sample, every hour one more."""
    every = {backend: Histogram(count=200, sum_seconds=421.123, buckets=(17,) * 24) for backend in ("local", "cloud")}
    requests = {f"local/{reason}/2xx": 123 for reason in ("utility-task", "short-prompt", "default", "asked-local")}
    busy = replace(
        SAMPLE,
        rss_bytes=2_345_678_901,
        memory_bytes=2_345_678_901,
        memory_peak_bytes=2_345_678_901,
        disk_free_bytes=123_345_678_901,
        boot_id="b677dab0-f0be-410d-a165-65206414b4f2",
        requests=requests,
        responses=every,
        first_bytes=every,
    )
    with Store.open(path) as store:
        store._db.execute("PRAGMA synchronous = OFF")
        # A tenth of them: nine days.
        for number in range(9 * 288):
            store.append(replace(busy, time=number * 300))
        for number in range(9 * 24):
            store.append(replace(busy, time=number * 3600, kind=METRICS))
        store._db.execute("PRAGMA wal_checkpoint")
        assert path.stat().st_size * 10 < 50e6


def test_a_history_that_forged_names_had_blown_up_is_small_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    with Store.open(path) as store:
        store.append(Sample(time=1, requests={"local/default/2xx": 1}))
    forged = {f"evil{number}/evil{number}/2xx": 1 for number in range(50_000)}
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 0")
        data = json.dumps({"time": 2, "requests": {"local/default/2xx": 4, **forged}})
        db.execute("INSERT INTO samples (kind, time, data) VALUES ('health', 2, ?)", (data,))
        db.execute("INSERT INTO samples (kind, time, data) VALUES ('health', 3, ?)", ("x" * 100_000,))
    with Store.open(path) as store:
        found = list(store.between(0, 9))
    assert [sample.requests for sample in found] == [
        {"local/default/2xx": 1},
        {"local/default/2xx": 4, "other/other/2xx": 50_000},
    ]
    assert path.stat().st_size < 64 * 1024


def test_the_largest_sample_of_the_closed_lists_is_no_forged_one() -> None:
    counts = dict.fromkeys(words.KEYS, 10**6)
    histogram = Histogram.of(range(1, 400))
    times = dict.fromkeys(words.BACKENDS, histogram)
    sample = Sample(time=1, requests=counts, responses=times, first_bytes=times, reasons=("x" * 400,) * 12)
    assert len(json.dumps(sample.as_json())) < 64 * 1024
    assert Sample.from_json(sample.as_json()) == sample


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(sorted(words.KEYS)), st.integers(1, 99)))
def test_no_name_becomes_a_key(counts: dict[str, int]) -> None:
    closed = words.requests(counts)
    assert closed.keys() <= words.KEYS
    assert sum(closed.values()) == sum(counts.values())
    assert words.requests(closed) == closed
