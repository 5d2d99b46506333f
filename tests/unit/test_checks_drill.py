"""The fallback drill: what it takes out, whom it asks, what it says, and that everything comes back."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from checks import cli, drill, gateway, health, probe, status
from checks.contract.config import Config
from checks.contract.paths import DEPLOY_LOCK, DRILL_RECORD, DRILL_TAKEN_OUT, DRILL_UNIT
from checks.drill import DrillError, Outcome
from checks.host import Command
from tests.unit.checks_support import (
    CLOUD,
    GATEWAY,
    NOW,
    SERVICE,
    Admin,
    Api,
    FakeHost,
    make_config,
    serve,
    serve_admin,
    show,
    up,
)

Capture = pytest.CaptureFixture[str]
WHEN = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW))


class Gateway:
    """Routes by what the admin socket's servers are, as the real one does; `requests` were not asked to be explained.

    `answers` gives one side another answer than 200, `deaf` makes the gateway send everything to one side.
    """

    def __init__(self, api: Api, admin: Admin, cloud: bool = True) -> None:
        self.admin = admin
        self.cloud = cloud
        self.requests: list[tuple[str, Mapping[str, str], dict[str, Any]]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.deaf = ""
        self.explanation: dict[str, Any] = {}
        api.respond = self._respond

    def up(self, name: str) -> bool:
        return self.admin.servers[name]["status"].startswith("UP")

    def _respond(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        first = "local" if not self.cloud or "X-LLM-Task" in headers else "cloud"
        if "X-LLM-Explain" in headers:
            return 200, {}, json.dumps(self._explained(first)).encode()
        self.requests.append((path, headers, json.loads(body)))
        sides = {"local": "llm/llama", "cloud": "cloud/cloud"} if self.cloud else {"local": "llm/llama"}
        order = [first, *(side for side in sides if side != first)]
        used = self.deaf or next((side for side in order if self.up(sides[side])), "gateway")
        code, answer = self.answers.get(used, (503 if used == "gateway" else 200, b"{}"))
        return code, {"X-LLM-Backend": used}, answer

    def _explained(self, first: str) -> dict[str, Any]:
        cloud = "none" if not self.cloud else "up" if self.up("cloud/cloud") else "down"
        return {
            "rule": "asked-cloud",
            "route": f"{first}-first" if self.cloud else "local-only",
            "would_use": first,
            "estimated_prompt_tokens": 20,
            "max_tokens": 1,
            "fits_local": True,
            "cloud": cloud,
            "local": "up" if self.up("llm/llama") else "down",
            **self.explanation,
        }


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with serve_admin(tmp_path) as running:
        yield running


@pytest.fixture
def api() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def routes(api: Api, admin: Admin) -> Gateway:
    return Gateway(api, admin)


@pytest.fixture
def config(api: Api, tmp_path: Path) -> Config:
    return make_config(tmp_path, api_url=api.url, cloud=CLOUD)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    host = FakeHost(tmp_path)
    for folder in (DEPLOY_LOCK, DRILL_RECORD, DRILL_TAKEN_OUT):
        host.path(folder).parent.mkdir(parents=True)
    monkeypatch.setattr(cli, "Host", lambda: host)
    monkeypatch.setattr(drill, "BACK_SECONDS", 0.3)
    monkeypatch.setattr(drill, "QUIET_SECONDS", 0.3)
    return host


def changes(admin: Admin) -> list[str]:
    return [command.removeprefix("set server ") for command in admin.commands if command.startswith("set")]


def by_name(found: drill.Drill) -> dict[str, Outcome]:
    return {side.name: side for side in found.sides}


def test_each_side_is_taken_out_and_brought_back(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    found = drill.run(config, host)
    assert [(side.name, side.ok, side.answered_by, side.note) for side in found.sides] == [
        ("cloud", True, "local", ""),
        ("local", True, "cloud", ""),
    ]
    assert found.ok
    assert changes(admin) == [
        "cloud/cloud state maint",
        "cloud/cloud state ready",
        "llm/llama state maint",
        "llm/llama state ready",
    ]
    assert all(side.seconds is not None and 0 <= side.seconds < 5 for side in found.sides)
    assert not host.exists(DRILL_TAKEN_OUT)


def test_the_requests_are_tiny_and_name_the_cloud(routes: Gateway, config: Config, host: FakeHost) -> None:
    drill.run(config, host)
    (path, to_cloud, body), (_, to_local, _) = routes.requests
    assert (path, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "big", 1)
    assert (to_cloud["X-LLM-Route"], to_local["X-LLM-Task"]) == ("cloud", "utility")


def test_a_cloud_of_the_other_kind_is_asked_on_its_own_path(
    routes: Gateway, api: Api, tmp_path: Path, host: FakeHost
) -> None:
    drill.run(make_config(tmp_path, api_url=api.url, cloud={**CLOUD, "api": "anthropic"}), host)
    assert {path for path, _, _ in routes.requests} == {"/v1/messages"}


def test_without_a_cloud_the_gateway_refuses_at_once(admin: Admin, api: Api, tmp_path: Path, host: FakeHost) -> None:
    routes = Gateway(api, admin, cloud=False)
    found = drill.run(make_config(tmp_path, api_url=api.url), host)
    assert [(side.name, side.ok, side.answered_by) for side in found.sides] == [("local", True, "gateway")]
    assert routes.requests[0][2]["model"] == "tiny"
    assert changes(admin) == ["llm/llama state maint", "llm/llama state ready"]


def test_a_late_refusal_is_none(
    admin: Admin, api: Api, tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gateway(api, admin, cloud=False)
    monkeypatch.setattr(drill, "AT_ONCE_SECONDS", 0.0)
    (side,) = drill.run(make_config(tmp_path, api_url=api.url), host).sides
    assert (side.ok, "expected within" in side.note) == (False, True)


@pytest.mark.parametrize(
    ("answers", "ok", "note"),
    [
        ({"cloud": (400, b"{}")}, True, ""),
        ({"cloud": (404, b"{}")}, False, "HTTP status 404"),
        ({"cloud": (429, b"{}")}, False, "HTTP status 429"),
    ],
)
def test_an_answer_that_serves_nobody(
    routes: Gateway, config: Config, host: FakeHost, answers: dict[str, tuple[int, bytes]], ok: bool, note: str
) -> None:
    routes.answers = answers
    side = by_name(drill.run(config, host))["local"]
    assert (side.ok, side.note) == (ok, note)


def test_the_wrong_side_answers(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    routes.deaf = "cloud"
    found = drill.run(config, host)
    side = by_name(found)["cloud"]
    assert (side.ok, side.answered_by, side.note) == (False, "cloud", "HTTP status 200 from cloud, expected local")
    assert not found.ok
    assert {row["status"] for row in admin.servers.values()} == {"UP 1/3"}


def test_an_answer_of_nobody_in_particular(routes: Gateway, config: Config, host: FakeHost) -> None:
    routes.deaf = " "
    assert "from an unnamed server" in by_name(drill.run(config, host))["cloud"].note


def test_no_answer_at_all(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = probe.post

    def dead(*arguments: Any) -> probe.Reply:
        if len(arguments) == 5:  # with the drill's own time limit: its request, not the question before it
            raise probe.PostError("no answer in 30 s")
        return asked(*arguments)

    monkeypatch.setattr(probe, "post", dead)
    found = drill.run(config, host)
    assert {(side.ok, side.note) for side in found.sides} == {(False, "no answer in 30 s")}
    assert gateway.server(config, host, gateway.CLOUD).up


@pytest.mark.parametrize("state", ["DOWN", "MAINT", "DRAIN", "MAINT (resolution)"])
def test_what_was_out_before_stays_out(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost, state: str
) -> None:
    admin.servers["cloud/cloud"] = {"status": state}
    found = by_name(drill.run(config, host))
    assert changes(admin) == []
    assert admin.servers["cloud/cloud"]["status"] == state
    assert (found["cloud"].ok, found["cloud"].answered_by) == (True, "local")
    assert f"it was out before the drill ({state}) and was left as it was" in found["cloud"].note
    assert found["local"].ok is None
    assert found["local"].note == "cloud is down, so nothing was taken out"


def test_a_side_that_was_not_tried_is_not_shown_to_work(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    admin.servers["llm/llama"] = {"status": "DOWN"}
    found = drill.run(config, host)
    assert not found.ok
    assert by_name(found)["cloud"].note == "local is down, so nothing was taken out"
    assert changes(admin) == []


@pytest.mark.parametrize("state", ["resting", "limited"])
def test_a_cloud_that_takes_nothing_now_cannot_take_over(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost, state: str
) -> None:
    routes.explanation = {"cloud": state}
    found = by_name(drill.run(config, host))
    assert (found["cloud"].ok, found["local"].ok) == (True, None)
    assert "llm/llama state maint" not in changes(admin)


def test_rules_that_send_the_probe_elsewhere(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    routes.explanation = {"route": "cloud-first", "rule": "default"}
    side = by_name(drill.run(config, host))["local"]
    assert side.ok is False
    assert side.note.endswith("the rules send the probe cloud-first (default), not local-first")
    assert "llm/llama state maint" not in changes(admin)


def test_requests_that_wait_are_not_refused_for_a_drill(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    admin.servers["llm/llama"] = up(qcur="2")
    found = by_name(drill.run(config, host))
    assert (found["cloud"].ok, found["local"].ok) == (True, None)
    assert "requests wait" in found["local"].note


def test_a_queue_that_empties_is_waited_for(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drill, "QUIET_SECONDS", 10.0)
    admin.servers["llm/llama"] = up(qcur="2")
    threading.Timer(0.3, lambda: admin.servers.update({"llm/llama": up()})).start()
    assert drill.run(config, host).ok


def test_a_gateway_that_explains_nothing_is_left_alone(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    routes.explanation = {"rule": None}
    sides = by_name(drill.run(config, host))
    assert {side.ok for side in sides.values()} == {False}
    assert "did not explain" in sides["cloud"].note
    assert changes(admin) == []


def test_a_side_that_does_not_come_back(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    admin.stuck.add("cloud/cloud")
    found = by_name(drill.run(config, host))
    assert (found["cloud"].ok, found["cloud"].note) == (False, "it is not back in service: MAINT")
    assert host.read(DRILL_TAKEN_OUT) == "cloud"


def test_a_side_that_falls_ill_meanwhile_is_no_longer_the_drills(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    ill = {"status": "DOWN", "check_status": "L4CON"}
    admin.stuck.add("cloud/cloud")
    threading.Timer(0.15, lambda: admin.servers.update({"cloud/cloud": ill})).start()
    found = by_name(drill.run(config, host))
    assert (found["cloud"].ok, found["cloud"].note) == (False, "it is not back in service: DOWN, L4CON")
    assert not host.exists(DRILL_TAKEN_OUT)


def test_the_note_is_there_before_the_side_is_out(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drill that is killed in its request: what `restore` finds."""

    class Killed(BaseException):
        pass

    seen: list[str] = []

    def killed(*_: object) -> None:
        seen.append(host.read(DRILL_TAKEN_OUT))
        assert admin.servers["cloud/cloud"]["status"] == "MAINT"
        monkeypatch.setattr(drill, "_bring_back", lambda *_: "")  # SIGKILL leaves no time for it
        raise Killed

    restore = drill._bring_back
    monkeypatch.setattr(drill, "_asked", killed)
    with pytest.raises(Killed):
        drill.run(config, host)
    monkeypatch.setattr(drill, "_bring_back", restore)
    assert seen == ["cloud"]
    assert admin.servers["cloud/cloud"]["status"] == "MAINT"

    found = drill.restore(config, host)
    assert admin.servers["cloud/cloud"]["status"] == "UP 1/3"
    assert found is not None
    assert found.sides == (
        Outcome("cloud", False, None, None, "the drill was ended while cloud was out; it is back in service"),
    )
    assert drill.read_record(host) == found
    assert drill.restore(config, host) is None


def test_restore_leaves_alone_what_the_drill_did_not_take_out(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    admin.servers["cloud/cloud"] = {"status": "MAINT"}
    assert drill.restore(config, host) is None
    assert admin.commands == []


def test_restore_without_a_gateway_says_so(config: Config, host: FakeHost) -> None:
    host.put(DRILL_TAKEN_OUT, "local")
    found = drill.restore(config, host)
    assert found is not None
    assert "could not be brought back" in found.sides[0].note
    assert found.sides[0].name == "local"


def test_no_drill_while_a_deploy_runs(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    with health.lock(str(host.path(DEPLOY_LOCK))), pytest.raises(DrillError, match="A deploy runs"):
        drill.run(config, host)
    assert admin.commands == []
    assert not host.exists(DRILL_RECORD)


def test_no_deploy_while_a_drill_runs(
    routes: Gateway, config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def asked(*_: object) -> Outcome:
        with pytest.raises(health.AlreadyRunningError), health.lock(str(host.path(DEPLOY_LOCK))):
            pass
        seen.append(host.read(DEPLOY_LOCK))
        return Outcome("x", True, "local", 0.1, "")

    monkeypatch.setattr(drill, "_asked", asked)
    drill.run(config, host)
    when = time.strftime("%H:%M:%SZ", time.gmtime(NOW))
    assert seen == [f"- local-llm drill since {when}\n"] * 2


def test_no_drill_without_a_gateway(api: Api, admin: Admin, config: Config, host: FakeHost) -> None:
    Gateway(api, admin)
    host.put(DRILL_RECORD, json.dumps({"time": "2026-11-15T04:17:00Z", "ok": True, "sides": []}))
    admin.broken = True
    found = drill.run(config, host)
    assert {side.ok for side in found.sides} == {False}
    assert found.sides[0].note.startswith("the drill cannot be done: the gateway has no server")
    assert drill.read_record(host) == found


def test_no_drill_outside_its_unit(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    """Without the unit's runtime directory nobody would bring a side back."""
    host.path(DRILL_TAKEN_OUT).parent.rmdir()
    assert not drill.run(config, host).ok
    assert changes(admin) == []


def test_a_drill_that_shows_nothing_has_failed(routes: Gateway, admin: Admin, config: Config, host: FakeHost) -> None:
    routes.explanation = {"cloud": "resting", "local": "full"}
    found = by_name(drill.run(config, host))
    assert {side.ok for side in found.values()} == {False}
    assert found["cloud"].note == "local is full, so nothing was taken out"
    assert changes(admin) == []


def test_a_drill_by_hand_without_a_cloud_may_come_at_a_bad_moment(
    admin: Admin, api: Api, tmp_path: Path, host: FakeHost
) -> None:
    Gateway(api, admin, cloud=False)
    admin.servers["llm/llama"] = up(qcur="2")
    (side,) = drill.run(make_config(tmp_path, api_url=api.url), host).sides
    assert side.ok is None


def test_the_record_reads_back(routes: Gateway, config: Config, host: FakeHost) -> None:
    found = drill.run(config, host)
    data = json.loads(host.read(DRILL_RECORD))
    assert (data["time"], data["ok"]) == (WHEN, True)
    assert [set(side) for side in data["sides"]] == [{"name", "ok", "answered_by", "seconds", "note"}] * 2
    assert drill.read_record(host) == found
    assert host.names("/var/lib/local-llm") == ["drill.json"]


@pytest.mark.parametrize(("seconds", "words"), [(0.0, "0 ms"), (0.4149, "415 ms"), (1.0, "1.0 s"), (12.34, "12.3 s")])
def test_how_long_it_took(seconds: float, words: str) -> None:
    side = Outcome("cloud", False, "local", seconds, "but")
    assert drill.sentence(side) == f"without cloud: local answered in {words}; but"


def test_the_journals_lines() -> None:
    sides = (
        Outcome("cloud", True, "local", 0.41, ""),
        Outcome("local", None, None, None, 'cloud is "down"'),
    )
    assert list(drill.log_lines(drill.Drill(NOW, sides))) == [
        "side=cloud result=ok answered_by=local seconds=0.41",
        r'side=local result=skipped answered_by=- seconds=- note="cloud is \"down\""',
    ]


@pytest.fixture
def unit(host: FakeHost, routes: Gateway, config: Config) -> FakeHost:
    """A host whose systemctl does what systemd does."""
    host.put_units(show(SERVICE), show(GATEWAY), show(DRILL_UNIT, UnitFileState="static"))

    def run(*argv: str, timeout_seconds: float = 30.0) -> Command:
        if argv[:2] == ("systemctl", "start"):
            assert argv[2:] == (DRILL_UNIT,)
            ended = cli.main(["drill", "--run", "--config", str(host.path("checks.json"))])
            return Command(ended, "", "Job for local-llm-drill.service failed." if ended else "")
        return FakeHost.run(host, *argv, timeout_seconds=timeout_seconds)

    host.run = run  # type: ignore[method-assign]
    return host


@pytest.fixture
def options(tmp_path: Path, config: Config) -> list[str]:
    return ["--config", str(tmp_path / "checks.json")]


def test_the_command(unit: FakeHost, options: list[str], capsys: Capture) -> None:
    assert cli.main(["drill", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("side=cloud result=ok answered_by=local")  # the unit's, to the journal
    assert lines[2].startswith("ok       without cloud: local answered in ")
    assert lines[3].startswith("ok       without local: cloud answered in ")


def test_the_command_for_a_program(unit: FakeHost, options: list[str], capsys: Capture) -> None:
    assert cli.main(["drill", "--json", *options]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["ok"] is True


def test_a_failed_drill_is_exit_code_1(unit: FakeHost, routes: Gateway, options: list[str], capsys: Capture) -> None:
    routes.deaf = "cloud"
    assert cli.main(["drill", *options]) == 1
    assert "failed   without cloud: cloud answered in" in capsys.readouterr().out


def test_a_drill_that_did_not_happen_says_why(unit: FakeHost, options: list[str], capsys: Capture) -> None:
    unit.put(DRILL_RECORD, json.dumps({"time": "2026-11-22T10:05:00Z", "ok": True, "sides": []}))
    unit.commands["journalctl"] = Command(0, "local-llm: A deploy runs on this host.\n", "")
    with health.lock(str(unit.path(DEPLOY_LOCK))):
        assert cli.main(["drill", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "local-llm: A deploy runs on this host."


def test_a_drill_that_did_not_happen_without_a_journal(unit: FakeHost, options: list[str], capsys: Capture) -> None:
    unit.commands["journalctl"] = Command(0, "", "")
    with health.lock(str(unit.path(DEPLOY_LOCK))):
        assert cli.main(["drill", *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "did not end by itself (Job for local-llm-drill.service failed.)" in last


def test_a_drill_without_its_unit(host: FakeHost, options: list[str], capsys: Capture) -> None:
    host.put_units(show(SERVICE))
    assert cli.main(["drill", *options]) == 1
    assert "not installed: deploy" in capsys.readouterr().err


def test_a_drill_needs_root(host: FakeHost, options: list[str], capsys: Capture) -> None:
    host.root_user = False
    for step in ([], ["--run"], ["--restore"]):
        assert cli.main(["drill", *step, *options]) == 2
        assert "sudo local-llm drill" in capsys.readouterr().err


def test_restore_of_the_unit(routes: Gateway, host: FakeHost, options: list[str], capsys: Capture) -> None:
    assert cli.main(["drill", "--restore", *options]) == 0
    assert capsys.readouterr() == ("", "")
    host.put(DRILL_TAKEN_OUT, "cloud")
    assert cli.main(["drill", "--restore", *options]) == 1
    assert "side=cloud result=failed" in capsys.readouterr().out


def test_status_shows_the_last_drill_and_the_cloud(
    routes: Gateway, admin: Admin, config: Config, host: FakeHost
) -> None:
    host.put_units(show(SERVICE), show(GATEWAY))
    host.rss = {4242: 1}
    assert "none yet: sudo local-llm drill" in "\n".join(status.lines(config, host))
    drill.run(config, host)
    screen = "\n".join(status.lines(config, host))
    assert screen.endswith("  OK, 0 s ago")
    assert "up, https://api.example.com/v1" in screen
    admin.servers["cloud/cloud"] = {"status": "DOWN", "check_status": "L7STS", "check_code": "401"}
    screen = "\n".join(status.lines(config, host))
    assert "down: it refuses the key: HTTP status 401, https://api.example.com/v1. Put a new key" in screen
    drill.run(config, host)
    screen = "\n".join(status.lines(config, host))
    assert "NOT OK, 0 s ago: without local: cloud is down, so nothing was taken out" in screen
    routes.explanation = {"cloud": "resting"}
    assert "resting: " in "\n".join(status.lines(config, host))


def test_status_without_a_cloud(tmp_path: Path, host: FakeHost, api: Api) -> None:
    host.put_units(show(SERVICE), show(GATEWAY))
    host.rss = {4242: 1}
    assert "none configured" in "\n".join(status.lines(make_config(tmp_path, api_url=api.url), host))
