"""Prometheus beside the model, where the deploy put it: its services, who reaches them, and what it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from checks import network
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.config import Config
    from checks.host import Host


def services(config: Config, host: Host) -> Iterator[Result]:
    """Each of the services runs and is reachable from this machine alone."""
    if not config.prometheus:
        return
    listening = network.listeners(host)
    for service in config.prometheus:
        unit = host.unit(service.unit)
        yield judge(
            unit.name,
            unit.active,
            unit.active_state,
            "active",
            f"It watches nothing. Why: sudo journalctl -u {unit.name} -n 50; again: sudo systemctl restart {unit.name}",
        )
        here = [listener for listener in listening if listener.port == service.port]
        yield judge(
            f"port {service.port}",
            bool(here) and all(listener.loopback for listener in here),
            ", ".join(str(listener) for listener in here) or "nothing listens",
            "loopback only",
            f"Others than this machine may reach it. Stop it now: sudo systemctl stop {unit.name}; then deploy again"
            if here
            else f"It does not listen. Why: sudo journalctl -u {unit.name} -n 50",
        )


def targets(config: Config, _host: Host) -> Iterator[Result]:
    """Prometheus gets an answer from all that it is to ask, and can evaluate its rules."""
    if not config.prometheus:
        return
    url = f"http://127.0.0.1:{config.prometheus[0].port}"
    remedy = f"Nothing is recorded or alerted of it. Why: sudo journalctl -u {config.prometheus[0].unit} -n 50"
    try:
        targets = _ask(f"{url}/api/v1/targets?state=active")["activeTargets"]
        groups = _ask(f"{url}/api/v1/rules")["groups"]
    except (OSError, ValueError, KeyError) as error:
        # What requests raises is an OSError.
        yield Result("prometheus", Status.FAIL, f"no answer: {type(error).__name__}", "an answer", remedy)
        return
    health = Counter(target["health"] for target in targets)
    down = [f"{target['labels']['job']}: {target['lastError']}" for target in targets if target["health"] == "down"]
    value = ", ".join(f"{count} {'not asked yet' if state == 'unknown' else state}" for state, count in health.items())
    yield judge("prometheus targets", bool(targets) and not down, "; ".join(down) or value or "none", "all up", remedy)
    rules = [rule for group in groups for rule in group["rules"]]
    broken = [f"{rule['name']}: {rule.get('lastError', '')}" for rule in rules if rule["health"] == "err"]
    yield judge(
        "prometheus rules", bool(rules) and not broken, "; ".join(broken) or f"{len(rules)}", "all evaluated", remedy
    )


def _ask(url: str) -> Any:
    from checks.api import CONNECT_SECONDS, new_session

    with new_session() as session:
        response = session.get(url, timeout=CONNECT_SECONDS)
        response.raise_for_status()
        return response.json()["data"]
