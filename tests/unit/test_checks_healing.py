"""A hung service is restarted after enough checks in a row, and nothing else ever is."""

from __future__ import annotations

import fcntl
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from checks import healing, recall
from checks.contract.config import Config
from checks.contract.paths import DEPLOY_LOCK
from checks.host import Command
from checks.samples import Sample, Store
from tests.unit.checks_support import GATEWAY, NOW, SERVICE, FakeHost, make_config, serve, show

HUNG = Sample(time=int(NOW), service="active", gateway="active", api="http_503", probe="none")
WELL = replace(HUNG, api="ok", probe="ok")
SOCKET = "/s"


@dataclass
class Clock(FakeHost):
    """A host whose time since its start can be set; the clock on its wall goes astray."""

    time: float = 5000.0

    def now(self) -> float:
        return NOW - 1000 * self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def host(tmp_path: Path) -> Clock:
    host = Clock(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY, MainPID="99"))
    host.commands["systemctl try-restart"] = Command(0, "", "")
    host.path(DEPLOY_LOCK).parent.mkdir(parents=True)
    return host


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(healing, "_SOCKET_SECONDS", 0.3)
    return make_config(tmp_path, socket=SOCKET)


@contextmanager
def socket_that(host: FakeHost, answer: bytes) -> Iterator[None]:
    """A server on llama-server's socket; an empty answer is one that never comes."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            if answer:
                self.wfile.write(answer)
            else:
                time.sleep(1)

    with socketserver.ThreadingUnixStreamServer(str(host.path(SOCKET)), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


OK = b'HTTP/1.0 200 OK\r\n\r\n{"status":"ok"}'
LOADING = b'HTTP/1.0 503 Unavailable\r\n\r\n{"error":{"message":"Loading model"}}'


def restarts(host: FakeHost) -> list[str]:
    return [line.split()[-1] for line in host.ran if "restart" in line]


def heal(config: Config, host: Clock, *samples: Sample, store: Store | None = None) -> list[str | None]:
    """The health checks of some intervals."""
    done = []
    for sample in samples:
        done.append(healing.heal(config, host, store, sample))
        host.time += 300
    return done


def test_a_service_that_hangs_is_restarted_at_the_second_check(config: Config, host: Clock) -> None:
    with socket_that(host, b""):
        first, second = heal(config, host, HUNG, HUNG)
    assert first is None
    assert second == f"restarted {SERVICE}: it runs, but on its socket: no answer in 0 s, 2 checks in a row"
    assert restarts(host) == [SERVICE]


def test_a_check_in_between_that_is_well_begins_anew(config: Config, host: Clock) -> None:
    assert heal(config, host, HUNG, WELL, HUNG, WELL, HUNG) == [None] * 5
    assert restarts(host) == []


def test_a_new_process_begins_anew(config: Config, host: Clock) -> None:
    heal(config, host, HUNG)
    host.put_units(show(SERVICE, MainPID="4243"), show(GATEWAY))
    assert heal(config, host, HUNG) == [None]


def test_failures_far_apart_are_not_in_a_row(config: Config, host: Clock) -> None:
    heal(config, host, HUNG)
    host.time += 3600
    assert heal(config, host, HUNG) == [None]


def test_only_so_often_an_hour(config: Config, host: Clock) -> None:
    done = heal(config, host, *[HUNG] * 12)
    assert len([each for each in done if each]) == 3
    assert len(restarts(host)) == 3
    assert any(heal(config, host, *[HUNG] * 8))


def test_never_where_it_is_switched_off(tmp_path: Path, host: Clock) -> None:
    config = make_config(tmp_path, socket=SOCKET, healing={"after_failures": 1, "restarts_per_hour": 0})
    assert heal(config, host, HUNG, HUNG) == [None, None]


def test_never_during_a_deploy_or_a_drill(config: Config, host: Clock) -> None:
    with host.path(DEPLOY_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked = replace(HUNG, locked_seconds=7000.0)
        assert heal(config, host, locked, locked, locked) == [None] * 3
    assert heal(config, host, HUNG, HUNG)[1]


def test_a_lock_that_is_never_released_is_no_deploy(config: Config, host: Clock) -> None:
    with host.path(DEPLOY_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked = replace(HUNG, locked_seconds=7200.0)
        assert heal(config, host, locked, locked)[1]


def test_checks_by_hand_in_between_do_not_count(config: Config, host: Clock) -> None:
    heal(config, host, HUNG)
    host.time -= 299
    assert healing.heal(config, host, None, HUNG) is None
    host.time += 148
    assert healing.heal(config, host, None, HUNG) is None
    host.time += 2
    assert healing.heal(config, host, None, HUNG)


def test_another_start_of_the_machine_begins_anew(config: Config, host: Clock) -> None:
    heal(config, host, replace(HUNG, boot_id="a"))
    assert heal(config, host, replace(HUNG, boot_id="b")) == [None]
    assert heal(config, host, replace(HUNG, boot_id="b"))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"ActiveState": "inactive", "MainPID": "0"},
        {"ActiveState": "failed", "MainPID": "0"},
        {"ActiveState": "activating", "MainPID": "0"},
        {"ActiveState": "deactivating"},
        {"ActiveEnterTimestampMonotonic": str(5_580_000_000)},  # 20 s before the last check
    ],
)
def test_never_what_is_stopped_or_on_its_way(config: Config, host: Clock, changes: dict[str, str]) -> None:
    host.put_units(show(SERVICE, **changes), show(GATEWAY))
    assert heal(config, host, HUNG, HUNG, HUNG) == [None] * 3


def test_never_a_model_that_is_being_loaded(config: Config, host: Clock) -> None:
    with socket_that(host, LOADING):
        assert heal(config, host, HUNG, HUNG, HUNG) == [None] * 3


def test_a_model_that_completes_nothing_is_restarted(config: Config, host: Clock) -> None:
    with socket_that(host, OK):
        done = heal(config, host, *[replace(WELL, probe="failed")] * 2)
    assert done[1] == f"restarted {SERVICE}: it runs, but completes nothing, 2 checks in a row"


@pytest.mark.parametrize(
    ("state", "restarted"), [("timeout", [GATEWAY]), ("refused", [GATEWAY]), ("http_503", []), ("ok", [])]
)
def test_a_gateway_that_hangs_is_restarted(config: Config, host: Clock, state: str, restarted: list[str]) -> None:
    """A gateway that says 503 works: somebody may have taken the model out by hand."""
    with socket_that(host, OK):
        heal(config, host, *[replace(HUNG, api=state)] * 2)
    assert restarts(host) == restarted


@pytest.mark.parametrize("changes", [{"ActiveState": "inactive", "MainPID": "0"}, {}])
def test_a_gateway_that_hangs_is_restarted_whatever_the_model_does(
    config: Config, host: Clock, changes: dict[str, str]
) -> None:
    host.put_units(show(SERVICE, **changes), show(GATEWAY, MainPID="99"))
    with socket_that(host, LOADING):
        done = heal(config, host, *[replace(HUNG, api="timeout")] * 2)
    assert done[1] == f"restarted {GATEWAY}: it runs, but does not answer in time, 2 checks in a row"


def test_a_gateway_that_is_only_full_is_not_what_hangs(tmp_path: Path, host: Clock, config: Config) -> None:
    """Clients hold all its connections while the model hangs: its own pages still answer."""
    with serve() as api, socket_that(host, b""):
        config = replace(config, metrics_url=f"{api.url}/metrics")
        heal(config, host, *[replace(HUNG, api="timeout")] * 2)
    assert restarts(host) == [SERVICE]


def test_a_restart_that_systemd_refuses_is_told(config: Config, host: Clock) -> None:
    host.commands["systemctl try-restart"] = Command(1, "", "Failed to connect to bus")
    assert "could not be restarted (Failed to connect to bus)" in str(heal(config, host, HUNG, HUNG)[1])


def test_others_than_root_heal_nothing(config: Config, host: Clock) -> None:
    host.root_user = False
    assert heal(config, host, HUNG, HUNG) == [None, None]


def test_what_cannot_be_remembered_is_not_done(config: Config, host: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(recall, "remember", refuse)
    with pytest.raises(OSError, match="no space"):
        healing.heal(config, host, None, HUNG)
    assert restarts(host) == []


def test_it_is_remembered_over_a_reboot(config: Config, host: Clock, tmp_path: Path) -> None:
    with Store.open(tmp_path / "db") as store:
        heal(config, host, HUNG, store=store)
        for file in host.path("/run/local-llm-alerts").iterdir():
            file.unlink()
        assert heal(config, host, HUNG, store=store)[0]
