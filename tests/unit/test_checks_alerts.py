"""From a sample to a message that arrives: log, journal, webhook, command, and what waits where one of them fails."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from checks import alerts, cli, delivery, recall
from checks.alert_rules import Message
from checks.contract.config import Config
from checks.contract.paths import ALERT_OUTBOX, ALERT_RUNTIME, DEPLOY_LOCK, WEBHOOK_FILE
from checks.host import Command
from checks.samples import Sample, Store, StoreFullError
from tests.unit.checks_support import CLOUD, CONFIG, NOW, FakeHost, make_config, serve_admin, write_config

WELL = Sample(time=int(NOW), service="active", gateway="active", api="ok", probe="ok", uptime_seconds=9999.0)
DEAD = replace(WELL, service="failed", api="http_503", probe="none")
LOG = "health.log"
WHEN = "2026-11-22T22:13:13Z"
"""NOW, as messages have it."""
SECRET = "T0P/SECRET"
MESSAGE = Message("api-down", "raised", "critical", "it's <down> & out", "Start it", NOW, NOW)


@dataclass
class Receiver:
    """A webhook: `status` is what it answers, to messages that hold `refuses` 400, `hangs` what it does instead."""

    url: str = ""
    status: int = 200
    refuses: bytes | None = None
    asked: int = 0
    hangs: bool = False
    failures: int = 0
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if found.hangs:
                time.sleep(2)
                return
            found.asked += 1
            status = 500 if found.failures > 0 else found.status
            if found.refuses is not None and found.refuses in body:
                status = 400
            found.failures -= 1
            if status == 200:
                found.got.append((self.path, dict(self.headers.items()), body))
            self.send_response(status)
            self.send_header("Location", found.url)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def host(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(delivery, "_ATTEMPTS_AFTER_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(delivery, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(delivery, "COMMAND_SECONDS", 1.0)
    host = FakeHost(tmp_path)
    host.commands["systemctl start"] = Command(0, "", "")
    host.put(WEBHOOK_FILE, f"{receiver.url}\nAuthorization: Bearer key\n", 0o600)
    host.path(DEPLOY_LOCK).parent.mkdir(parents=True)
    return host


def config_with(folder: Path, **changes: Any) -> Config:
    return make_config(folder, alerts={**CONFIG["alerts"], **changes})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_with(tmp_path, webhook_format="json")


@pytest.fixture
def journal(host: FakeHost) -> Iterator[list[str]]:
    """What reached journald, read when the test looks."""
    path = host.path("/run/systemd/journal/socket")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        yield _Datagrams(listener)


class _Datagrams(list[str]):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener

    def read(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._listener.recv(65536).decode())
            except BlockingIOError:
                return found


def step(config: Config, host: FakeHost, *samples: Sample, store: Store | None = None) -> str | None:
    problem = None
    for number, sample in enumerate(samples):
        at = replace(sample, time=sample.time + number * 300)
        problem = alerts.step(config, host, store, at, str(host.path(f"/{LOG}")))
    return problem


def log(host: FakeHost) -> list[str]:
    try:
        return host.read(f"/{LOG}").splitlines()
    except FileNotFoundError:
        return []


def waiting(host: FakeHost, channel: str = "webhook") -> int:
    return len(list(delivery.waiting(host, channel)))


# The step after a health check


def test_an_outage_is_told_once_and_its_end_once(config: Config, host: FakeHost, journal: Any) -> None:
    assert step(config, host, WELL, DEAD, DEAD, WELL, WELL, WELL) is None
    assert [line.split(" ")[1:3] for line in log(host)] == [["ALERT", "alert=api-down"], ["CLEAR", "alert=api-down"]]
    assert log(host)[1].endswith('text="local-llm.service is failed" after_minutes=15')
    raised, cleared = journal.read()
    assert "SYSLOG_IDENTIFIER=local-llm-alert\n" in raised
    assert "PRIORITY=2\n" in raised
    assert "MESSAGE=ALERT alert=api-down severity=critical" in raised
    assert "PRIORITY=5\n" in cleared
    assert waiting(host) == 2
    assert host.ran[0] == "systemctl start --no-block local-llm-alert-webhook.service"


def test_without_a_webhook_nothing_waits_and_nothing_is_started(tmp_path: Path, host: FakeHost, journal: Any) -> None:
    assert step(make_config(tmp_path), host, DEAD) is None
    assert len(log(host)) == 1
    assert not host.ran
    assert not host.exists(ALERT_OUTBOX)


def test_nothing_is_told_during_a_deploy(config: Config, host: FakeHost) -> None:
    import fcntl

    with host.path(DEPLOY_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert step(config, host, DEAD, DEAD, DEAD) is None
    assert log(host) == []


def test_an_outage_is_told_though_a_lock_is_never_released(config: Config, host: FakeHost, journal: Any) -> None:
    assert step(config, host, replace(DEAD, locked_seconds=300.0)) is None
    assert log(host) == []
    assert step(config, host, replace(DEAD, locked_seconds=7200.0)) is None
    assert len(log(host)) == 1


def test_a_restart_of_everything_tells_nothing_again(
    config: Config, host: FakeHost, tmp_path: Path, journal: Any
) -> None:
    with Store.open(tmp_path / "db") as store:
        step(config, host, DEAD, store=store)
        for file in host.path(ALERT_RUNTIME).glob("*.json"):
            file.unlink()
        step(config, host, replace(DEAD, time=DEAD.time + 600), store=store)
    assert len(log(host)) == 1


def test_a_full_disk_is_told_once(config: Config, host: FakeHost, tmp_path: Path, journal: Any,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise StoreFullError("no space")

    original = FakeHost.replace

    def no_space(self: FakeHost, path: str, text: str, mode: int) -> None:
        if path.startswith("/var"):
            raise OSError(28, "No space left on device")
        original(self, path, text, mode)

    sample = replace(WELL, disk_free_bytes=0, disk_total_bytes=100)
    with Store.open(tmp_path / "db") as store:
        monkeypatch.setattr(store, "put", full)
        monkeypatch.setattr(FakeHost, "replace", no_space)
        step(config, host, *[sample] * 5, store=store)
    assert len(log(host)) == 1
    assert waiting(host) == 1
    assert str(next(delivery.waiting(host, "webhook"))).startswith(str(host.path(ALERT_RUNTIME)))


def test_a_run_that_is_killed_in_between_leaves_no_message_out(config: Config, host: FakeHost, journal: Any,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "announce", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            step(config, host, DEAD)
    assert log(host) == []
    step(config, host, DEAD)
    assert len(log(host)) == 1


def test_where_nothing_can_be_remembered_nothing_is_told(config: Config, host: FakeHost,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(recall, "remember", refuse)
    with pytest.raises(OSError, match="no space"):
        step(config, host, DEAD)
    assert log(host) == []


def test_what_fails_is_said_and_holds_up_nothing(config: Config, host: FakeHost) -> None:
    host.commands["systemctl start"] = Command(1, "", "Unit not found")
    problem = step(config, host, DEAD)
    assert problem is not None
    assert "not in the journal" in problem
    assert "not sent to the webhook: Unit not found" in problem
    assert len(log(host)) == 1


def test_old_kills_without_a_history_are_no_alert(config: Config, host: FakeHost, tmp_path: Path, journal: Any) -> None:
    with Store.open(tmp_path / "db") as store:
        step(config, host, replace(WELL, oom_kills=0), store=store)
        step(config, host, replace(WELL, oom_kills=3), store=None)
        assert log(host) == []
        step(config, host, replace(WELL, oom_kills=1), store=store)
    assert "alert=oom-kill" in log(host)[0]


@pytest.mark.parametrize(
    ("row", "alert"),
    [
        ({"status": "DOWN", "check_status": "L7STS", "check_code": "401"}, "cloud-refused"),
        ({"status": "DOWN", "check_status": "L7STS", "check_code": "503"}, "cloud-down"),
        ({"status": "DOWN", "check_status": "L4CON"}, "cloud-down"),
    ],
)
def test_why_the_cloud_is_down_decides(
    tmp_path: Path, host: FakeHost, journal: Any, row: dict[str, str], alert: str
) -> None:
    with serve_admin(tmp_path) as admin:
        admin.servers["cloud/cloud"] = row
        step(make_config(tmp_path, cloud=CLOUD), host, *[replace(WELL, cloud="down")] * 3)
    assert [line.split(" ")[2] for line in log(host)] == [f"alert={alert}"]


# The outbox


def test_what_waits_is_bounded_and_the_oldest_go(config: Config, host: FakeHost, journal: Any) -> None:
    for number in range(delivery.MOST_WAITING + 5):
        delivery.announce(
            config, host, replace(MESSAGE, text=str(number), time=NOW + number), str(host.path(f"/{LOG}"))
        )
    found = [json.loads(path.read_text())["text"] for path in delivery.waiting(host, "webhook")]
    assert found == [str(number) for number in range(5, delivery.MOST_WAITING + 5)]


def test_what_waits_is_roots_alone(config: Config, host: FakeHost, journal: Any) -> None:
    step(config, host, DEAD)
    path = next(delivery.waiting(host, "webhook"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


# Sending


def send(config: Config, host: FakeHost, *messages: Message, channel: str = "webhook") -> str | None:
    for message in messages:
        delivery._post_into(host, channel, message)
    return delivery.deliver(config, host, channel)


def test_messages_arrive_in_order(config: Config, host: FakeHost, receiver: Receiver) -> None:
    cleared = replace(MESSAGE, event="cleared", remedy="")
    assert send(config, host, MESSAGE, cleared) is None
    assert waiting(host) == 0
    first, second = receiver.messages
    assert first == {
        "version": 1, "host": socket.gethostname(), "alert": "api-down", "event": "raised", "severity": "critical",
        "text": "it's <down> & out", "remedy": "Start it", "time": WHEN, "since": WHEN,
    }  # fmt: skip
    assert second["event"] == "cleared"
    path, headers, _ = receiver.got[0]
    assert path == f"/{SECRET}"
    assert headers["Authorization"] == "Bearer key"
    assert headers["Content-Type"] == "application/json"


def test_what_arrives_meanwhile_goes_along(
    config: Config, host: FakeHost, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit that sends is started for nothing while it runs."""
    cleared = replace(MESSAGE, event="cleared", remedy="")
    post = delivery.post

    def and_one_more(webhook: str, kind: str, message: dict[str, Any]) -> None:
        post(webhook, kind, message)
        if message["event"] == "raised":
            delivery._post_into(host, "webhook", cleared)

    monkeypatch.setattr(delivery, "post", and_one_more)
    assert send(config, host, MESSAGE) is None
    assert [message["event"] for message in receiver.messages] == ["raised", "cleared"]
    assert waiting(host) == 0


def test_ntfy(config: Config, host: FakeHost, receiver: Receiver) -> None:
    config = replace(config, alerts=replace(config.alerts, webhook_format="ntfy"))
    send(config, host, MESSAGE, replace(MESSAGE, event="cleared"))
    (_, first, body), (_, second, _) = receiver.got
    assert first["Title"] == f"{socket.gethostname()}: api-down raised"
    assert (first["Priority"], second["Priority"]) == ("urgent", "default")
    assert (first["Tags"], second["Tags"]) == ("rotating_light", "white_check_mark")
    assert body.decode() == "it's <down> & out\nStart it"


def test_slack(config: Config, host: FakeHost, receiver: Receiver) -> None:
    config = replace(config, alerts=replace(config.alerts, webhook_format="slack"))
    send(config, host, MESSAGE)
    assert receiver.messages == [
        {"text": f"*{socket.gethostname()}: api-down raised*\nit's &lt;down&gt; &amp; out\nStart it"}
    ]


def test_a_short_failure_is_tried_again_at_once(config: Config, host: FakeHost, receiver: Receiver) -> None:
    receiver.failures = 2
    assert send(config, host, MESSAGE) is None
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"status": 500}, "HTTP status 500"),
        ({"status": 302}, "HTTP status 302"),
        ({"hangs": True}, "no answer in time"),
        ({"url": "http://127.0.0.1:9/x"}, "no connection"),
    ],
)
def test_what_is_not_taken_waits_for_the_next_run(
    config: Config, host: FakeHost, receiver: Receiver, trouble: dict[str, Any], reason: str
) -> None:
    address = receiver.url
    for name, value in trouble.items():
        setattr(receiver, name, value)
    host.put(WEBHOOK_FILE, receiver.url)
    assert send(config, host, MESSAGE, replace(MESSAGE, text="second")) == reason
    assert waiting(host) == 2
    receiver.status, receiver.hangs = 200, False
    host.put(WEBHOOK_FILE, address)
    assert delivery.deliver(config, host, "webhook") is None
    assert [message["text"] for message in receiver.messages] == ["it's <down> & out", "second"]


def test_after_a_day_a_message_is_given_up(config: Config, host: FakeHost, receiver: Receiver, capsys: Any) -> None:
    receiver.status = 404
    assert send(config, host, MESSAGE) is not None
    path = next(delivery.waiting(host, "webhook"))
    os.utime(path, (NOW - delivery.KEPT_SECONDS - 1,) * 2)
    assert delivery.deliver(config, host, "webhook") is None
    assert waiting(host) == 0
    said = capsys.readouterr().err
    assert said.startswith("<3>an alert of a day ago was given up")
    assert SECRET not in said


def test_a_damaged_message_does_not_hold_up_the_others(config: Config, host: FakeHost, receiver: Receiver) -> None:
    host.put(f"{ALERT_OUTBOX}/webhook/000000000000-cut.json", '{"version": 1, "ho')
    assert send(config, host, MESSAGE) is None
    assert len(receiver.got) == 1


def test_no_problem_tells_the_address(config: Config, host: FakeHost, receiver: Receiver) -> None:
    for webhook in (receiver.url, "https://127.0.0.1:9/" + SECRET, "no address/" + SECRET, ""):
        host.put(WEBHOOK_FILE, webhook)
        receiver.status = 500
        assert SECRET not in str(send(config, host, MESSAGE))
    host.path(WEBHOOK_FILE).unlink()
    assert "cannot be read: No such file" in str(delivery.deliver(config, host, "webhook"))


def command(host: FakeHost, text: str, mode: int = 0o755) -> None:
    host.put("/hook", f"#!/bin/sh\n{text}\n", mode)


@pytest.fixture
def commanded(tmp_path: Path) -> Config:
    return config_with(tmp_path, command="/hook")


@pytest.mark.skipif(os.geteuid() != 0, reason="the program has to be root's")
def test_a_command_gets_the_message_on_its_standard_input(commanded: Config, host: FakeHost, tmp_path: Path) -> None:
    command(host, f"cat > {tmp_path}/got; env > {tmp_path}/env")
    assert send(commanded, host, MESSAGE, channel="command") is None
    assert json.loads((tmp_path / "got").read_text())["alert"] == "api-down"
    assert waiting(host, "command") == 0
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.skipif(os.geteuid() != 0, reason="the program has to be root's")
@pytest.mark.parametrize(
    ("text", "reason"),
    [("echo no mail today >&2; exit 3", "/hook ended with 3: no mail today"), ("sleep 5", "did not end within 1 s")],
)
def test_a_command_that_fails_is_tried_again_at_the_next_run(
    commanded: Config, host: FakeHost, text: str, reason: str
) -> None:
    command(host, text)
    assert reason in str(send(commanded, host, MESSAGE, channel="command"))
    assert waiting(host, "command") == 1
    command(host, "exit 0")
    assert delivery.deliver(commanded, host, "command") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="the program has to be root's")
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("folders", list(itertools.product(["roots", "users"], repeat=3)), ids="-".join)
def test_no_link_on_the_way_to_a_command_lies_where_others_can_change_it(
    host: FakeHost, tmp_path: Path, folders: tuple[str, ...], absolute: bool
) -> None:
    for name, mode in (("roots", 0o755), ("users", 0o777)):
        host.path(f"/{name}").mkdir()
        host.path(f"/{name}").chmod(mode)
    host.put("/roots/program", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    target = "/roots/program"
    for number, folder in enumerate(folders):
        link = f"/{folder}/link{number}"
        host.path(link).symlink_to(target if absolute else f"..{target}")
        target = link
    said = send(config_with(tmp_path, command=target), host, MESSAGE, channel="command")
    assert (tmp_path / "ran").exists() is ("users" not in folders)
    assert (said is None) is ("users" not in folders), said


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_command_that_others_can_change_is_not_run(
    commanded: Config, host: FakeHost, tmp_path: Path, mode: int
) -> None:
    command(host, f"touch {tmp_path}/ran", mode)
    assert "not root's alone" in str(send(commanded, host, MESSAGE, channel="command"))
    assert not (tmp_path / "ran").exists()


def test_a_command_in_a_directory_that_others_can_change_is_not_run(
    commanded: Config, host: FakeHost, tmp_path: Path
) -> None:
    command(host, f"touch {tmp_path}/ran")
    host.path("/hook").parent.chmod(0o777)
    assert "not root's alone" in str(send(commanded, host, MESSAGE, channel="command"))
    assert not (tmp_path / "ran").exists()


def test_a_command_that_is_missing_is_said(commanded: Config, host: FakeHost) -> None:
    assert send(commanded, host, MESSAGE, channel="command") == "/hook: No such file or directory"


def test_channels_do_not_wait_for_each_other(tmp_path: Path, host: FakeHost, receiver: Receiver, journal: Any) -> None:
    config = config_with(tmp_path, webhook_format="json", command="/missing")
    step(config, host, DEAD)
    assert delivery.deliver(config, host, "command") is not None
    assert delivery.deliver(config, host, "webhook") is None
    assert (waiting(host, "webhook"), waiting(host, "command")) == (0, 1)


def of(alert: str, text: str) -> Message:
    return replace(MESSAGE, alert=alert, text=text)


def test_a_refused_message_holds_up_those_of_its_alert_alone(
    config: Config, host: FakeHost, receiver: Receiver
) -> None:
    receiver.refuses = b"odd"
    cleared = [replace(of(alert, text), event="cleared") for alert, text in (("disk", "2"), ("api-down", "3"))]
    assert send(config, host, of("disk", "odd"), of("api-down", "1"), *cleared) == "HTTP status 400"
    assert [message["text"] for message in receiver.messages] == ["1", "3"]
    assert (waiting(host), receiver.asked) == (2, 3)

    receiver.refuses = None
    assert delivery.deliver(config, host, "webhook") is None
    assert [message["event"] for message in receiver.messages if message["alert"] == "disk"] == ["raised", "cleared"]


@pytest.mark.parametrize(("status", "tried"), [(400, 2), (413, 2), (422, 2), (401, 1), (404, 1), (429, 1), (503, 1)])
def test_what_is_refused_is_the_message_or_everybody(
    config: Config, host: FakeHost, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, status: int, tried: int
) -> None:
    monkeypatch.setattr(delivery, "_ATTEMPTS_AFTER_SECONDS", (0.0,))
    receiver.status = status
    assert send(config, host, of("disk", "1"), of("api-down", "2")) == f"HTTP status {status}"
    assert (waiting(host), receiver.asked) == (2, tried)


def test_a_refused_message_is_given_up_after_a_day_and_the_next_of_its_alert_goes(
    config: Config, host: FakeHost, receiver: Receiver, capsys: Any
) -> None:
    receiver.refuses = b"odd"
    send(config, host, of("disk", "odd"), of("disk", "2"))
    os.utime(next(delivery.waiting(host, "webhook")), (NOW - delivery.KEPT_SECONDS - 1,) * 2)
    assert delivery.deliver(config, host, "webhook") is None
    assert [message["text"] for message in receiver.messages] == ["2"]
    assert capsys.readouterr().err.count("given up") == 1


def test_slow_refusals_do_not_outlast_the_unit(
    config: Config, host: FakeHost, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_REFUSALS_SECONDS", 0.0)
    receiver.refuses = b"odd"
    assert send(config, host, of("disk", "odd"), of("api-down", "2")) == "HTTP status 400"
    assert receiver.messages == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the program has to be root's")
@pytest.mark.parametrize(("trouble", "got"), [("exit 3", ["2"]), ("sleep 5", [])])
def test_a_command_that_ends_with_an_error_gets_the_others(
    commanded: Config, host: FakeHost, tmp_path: Path, trouble: str, got: list[str]
) -> None:
    command(host, f'message=$(cat); case $message in *odd*) {trouble};; esac; echo "$message" >> {tmp_path}/got')
    assert send(commanded, host, of("disk", "odd"), of("api-down", "2"), channel="command") is not None
    lines = (tmp_path / "got").read_text().splitlines() if got else []
    assert [json.loads(line)["text"] for line in lines] == got
    assert waiting(host, "command") == 2 - len(got)


# The command line


@pytest.fixture
def run(tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(cli, "Host", lambda: host)
    path = write_config(tmp_path, alerts={**CONFIG["alerts"], "webhook_format": "json"})

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["alerts", "--config", str(path), "--log-file", str(host.path(f"/{LOG}")), *arguments])
        return code, *capsys.readouterr()

    return run


def test_open_alerts_are_shown_with_what_helps(run: Any, config: Config, host: FakeHost, journal: Any) -> None:
    code, out, _ = run()
    assert (code, out.splitlines()[0]) == (0, "no alert is open")
    step(config, host, DEAD)
    code, out, _ = run()
    assert code == 1
    assert "critical  api-down, for 0 s: local-llm.service is failed" in out
    assert "sudo local-llm test" in out
    assert "webhook (json format): 1 wait to be sent" in out
    code, out, _ = run("--json")
    assert json.loads(out)[0]["alert"] == "api-down"


def test_a_test_says_how_each_way_fared(run: Any, host: FakeHost, journal: Any) -> None:
    @contextmanager
    def said(text: str) -> Iterator[None]:
        host.commands["journalctl"] = Command(0, text, "")
        yield

    with said("Starting…\nlocal-llm: HTTP status 500.\n"):
        code, out, _ = run("test")
    assert code == 1
    assert out.splitlines()[0] == "log and journal  sent"
    assert out.splitlines()[1] == "webhook          1 wait: HTTP status 500"
    # Any user may write under any identifier.
    [asked] = [command for command in host.ran if command.startswith("journalctl")]
    assert "_SYSTEMD_UNIT=local-llm-alert-webhook.service" in asked
    assert "--identifier" not in asked
    assert " TEST alert=test " in log(host)[0]


def test_a_test_that_arrives(run: Any, config: Config, host: FakeHost, journal: Any, receiver: Receiver,
                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    started = FakeHost.run

    def deliver(self: FakeHost, *argv: str, timeout_seconds: float = 30.0) -> Command:
        delivery.deliver(config, host, "webhook")
        return started(self, *argv, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(FakeHost, "run", deliver)
    code, out, _ = run("test", "--json")
    assert code == 0
    assert json.loads(out)[1] == {"way": "webhook", "ok": True, "problem": ""}
    assert receiver.messages[0]["event"] == "test"


def test_the_unit_says_why_it_could_not_send(run: Any, host: FakeHost, receiver: Receiver) -> None:
    receiver.status = 500
    delivery._post_into(host, "webhook", MESSAGE)
    assert run("--deliver", "webhook") == (1, "", "local-llm: HTTP status 500.\n")
    receiver.status = 200
    assert run("--deliver", "webhook") == (0, "", "")


def test_others_than_root_are_told_to_use_sudo(run: Any, host: FakeHost) -> None:
    host.root_user = False
    code, _, err = run()
    assert code == 2
    assert "sudo local-llm alerts" in err
