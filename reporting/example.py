"""Samples of a host in use, made up: office hours, a busy day, hours without power, a hang, a cloud outage, a kill.

Deterministic: the same arguments give the same samples. Nothing here was measured.
`python -m reporting.example FILE` writes the page of three hosts made of them, which is the one of docs/report.png.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from checks import goals, week
from checks.history import Window, summarise
from checks.host import MIB
from checks.samples import Histogram, Sample
from reporting.page import Row, render, write

GIB = 1024 * MIB
INTERVAL_SECONDS = 300
_SHARES = {
    "local/utility-task/2xx": 0.46,
    "local/short-prompt/2xx": 0.22,
    "cloud/default/2xx": 0.16,
    "cloud/long-prompt/2xx": 0.06,
    "cloud/reasoning/2xx": 0.04,
    "cloud/utility-task/2xx": 0.03,
    "local/utility-task/aborted": 0.02,
    "gateway/utility-task/5xx": 0.01,
}


def samples(until: int, days: int = 7, seed: int = 1, load: float = 1.0, trouble: bool = True) -> Iterator[Sample]:
    """Samples every 5 minutes before `until`, on a grid of days that begin at midnight UTC."""
    random = Random(seed)  # noqa: S311 - nothing secret
    tokens_in = tokens_out = oom_kills = restarts = 0
    prompt_seconds = generation_seconds = cpu_seconds = 0.0
    boot, booted = "first", until - 40 * 86_400
    start = until - days * 86_400
    for time in range(start, until, INTERVAL_SECONDS):
        hour = (time - start) / 3600
        if trouble and 61 <= hour < 69:  # no power
            boot, booted = "second", start + 69 * 3600
            tokens_in = tokens_out = 0
            prompt_seconds = generation_seconds = cpu_seconds = 0.0
            continue
        hung = trouble and 107 <= hour < 107.4
        outage = trouble and 36 <= hour < 39
        killed = trouble and 130 <= hour < 130.05
        busy = load * _traffic(time) * (2.2 if 86 <= hour < 94 else 1.0)
        count = 0 if hung else _poisson(random, busy)
        requests: dict[str, int] = {}
        durations: dict[str, list[float]] = {}
        for _ in range(count):
            key = random.choices(list(_SHARES), list(_SHARES.values()))[0]
            if outage and key.startswith("cloud/"):
                key = key.replace("cloud/", "local/", 1)
            requests[key] = requests.get(key, 0) + 1
            backend = key.split("/", 1)[0]
            if key.endswith("/2xx"):
                wait = 1.0 if busy < 6 else 1.0 + random.expovariate(0.4)
                typical = 1.1 if backend == "local" else 1.6
                durations.setdefault(backend, []).append(wait * random.lognormvariate(math.log(typical), 0.6))
            if backend == "local":
                tokens_in += random.randint(80, 480)
                tokens_out += random.randint(10, 90)
                prompt_seconds += random.uniform(0.3, 2.0)
                generation_seconds += random.uniform(0.6, 4.0)
                cpu_seconds += random.uniform(1.5, 6.0)
        if killed:
            oom_kills, restarts = 1, 1
        rss = (2610 if killed else 1640 + 90 * _traffic(time) / 5 + random.uniform(-12, 12)) * MIB
        yield Sample(
            time=time + 2,
            window_seconds=float(INTERVAL_SECONDS),
            ok=not hung,
            boot_id=boot,
            uptime_seconds=float(time - booted),
            service="active",
            gateway="active",
            api="timeout" if hung else "ok",
            probe="none" if hung else ("skipped-traffic" if count else "ok"),
            cpu_seconds=cpu_seconds,
            rss_bytes=int(rss),
            memory_bytes=int(rss) + 70 * MIB,
            memory_peak_bytes=int(2700 * MIB if oom_kills else 1900 * MIB),
            memory_limit_bytes=3072 * MIB,
            oom_kills=oom_kills,
            restarts=restarts,
            disk_free_bytes=22 * GIB,
            disk_total_bytes=40 * GIB,
            requests=requests,
            responses={backend: Histogram.of(each) for backend, each in durations.items()},
            first_bytes={backend: Histogram.of(s * 0.4 for s in each) for backend, each in durations.items()},
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            prompt_seconds=prompt_seconds,
            generation_seconds=generation_seconds,
            queue=0,
            queue_seconds_max=max((random.expovariate(1.5) for _ in range(count)), default=None),
            cloud="down" if outage else "up",
            healed="local-llm.service was restarted: it ran, and did not answer 2 checks in a row"
            if trouble and 107.4 <= hour < 107.45
            else None,
        )


MIDNIGHT = 1_795_305_600
"""2026-11-22 00:00 UTC"""
TARGETS = goals.Targets(
    utility_percent=90.0, response_seconds=5.0, uptime_percent=99.0, memory_mib=2560, memory_max_mib=3072
)


def report(host: str, found: list[Sample], days: int = 7) -> week.Report:
    """What a host with these samples reports of the days before `MIDNIGHT`."""
    history = summarise(Window(MIDNIGHT - days * 86_400, MIDNIGHT, INTERVAL_SECONDS), found)
    return week.Report(week.FORMAT, host, "1.0.0", MIDNIGHT, days, TARGETS, goals.judge(history, TARGETS), history)


def page() -> str:
    """Three hosts: one with every kind of trouble, one that does well, one that was not reached."""
    return render(
        [
            Row("vps1.example.net", report("vps1", list(samples(MIDNIGHT)))),
            Row("vps2.example.net", report("vps2", list(samples(MIDNIGHT, seed=2, trouble=False)))),
            Row("203.0.113.7", problem="it could not be reached"),
        ],
        MIDNIGHT,
    )


def _traffic(time: int) -> float:
    """Requests in 5 minutes, on average: people work from 7 to 19 UTC on weekdays."""
    day, hour = time // 86_400, time % 86_400 / 3600
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday
    if weekday >= 5:
        return 0.15
    return 0.2 + 5.0 * math.exp(-(((hour - 13) / 3.6) ** 2))


def _poisson(random: Random, mean: float) -> int:
    limit, count, product = math.exp(-mean), 0, random.random()
    while product > limit:
        count += 1
        product *= random.random()
    return count


if __name__ == "__main__":
    write(Path(sys.argv[1]), page())
