"""What only Prometheus sees, told as the host's own alerts are: in the log and the journal, by webhook and command.

A timer of systemd's starts this beside cron, because one of these things is that cron runs no health check. All other
rules of Prometheus watch what the health check tells by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from checks import alert_rules, alerts, prometheus
from checks.alert_rules import GOOD, Limits, Message, State, Verdict
from checks.contract.paths import SAMPLES
from checks.samples import Store, StoreError

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

RULES = {"LocalLlmChecksStopped": "checks-stopped", "LocalLlmTargetDown": "target-down"}
"""Prometheus' names and ours."""
_DOWN = "prometheus-down"


def run(config: Config, host: Host, log_file: str) -> str | None:
    """Ask Prometheus, and tell what is to tell; returns what went wrong. Raises OSError as alerts.told does."""
    if config.prometheus is None:
        return None
    try:
        found = verdicts(prometheus.ask(config.prometheus, host, "alerts")["alerts"])
    except (OSError, ValueError, KeyError, TypeError):
        found = silent()

    def judged(state: State) -> list[Message]:
        return alert_rules.advanced(Limits.of(config), state, found, host.now())

    try:
        with Store.open(host.path(SAMPLES)) as store:
            return alerts.told(config, host, store, alerts.RELAYED_KEY, log_file, judged)
    except StoreError:
        return alerts.told(config, host, None, alerts.RELAYED_KEY, log_file, judged)


def verdicts(found: Sequence[Mapping[str, Any]]) -> dict[str, Verdict | None]:
    """What Prometheus' alerts mean for ours. One that only waits to fire, as after its restart, is neither."""
    judged: dict[str, Verdict | None] = {_DOWN: GOOD}
    for rule, name in RULES.items():
        own = [each for each in found if each["labels"]["alertname"] == rule]
        firing = sorted({each["annotations"]["summary"] for each in own if each["state"] == "firing"})
        judged[name] = Verdict(True, " ".join(firing), at_once=True) if firing else None if own else GOOD
    return judged


def silent() -> dict[str, Verdict | None]:
    """What it means that Prometheus does not answer."""
    return {
        _DOWN: Verdict(True, "Prometheus does not answer: nothing is recorded, and nobody watches the health check")
    }
