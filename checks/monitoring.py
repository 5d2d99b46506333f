"""The watchers watched: cron, logrotate, the health log, the fallback drill and the metrics."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from checks import drill, health
from checks.contract.paths import CRON_FILE, DRILL_UNIT, HEALTH_LOG, LOGROTATE_FILE
from checks.result import Result, Status, judge
from checks.service import duration

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_CRON_UNIT = "cron.service"
_GROUP_OR_OTHER_WRITE = 0o022
_DRILL_PATIENCE_DAYS = 8


def cron(_config: Config, host: Host) -> Iterator[Result]:
    """cron runs, and reads a file that calls the health check."""
    try:
        found = host.status(CRON_FILE)
        calls = bool(re.search(r"^[^#\n]*local-llm health", host.read(CRON_FILE), re.MULTILINE))
        # cron ignores, with a line in its log only, a file that is not root's or that others may write.
        safe = found.owner == "root" and not found.mode & _GROUP_OR_OTHER_WRITE
        value = f"{found.mode:04o} {found.owner}"
        value += "" if safe else ": cron ignores it"
        value += "" if calls else ", no health check"
        good = calls and safe
    except FileNotFoundError:
        good, value = False, "missing"
    yield judge(
        "cron file",
        good,
        value,
        "runs the health check",
        f"Nobody watches the service. Look: ls -l {CRON_FILE}; deploy again to rewrite it",
    )
    unit = host.unit(_CRON_UNIT)
    yield judge(
        "cron",
        unit.active,
        unit.active_state,
        "active",
        "Nothing is run on time, the health check included: sudo systemctl enable --now cron",
    )


def log_rotation(config: Config, host: Host) -> Iterator[Result]:
    """logrotate accepts its file and keeps the health log for as many days as configured."""
    name, limit = "log rotation", f"{config.log_retention_days} days"
    if not host.exists(LOGROTATE_FILE):
        yield Result(name, Status.FAIL, f"{LOGROTATE_FILE} is missing", limit, "Logs grow without end. Deploy again.")
        return
    host.require_root("logrotate")
    done = host.run("logrotate", "--debug", LOGROTATE_FILE)
    report = done.stdout + done.stderr
    problems = re.findall(r"^error: .*", report, re.MULTILINE)
    kept = kept_days(report, HEALTH_LOG)
    yield judge(
        name,
        done.code == 0 and not problems and kept == config.log_retention_days,
        problems[0] if problems else "not rotated daily" if kept is None else f"{kept} days",
        limit,
        f"Logs are not rotated as planned. What logrotate says: sudo logrotate --debug {LOGROTATE_FILE}",
    )


def kept_days(report: str, log: str) -> int | None:
    """How many days of a log are kept, from `logrotate --debug`; None if it is not rotated daily.

    The line is "rotating pattern: /var/log/a.log /var/log/b.log  after 1 days (7 rotations)".
    """
    for patterns, rotations in re.findall(
        r"^rotating pattern: (.*?)\s+after 1 days .*?\((\d+) rotations", report, re.MULTILINE
    ):
        if log in patterns.split():
            return int(rotations)
    return None


def last_health(config: Config, host: Host) -> Iterator[Result]:
    """The scheduled health check has run lately, and was content.

    Where cron or its file is younger than two intervals, no line can be expected yet.
    """
    name = "last scheduled health check"
    patience = 2 * config.health_interval_minutes * 60
    limit = f"OK, under {duration(patience)} old"
    record = read_last_health(host)
    age = host.now() - record.time if record else None
    if record is None or age is None or age > patience:
        young = _watching_seconds(host) < patience
        value = "none yet" if age is None else f"{duration(age)} old"
        yield judge(
            name,
            young,
            f"{value}, due within {config.health_interval_minutes} min" if young else value,
            limit,
            "The service is not watched. See what it says: sudo local-llm health --log; "
            "and whether cron calls it: sudo journalctl -u cron -n 20",
        )
        return
    yield judge(
        name,
        record.ok,
        f"{'OK' if record.ok else 'FAIL'}, {duration(max(0.0, age))} old",
        limit,
        f"It found: {record.values.get('reason', 'no reason')}. Now: sudo local-llm health",
        otherwise=Status.WARN,
    )


def last_drill(config: Config, host: Host) -> Iterator[Result]:
    """The last fallback drill went well and, where one is due every week, is not overdue."""
    name = "last fallback drill"
    found = drill.read_record(host)
    due = config.drill_weekly and config.cloud is not None
    limit = f"ok, under {_DRILL_PATIENCE_DAYS} days old" if due else "ok"
    if found is None:
        if config.cloud is not None:
            waiting = not due or _installed_seconds(host) < _DRILL_PATIENCE_DAYS * 86400
            yield judge(
                name,
                waiting,
                "none yet",
                limit,
                "Nobody has seen the fallback work here. Try it: sudo local-llm drill",
                otherwise=Status.WARN,
            )
        return
    age = max(0.0, host.now() - found.time)
    said = "; ".join(drill.sentence(side) for side in found.sides)
    yield judge(
        name,
        found.ok and not (due and age > _DRILL_PATIENCE_DAYS * 86400),
        f"{'ok' if found.ok else 'not ok'}, {duration(age)} old: {said}",
        limit,
        "The fallback has not been seen to work lately. Try it: sudo local-llm drill; "
        f"what it did: sudo journalctl -u {DRILL_UNIT} -n 20",
        otherwise=Status.WARN,
    )


def metrics(config: Config, _host: Host) -> Iterator[Result]:
    """The gateway's Prometheus endpoint answers with its series."""
    import requests

    from checks.api import CONNECT_SECONDS, new_session

    name, limit = "metrics", "haproxy_ series"
    remedy = f"Prometheus sees nothing. Why: sudo journalctl -u {config.gateway_unit} -n 50"
    try:
        with new_session() as session:
            response = session.get(config.metrics_url, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        reason = "nothing listens there" if "refused" in str(error) else type(error).__name__
        yield Result(name, Status.FAIL, reason, limit, remedy)
        return
    series = len(re.findall(r"^haproxy_\w+", response.text, re.MULTILINE))
    yield judge(
        name,
        response.status_code == 200 and series > 0,
        f"{series} series" if response.status_code == 200 else f"HTTP status {response.status_code}",
        limit,
        remedy,
    )


def read_last_health(host: Host) -> health.Record | None:
    """The newest line of the health log; just after a rotation it is in the log before."""
    for path in (HEALTH_LOG, f"{HEALTH_LOG}.1", f"{HEALTH_LOG}.1.gz"):
        try:
            if path.endswith(".gz"):
                with gzip.open(host.path(path), "rt", encoding="utf-8", errors="replace") as lines:
                    text = lines.read()
            else:
                text = host.read(path)
        except FileNotFoundError:
            continue
        for line in reversed(text.splitlines()):
            record = health.parse_line(line)
            if record:
                return record
    return None


def _watching_seconds(host: Host) -> float:
    """For how long cron has had a file to run."""
    uptime = host.unit(_CRON_UNIT).uptime_seconds(host.monotonic())
    try:
        file_age = host.now() - host.status(CRON_FILE).mtime_ns / 1e9
    except FileNotFoundError:
        return 0.0
    return min(uptime or 0.0, file_age)


def _installed_seconds(host: Host) -> float:
    """For how long the drill's unit has been there to be started."""
    try:
        return host.now() - host.status(f"/etc/systemd/system/{DRILL_UNIT}").mtime_ns / 1e9
    except FileNotFoundError:
        return float("inf")
