"""Sending alerts: to the log and the journal at once, and by a webhook and a command of the operator's from an outbox.

The health check only puts a message into the outbox and asks systemd to start the unit of the channel, so that a
receiver that hangs holds up nothing. The unit sends what waits, the oldest first, and what it cannot send stays for the
next run, for a day at most. A receiver that takes nothing is left alone until then; where it refuses one message, only
those of the same alert wait behind it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks import health, recall
from checks.alert_rules import Message
from checks.contract.paths import ALERT_OUTBOX, ALERT_RUNTIME, ALERT_UNITS, WEBHOOK_FILE

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

IDENTIFIER = "local-llm-alert"
KEPT_SECONDS = 86400.0
MOST_WAITING = 100
"""Of each channel; beyond it the oldest go. Some days of everything being wrong."""
_ATTEMPTS_AFTER_SECONDS = (0.0, 2.0, 8.0)
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
# Of 4xx, those that do not speak of the message: who may post, where to, how often.
_NOT_OF_THE_MESSAGE = (401, 403, 404, 408, 429)
COMMAND_SECONDS = 30.0
_REFUSALS_SECONDS = 15.0
"""How long a run goes on behind refused messages."""
_MOST_LINKS = 40
"""As many as the kernel follows."""
# The unit's TimeoutStartSec is above what one message can take with these.
UNIT_SECONDS = 70.0

_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {"critical": 2, "warning": 4}
_WORDS = {"raised": "ALERT", "reminder": "ALERT", "cleared": "CLEAR", "test": "TEST"}
_NTFY_PRIORITIES = {"critical": "urgent", "warning": "high"}
_NTFY_TAGS = {"raised": "rotating_light", "reminder": "rotating_light", "cleared": "white_check_mark"}


class DeliveryError(Exception):
    """A message was not taken; the text is a phrase that holds no part of the webhook's address."""


class RefusedError(DeliveryError):
    """The receiver is there and does not take this message; it may take another."""


# What the health check does


def announce(config: Config, host: Host, message: Message, log_file: str) -> list[str]:
    """Write a message to log and journal and put it into the outbox; returns what went wrong."""
    problems = []
    try:
        health.append(log_file, log_line(message))
    except OSError as error:
        problems.append(f"an alert is not in the log: {error.strerror or error}")
    try:
        to_journal(host, log_line(message).partition(" ")[2], _priority(message))
    except OSError as error:
        problems.append(f"an alert is not in the journal: {error.strerror or error}")
    for channel in config.alerts.channels:
        try:
            _post_into(host, channel, message)
        except OSError as error:
            problems.append(f"an alert for the {channel} is lost: {error.strerror or error}")
    return problems


def start_sending(config: Config, host: Host) -> list[str]:
    """Ask systemd to send what waits, and do not wait for it; returns what went wrong."""
    problems = []
    for channel in config.alerts.channels:
        if not next(waiting(host, channel), None):
            continue
        done = host.run("systemctl", "start", "--no-block", ALERT_UNITS[channel], timeout_seconds=_ANSWER_SECONDS)
        if done.code != 0:
            problems.append(f"alerts are not sent to the {channel}: {done.message}")
    return problems


def log_line(message: Message) -> str:
    """A message as a line of the health log, told from its other lines by the second word."""
    when = time.strftime(health.TIME_FORMAT, time.gmtime(message.time))
    values = {"alert": message.alert, "severity": message.severity, "text": message.text}
    if message.event in ("cleared", "reminder"):
        values["after_minutes"] = str(round(max(0.0, message.time - message.since) / 60))
    return " ".join([when, _WORDS[message.event], health.logfmt(values)])


def to_journal(host: Host, text: str, priority: int) -> None:
    """Write one line to the journal as journald's native protocol has it; raises OSError, and does not wait."""
    fields = {"MESSAGE": text, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": IDENTIFIER}
    data = "".join(f"{name}={' '.join(value.splitlines())}\n" for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journal:
        journal.sendto(data.encode(), str(host.path(_JOURNAL)))


def waiting(host: Host, channel: str) -> Iterator[Path]:
    """The messages that wait, the oldest first; those in memory were put there while the disk was full."""
    found: list[Path] = []
    for outbox in (ALERT_OUTBOX, ALERT_RUNTIME):
        with suppress(OSError):
            found += [each for each in host.path(f"{outbox}/{channel}").iterdir() if each.suffix == ".json"]
    return iter(sorted(found, key=lambda each: each.name))


def _post_into(host: Host, channel: str, message: Message) -> Path:
    text = json.dumps(as_json(message), ensure_ascii=False)
    queue = list(waiting(host, channel))
    for oldest in queue[: max(0, len(queue) - MOST_WAITING + 1)]:
        oldest.unlink(missing_ok=True)
    name = f"{int(message.time):012}-{time.monotonic_ns():020}-{os.urandom(4).hex()}.json"
    try:
        return _written(host, f"{ALERT_OUTBOX}/{channel}", name, text)
    except OSError:
        recall.make_runtime_directory(host)
        return _written(host, f"{ALERT_RUNTIME}/{channel}", name, text)


def _written(host: Host, directory: str, name: str, text: str) -> Path:
    host.path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        host.replace(f"{directory}/{name}", text, 0o600)
    except OSError:
        with suppress(OSError):
            host.path(f"{directory}/.{name}.new").unlink(missing_ok=True)
        raise
    return host.path(f"{directory}/{name}")


def as_json(message: Message) -> dict[str, Any]:
    """What the webhook and the command get; times as in the log."""
    times = {
        name: time.strftime(health.TIME_FORMAT, time.gmtime(each))
        for name, each in (("time", message.time), ("since", message.since))
    }
    return {"version": 1, "host": socket.gethostname(), **asdict(message), **times}


def _priority(message: Message) -> int:
    return _PRIORITIES[message.severity] if message.event in ("raised", "reminder") else 5


# What the unit of a channel does


def deliver(config: Config, host: Host, channel: str) -> str | None:
    """Send what waits for a channel; returns why something still waits, None if nothing does.

    The messages of one alert arrive in order, and where none is refused, all do.
    """
    until = time.monotonic() + _REFUSALS_SECONDS
    refusals: dict[str, str] = {}
    for path in _arriving(host, channel):
        try:
            message = json.loads(path.read_text(encoding="utf-8"))
            age = host.now() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            continue
        if message["alert"] in refusals:
            continue
        try:
            _sent(config, host, channel, message)
        except DeliveryError as error:
            if age < KEPT_SECONDS:
                refusals[message["alert"]] = str(error)
                if isinstance(error, RefusedError) and time.monotonic() < until:
                    continue
                break
            # <3>: an error, by sd-daemon(3). The unit has no way to the journal but its own output.
            print(f"<3>an alert of a day ago was given up, the {channel} never took it: {error}", file=sys.stderr)
        path.unlink(missing_ok=True)
    return next(iter(refusals.values()), None)


def _arriving(host: Host, channel: str) -> Iterator[Path]:
    """What waits, and what arrives meanwhile: to start a unit that runs already does nothing."""
    seen: set[Path] = set()
    while new := [path for path in waiting(host, channel) if path not in seen]:
        yield from new
        seen.update(new)


def _sent(config: Config, host: Host, channel: str, message: dict[str, Any]) -> None:
    """Raises DeliveryError once the last attempt has failed, RefusedError after the first one."""
    reason: DeliveryError | None = None
    for pause in _ATTEMPTS_AFTER_SECONDS:
        time.sleep(pause)
        try:
            if channel == "command":
                run_command(host, config.alerts.command or "", message)
            else:
                post(host.read(WEBHOOK_FILE), config.alerts.webhook_format or "json", message)
            return
        except RefusedError:
            raise
        except DeliveryError as error:
            reason = error
        except OSError as error:
            reason = DeliveryError(f"its address cannot be read: {error.strerror or error}")
        if channel == "command":
            break  # What a program did before it failed is not known: at the next run, then.
    assert reason is not None
    raise reason


def post(webhook: str, kind: str, message: dict[str, Any]) -> None:
    """Post a message as the receiver wants it; raises DeliveryError, RefusedError for a 4xx about this message."""
    import requests

    address, *lines = webhook.splitlines() or [""]
    own = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    headers, body = shaped(kind, message)
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(
                address,
                data=body,
                headers={**headers, **own},
                timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                allow_redirects=False,
                stream=True,  # what it says is of no interest, however much it is
            )
    except requests.exceptions.SSLError:
        raise DeliveryError("its certificate is not trusted") from None
    except requests.Timeout:
        raise DeliveryError("no answer in time") from None
    except requests.RequestException:
        raise DeliveryError("no connection") from None
    status = answer.status_code
    if 400 <= status < 500 and status not in _NOT_OF_THE_MESSAGE:
        raise RefusedError(f"HTTP status {status}")
    if not 200 <= status < 300:
        raise DeliveryError(f"HTTP status {status}")


def shaped(kind: str, message: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a message for a webhook: json as it is, or as ntfy or Slack show it."""
    title = f"{message['host']}: {message['alert']} {message['event']}"
    words = "\n".join(part for part in (message["text"], message["remedy"]) if part)
    if kind == "ntfy":
        headers = {
            "Title": title.encode("ascii", "replace").decode(),
            "Priority": _NTFY_PRIORITIES[message["severity"]]
            if message["event"] in ("raised", "reminder")
            else "default",
        }
        if tag := _NTFY_TAGS.get(message["event"]):
            headers["Tags"] = tag
        return {**headers, "Content-Type": "text/plain; charset=utf-8"}, words.encode()
    if kind == "slack":
        text = f"*{_slack(title)}*\n{_slack(words)}"
        return {"Content-Type": "application/json"}, json.dumps({"text": text}).encode()
    return {"Content-Type": "application/json"}, json.dumps(message).encode()


def _slack(text: str) -> str:
    """Slack's own three characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _way(root: Path, path: Path) -> Iterator[Path]:
    """All that decides which file a path below `root` leads to: each folder, each link, and the file at the end."""
    at, rest, links = root, [*reversed(path.parts)], 0
    yield at
    while rest:
        step = at / rest.pop()
        if step.name == "..":
            at = at.parent if at != root else root
            continue
        yield step
        if not step.is_symlink():
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = step.readlink()
        at = root if target.is_absolute() else at
        rest.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))


def _others_can_change(path: Path) -> bool:
    found = path.lstat()
    writable = not stat.S_ISLNK(found.st_mode) and bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return found.st_uid != 0 or writable


def run_command(host: Host, command: str, message: dict[str, Any]) -> None:
    """Run the operator's program with the message as JSON on its standard input.

    Raises RefusedError where it ends with an error, DeliveryError where it does not run or does not end.

    Only a program that nobody but root can change, or put another in the place of, is run as root.
    """
    root = host.path("/").resolve()
    try:
        *way, path = _way(root, Path(command).relative_to("/"))
        changeable = [f"/{each.relative_to(root)}" for each in (*way, path) if _others_can_change(each)]
    except OSError as error:
        raise DeliveryError(f"{command}: {error.strerror}") from None
    if changeable:
        names = " ".join(dict.fromkeys(changeable))
        raise DeliveryError(f"{command} is not root's alone: sudo chown root {names}; sudo chmod go-w {names}")
    try:
        done = subprocess.run(
            [path],
            input=json.dumps(message).encode(),
            timeout=COMMAND_SECONDS,
            capture_output=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise DeliveryError(f"{command} did not end within {COMMAND_SECONDS:.0f} s") from None
    except OSError as error:
        raise DeliveryError(f"{command}: {error.strerror}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RefusedError(f"{command} ended with {done.returncode}" + (f": {said[-1][:200]}" if said else ""))
