"""Units, users and versions: each difference from what was deployed is seen."""

import json
from pathlib import Path

import pytest

from checks import service
from checks.contract.config import Config
from checks.result import Status
from tests.unit.checks_support import (
    COMMIT,
    GATEWAY,
    GATEWAY_SOCKETS,
    MODEL_PATH,
    PID,
    RELEASE,
    SERVICE,
    SHA256,
    FakeHost,
    make_config,
    results,
    show,
    statuses,
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY, MainPID="4300"), show(GATEWAY_SOCKETS, MainPID="0"))
    host.users = {PID: "local-llm", 4300: "local-llm-gateway"}
    host.put_link("/opt/local-llm/current", f"releases/{RELEASE}")
    host.put(f"/opt/local-llm/releases/{RELEASE}/release.json", json.dumps({"release": RELEASE, "commit": COMMIT}))
    host.put_link(f"/proc/{PID}/exe", f"/opt/local-llm/releases/{RELEASE}/bin/llama-server")
    host.put(f"/proc/{PID}/cmdline", "/opt/local-llm/current/bin/llama-server\0")
    host.put(f"/proc/{PID}/environ", f"A=b\0LLAMA_ARG_MODEL={MODEL_PATH}\0")
    put_model(host)
    return host


def put_model(host: FakeHost, **changes: object) -> None:
    mtime_ns = host.put(MODEL_PATH, "GGUF").stat().st_mtime_ns
    stamp = {"sha256": SHA256, "size_bytes": 4, "mtime_ns": mtime_ns, **changes}
    host.put(f"{MODEL_PATH}.stamp", json.dumps(stamp))


CHECKS = (
    service.units,
    service.restarts,
    service.users,
    service.release,
    service.model_file,
    service.running_model,
)


def test_as_deployed(config: Config, host: FakeHost) -> None:
    found = [result for check in CHECKS for result in check(config, host)]
    assert {result.status for result in found} == {Status.PASS}
    assert all(result.remedy == "" for result in found)
    assert len({result.name for result in found}) == len(found) == 12


def test_units_are_asked_for_once(config: Config, host: FakeHost) -> None:
    for check in CHECKS:
        list(check(config, host))
    assert len([line for line in host.ran if line.startswith("systemctl show")]) == 1


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"ActiveState": "failed", "SubState": "failed"}, "systemctl start local-llm.service"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "systemctl start local-llm.service"),
        ({"UnitFileState": "disabled"}, "systemctl enable local-llm.service"),
    ],
)
def test_a_unit_that_is_down(config: Config, host: FakeHost, change: dict[str, str], remedy: str) -> None:
    host.put_units(show(SERVICE, **change), show(GATEWAY))
    found = results(service.units, config, host)
    assert found[SERVICE].status is Status.FAIL
    assert remedy in found[SERVICE].remedy
    assert found[GATEWAY].status is Status.PASS


def test_a_unit_that_is_not_there(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE))
    assert results(service.units, config, host)[GATEWAY].status is Status.FAIL


def test_a_unit_file_that_changed(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, NeedDaemonReload="yes"), show(GATEWAY))
    assert statuses(service.units, config, host)[f"{SERVICE} unit file"] is Status.WARN


def test_restarts_are_a_warning(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, NRestarts="2"), show(GATEWAY))
    found = results(service.restarts, config, host)[f"{SERVICE} restarts"]
    assert found.status is Status.WARN
    assert found.value == "2, up 1 h 6 min"


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_another_user(config: Config, host: FakeHost, user: str) -> None:
    host.users[PID] = user
    assert statuses(service.users, config, host) == {f"{SERVICE} user": Status.FAIL, f"{GATEWAY} user": Status.PASS}


def test_root_is_never_right(tmp_path: Path, host: FakeHost) -> None:
    host.users[PID] = "root"
    config = make_config(tmp_path, service_user="root")
    assert statuses(service.users, config, host)[f"{SERVICE} user"] is Status.FAIL


def test_nobody_is_right_where_it_is_configured(tmp_path: Path, host: FakeHost) -> None:
    host.users[PID] = "nobody"
    config = make_config(tmp_path, service_user="nobody")
    assert statuses(service.users, config, host)[f"{SERVICE} user"] is Status.PASS


def test_current_leads_to_another_release(config: Config, host: FakeHost) -> None:
    host.put("/opt/local-llm/releases/old/release.json", json.dumps({"release": "old", "commit": "f" * 40}))
    host.put_link("/opt/local-llm/current", "releases/old")
    found = statuses(service.release, config, host)
    assert found == {"release": Status.FAIL, "llama.cpp commit": Status.FAIL, "running build": Status.PASS}


def test_no_release_at_all(config: Config, host: FakeHost) -> None:
    host.put_link("/opt/local-llm/current", "releases/none")
    assert statuses(service.release, config, host) == {"release": Status.FAIL}


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"release": RELEASE, "commit": "0" * 40}),
        json.dumps({"release": "old", "commit": COMMIT}),
    ],
)
def test_a_manifest_that_does_not_fit(config: Config, host: FakeHost, manifest: str) -> None:
    host.put(f"/opt/local-llm/releases/{RELEASE}/release.json", manifest)
    assert statuses(service.release, config, host)["llama.cpp commit"] is Status.FAIL


@pytest.mark.parametrize("running", [f"{RELEASE}/bin/llama-server (deleted)", "old/bin/llama-server"])
def test_an_older_build_still_runs(config: Config, host: FakeHost, running: str) -> None:
    host.put_link(f"/proc/{PID}/exe", f"/opt/local-llm/releases/{running}")
    found = results(service.release, config, host)["running build"]
    assert found.status is Status.FAIL
    assert "systemctl restart" in found.remedy


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"sha256": "0" * 64}, "stamp names sha256 000000000000…"),
        ({"mtime_ns": 1}, "changed since it was verified"),
        ({"size_bytes": 5}, "changed since it was verified"),
    ],
)
def test_a_stamp_that_does_not_fit(config: Config, host: FakeHost, change: dict[str, object], value: str) -> None:
    put_model(host, **change)
    found = results(service.model_file, config, host)["model file"]
    assert (found.status, found.value) == (Status.FAIL, value)


@pytest.mark.parametrize("stamp", ["", "{}", "[]", "null"])
def test_a_stamp_that_is_none(config: Config, host: FakeHost, stamp: str) -> None:
    host.put(f"{MODEL_PATH}.stamp", stamp)
    assert results(service.model_file, config, host)["model file"].value == "no usable stamp"


def test_a_model_of_another_size(config: Config, host: FakeHost) -> None:
    host.put(MODEL_PATH, "GGUF and more")
    assert "13 bytes" in results(service.model_file, config, host)["model file"].value


def test_another_model_is_loaded(config: Config, host: FakeHost) -> None:
    host.put(f"/proc/{PID}/environ", "LLAMA_ARG_MODEL=/opt/local-llm/models/other.gguf\0")
    found = results(service.running_model, config, host)["running model"]
    assert (found.status, found.value) == (Status.FAIL, "other.gguf")


def test_the_model_through_a_link(config: Config, host: FakeHost) -> None:
    host.put_link("/opt/local-llm/models/default.gguf", "tiny.gguf")
    host.put(f"/proc/{PID}/environ", "LLAMA_ARG_MODEL=/opt/local-llm/models/default.gguf\0")
    assert statuses(service.running_model, config, host) == {"running model": Status.PASS}


@pytest.mark.parametrize(
    ("arguments", "environment", "model"),
    [
        (["llama-server", "-m", "/a"], ["LLAMA_ARG_MODEL=/b"], "/a"),
        (["llama-server", "--model", "/a"], [], "/a"),
        (["llama-server", "--model=/a"], [], "/a"),
        (["llama-server", "-m"], ["X=1", "LLAMA_ARG_MODEL=/b=c"], "/b=c"),
        (["llama-server"], [], None),
    ],
)
def test_model_argument(arguments: list[str], environment: list[str], model: str | None) -> None:
    assert service.model_argument(arguments, environment) == model


def test_a_stopped_service_has_nothing_to_look_at(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, ActiveState="inactive", MainPID="0"), show(GATEWAY, MainPID="4300"))
    assert statuses(service.users, config, host)[f"{SERVICE} user"] is Status.FAIL
    assert statuses(service.release, config, host)["running build"] is Status.FAIL
    assert statuses(service.running_model, config, host) == {"running model": Status.FAIL}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3700, "1 h 1 min"), (93600, "1 d 2 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert service.duration(seconds) == text
