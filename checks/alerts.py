"""Alerts at work: one step after every scheduled health check, what is open, and a message to try out the ways out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from checks import alert_rules, delivery, health, journal, recall
from checks.alert_rules import Limits, Message, Seen, State
from checks.contract.paths import ALERT_UNITS, SAMPLES
from checks.result import Status
from checks.samples import Store

if TYPE_CHECKING:
    from checks.cloud import Diagnosis
    from checks.contract.config import Config
    from checks.host import Host
    from checks.samples import Sample

_KEY = "alerts"
RELAYED_KEY = "prometheus-alerts"
_UNTOLD = "untold"


def step(config: Config, host: Host, store: Store | None, sample: Sample, log_file: str) -> str | None:
    """Judge a sample, tell what is to tell, and try again what could not be told before.

    Returns what went wrong. Raises OSError where the state of alerts cannot be remembered; then nothing is told, since
    it would be told again at every run.
    """
    seen = _seen(config, host, store, sample)
    return told(config, host, store, _KEY, log_file, lambda state: alert_rules.step(Limits.of(config), state, seen))


def told(
    config: Config,
    host: Host,
    store: Store | None,
    key: str,
    log_file: str,
    judged: Callable[[State], list[Message]],
) -> str | None:
    """Bring the state of this key up to date and tell what that gives; raises and returns as `step` does."""
    before = recall.recall(host, store, key)
    state = _state(before)
    messages = _untold(before) + judged(state)
    # What ends this run in the middle may have a message told twice, but none left out.
    untold = {_UNTOLD: [asdict(message) for message in messages]} if messages else {}
    written = recall.remember(host, store, key, before, {**state.as_json(), **untold})
    problems = [problem for message in messages for problem in delivery.announce(config, host, message, log_file)]
    if messages:
        recall.remember(host, store, key, written, state.as_json())
    problems += delivery.start_sending(config, host)
    return "; ".join(problems) or None


def current(config: Config, host: Host) -> State:
    """The state as of the last check, with what Prometheus sees where it runs.

    Raises PermissionError for others than root, StoreError.
    """
    host.require_root("the state of alerts")
    path = host.path(SAMPLES)
    if not path.exists():
        return _recalled(config, host, None)
    with Store.open(path) as store:
        return _recalled(config, host, store)


def _recalled(config: Config, host: Host, store: Store | None) -> State:
    state = _state(recall.recall(host, store, _KEY))
    if config.prometheus is not None:
        state.alerts |= _state(recall.recall(host, store, RELAYED_KEY)).alerts
    return state


@dataclass(frozen=True)
class Sent:
    """How a test message fared on its way out: `problem` is empty where it arrived."""

    way: str
    problem: str = ""


def send_test(config: Config, host: Host, log_file: str) -> Iterator[Sent]:
    """Send a message over every way, wait for each, and tell what became of it; raises PermissionError."""
    host.require_root("sending a test")
    now = host.now()
    text = "This is a test: nothing is wrong, and alerts arrive."
    message = Message("test", "test", "warning", text, "", now, now)
    problems = delivery.announce(config, host, message, log_file)
    yield Sent("log and journal", "; ".join(problem for problem in problems if "is not in" in problem))
    for channel in config.alerts.channels:
        done = host.run("systemctl", "start", ALERT_UNITS[channel], timeout_seconds=delivery.UNIT_SECONDS)
        left = list(delivery.waiting(host, channel))
        reason = ""
        if left or done.code != 0:
            reason = journal.last_words(host, ALERT_UNITS[channel], now).rstrip(".") or done.message
        yield Sent(channel, f"{len(left)} wait: {reason}" if reason else "")


def ways(config: Config, host: Host) -> Iterator[str]:
    """Where alerts go, for a person."""
    yield "alerts go to the health log and the journal (journalctl -t local-llm-alert _UID=0)"
    for channel in config.alerts.channels:
        count = sum(1 for _ in delivery.waiting(host, channel))
        what = config.alerts.command if channel == "command" else f"{config.alerts.webhook_format} format"
        yield f"and to the {channel} ({what})" + (f": {count} wait to be sent" if count else "")


def _state(found: dict[str, Any]) -> State:
    try:
        return State.from_json(found)
    except (KeyError, TypeError, AttributeError):
        return State()


def _untold(found: dict[str, Any]) -> list[Message]:
    try:
        return [Message(**each) for each in found.get(_UNTOLD, [])]
    except TypeError:
        return []


def _seen(config: Config, host: Host, store: Store | None, sample: Sample) -> Seen:
    if store is None:
        # Without a history the sample counts kills of days ago.
        sample = replace(sample, oom_kills=None, gateway_oom_kills=None)
    found = _diagnosis(config, host) if sample.cloud == "down" else None
    return Seen(
        sample,
        paused=_is_paused(host, sample),
        cloud_text=f"the cloud is {found.text}" if found else "",
        cloud_refused=found is not None and found.status is Status.FAIL,
    )


def _diagnosis(config: Config, host: Host) -> Diagnosis | None:
    # Imported here, because it brings OpenSSL along and is seldom needed.
    from checks import cloud, gateway

    if config.cloud is None:
        return None
    try:
        return cloud.diagnose(config, config.cloud, gateway.server(config, host, gateway.CLOUD))
    except OSError:
        return None


def _is_paused(host: Host, sample: Sample) -> bool:
    """Whether a deploy or a drill was at work when the sample was taken, or is now; not one that never ends."""
    locked = sample.locked_seconds is not None or health.is_locked(host)
    return locked and not health.is_overdue(sample.locked_seconds)
