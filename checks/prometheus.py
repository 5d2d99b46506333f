"""Prometheus beside the model, where the deploy put it: whether its units run, and what it sees."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from checks import probe
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.contract.config import Config, Prometheus
    from checks.host import Host

_API = "/prometheus/api/v1"
_UNIT = "local-llm-prometheus.service"
_DISCOVERY_SECONDS = 15.0
"""A Prometheus that has just started knows no targets: it learns them in rounds of 5 s (its discovery's interval)."""


def services(config: Config, host: Host) -> Iterator[Result]:
    """Each of its units is up."""
    if config.prometheus is None:
        return
    for unit in map(host.unit, config.prometheus.units):
        yield judge(
            unit.name,
            unit.active,
            unit.active_state,
            "active",
            f"It watches nothing. Why: sudo journalctl -u {unit.name} -n 50; again: sudo systemctl restart {unit.name}",
        )


def targets(config: Config, host: Host) -> Iterator[Result]:
    """Prometheus gets an answer from all that it is to ask, and can evaluate its rules."""
    if config.prometheus is None:
        return
    host.require_root("Prometheus' socket")
    remedy = f"Nothing is recorded or alerted of it. Why: sudo journalctl -u {_UNIT} -n 50"
    try:
        targets = ask(config.prometheus, host, "targets?state=active")["activeTargets"]
        groups = ask(config.prometheus, host, "rules")["groups"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Result("prometheus", Status.FAIL, f"no answer: {type(error).__name__}", "an answer", remedy)
        return
    health = Counter(target["health"] for target in targets)
    down = [f"{target['labels']['job']}: {target['lastError']}" for target in targets if target["health"] == "down"]
    value = ", ".join(f"{count} {'not asked yet' if state == 'unknown' else state}" for state, count in health.items())
    if not targets and _has_just_started(host):
        value = "none known yet"
    yield judge("prometheus targets", bool(value) and not down, "; ".join(down) or value or "none", "all up", remedy)
    rules = [rule for group in groups for rule in group["rules"]]
    broken = [f"{rule['name']}: {rule.get('lastError', '')}" for rule in rules if rule["health"] == "err"]
    yield judge(
        "prometheus rules", bool(rules) and not broken, "; ".join(broken) or f"{len(rules)}", "all evaluated", remedy
    )


def _has_just_started(host: Host) -> bool:
    seconds = host.unit(_UNIT).uptime_seconds(host.monotonic())
    return seconds is not None and seconds < _DISCOVERY_SECONDS


def ask(prometheus: Prometheus, host: Host, what: str) -> Any:
    """What Prometheus' API answers; raises OSError, ValueError, KeyError or TypeError where that is no answer of it."""
    return json.loads(probe.get_over_socket(str(host.path(prometheus.socket)), f"{_API}/{what}"))["data"]
