"""What OpenClaw is told, and when: the patch, its comparison with what is there, and what an installation lacks."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facts.openclaw import Installation, InstallationState, Wiring, parse_installation
from operations.files import ManagedFile
from operations.openclaw import (
    Wanted,
    Where,
    differences,
    key_paths,
    satisfies,
    value_at,
)
from settings import Settings
from tasks import openclaw
from tasks.planning import Status

NODE_RANGE = ">=24.16.0 <25 || >=26.1.0"
INSTALLED = InstallationState(
    home="/home/claw",
    command="/home/claw/.npm-global/bin/openclaw",
    version="2026.9.6",
    needs_node=NODE_RANGE,
    node="/usr/bin/node",
    node_version="24.21.0",
)
CLAW = Where("claw")


def settings(**values: Any) -> Settings:
    return Settings(openclaw_user="claw", **values)


def with_cloud(**values: Any) -> Settings:
    return settings(cloud_url="https://api.example.com/v1", cloud_models=("large", "openai/small"), **values)


def wanted(values: Settings, found: Mapping[str, Any] | None = None) -> Wanted:
    directory = openclaw.SLIM_DIRECTORY if values.openclaw_slim else None
    return Wanted(openclaw.patch(values, found or {}), openclaw.fallback(values), directory)


def applied(wish: Wanted) -> dict[str, Any]:
    """A configuration that holds what is wanted, as OpenClaw would write it."""
    config: dict[str, Any] = json.loads(json.dumps(wish.patch))
    model = config.setdefault("agents", {}).setdefault("defaults", {}).setdefault("model", {})
    if wish.fallback:
        model["fallbacks"] = ["anthropic/first", wish.fallback]
    if wish.plugin_directory:
        config.setdefault("plugins", {})["load"] = {"paths": ["/home/claw/own", wish.plugin_directory]}
    return config


def lists_in(value: Any, path: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [found for name, part in value.items() for found in lists_in(part, f"{path}.{name}")]
    return [path.removeprefix(".")] if isinstance(value, list) else []


def test_the_local_provider_says_what_is_deployed() -> None:
    provider = openclaw.local_provider(settings(context_tokens=8192, api_port=9000))
    [model] = provider["models"]
    assert provider["baseUrl"] == "http://127.0.0.1:9000/v1"
    assert (model["id"], model["contextWindow"]) == ("qwen2.5-1.5b-instruct", 8192)


def test_the_local_provider_waits_longer_than_the_gateway_does() -> None:
    values = settings(queue_timeout_seconds=100, request_timeout_seconds=500)
    assert openclaw.local_provider(values)["timeoutSeconds"] > 600


@pytest.mark.parametrize(("context", "answer"), [(16_384, 1024), (2048, 512)])
def test_an_answer_leaves_room_for_the_prompt(context: int, answer: int) -> None:
    [model] = openclaw.local_provider(settings(context_tokens=context))["models"]
    assert model["maxTokens"] == answer


def test_the_router_exists_only_with_a_cloud() -> None:
    assert list(openclaw.patch(settings(), {})["models"]["providers"]) == ["local-llm"]
    router = openclaw.patch(with_cloud(), {})["models"]["providers"]["local-llm-router"]
    assert [model["id"] for model in router["models"]] == ["large", "openai/small"]
    assert router["api"] == "openai-completions"
    assert openclaw.router_provider(with_cloud(cloud_api="anthropic"))["api"] == "anthropic-messages"


def test_no_key_is_ever_given() -> None:
    assert "apiKey" not in json.dumps(openclaw.patch(with_cloud(openclaw_primary=True, openclaw_slim=True), {}))


def test_the_users_primary_stays_unless_asked() -> None:
    assert "model" not in openclaw.patch(with_cloud(), {})["agents"]["defaults"]
    defaults = openclaw.patch(with_cloud(openclaw_primary=True), {})["agents"]["defaults"]
    assert defaults["model"] == {"primary": "local-llm-router/large"}


def test_the_patch_replaces_no_list_of_the_users() -> None:
    enabled = {"plugins": {"entries": {"llm-task": {"enabled": True}}}}
    every = openclaw.patch(with_cloud(openclaw_primary=True, openclaw_slim=True), enabled)
    assert lists_in(every) == ["models.providers.local-llm.models", "models.providers.local-llm-router.models"]


def test_llm_task_is_configured_only_where_it_is_enabled() -> None:
    assert "plugins" not in openclaw.patch(settings(), {})
    enabled = {"plugins": {"entries": {"llm-task": {"enabled": True}}}}
    entry = openclaw.patch(settings(), enabled)["plugins"]["entries"]["llm-task"]
    assert entry["config"] == {"defaultProvider": "local-llm", "defaultModel": "qwen2.5-1.5b-instruct"}
    assert "plugins" not in openclaw.patch(settings(openclaw_utility=False), enabled)


def test_the_plugin_is_switched_off_where_it_was_on() -> None:
    was_on = {"plugins": {"entries": {"local-llm-slim": {"enabled": True}}}}
    assert openclaw.patch(settings(), was_on)["plugins"]["entries"]["local-llm-slim"] == {"enabled": False}
    was_off = {"plugins": {"entries": {"local-llm-slim": {"enabled": False}}}}
    assert "plugins" not in openclaw.patch(settings(), was_off)


def test_no_fallback_to_a_context_that_openclaw_refuses() -> None:
    assert openclaw.fallback(settings()) == "local-llm/qwen2.5-1.5b-instruct"
    assert openclaw.fallback(settings(context_tokens=2048)) is None
    assert openclaw.fallback(settings(openclaw_fallback=False)) is None


def test_what_was_wired_is_not_wired_again() -> None:
    for values in (settings(), with_cloud(openclaw_primary=True, openclaw_slim=True)):
        wish = wanted(values)
        assert list(differences(wish, applied(wish))) == []


def test_more_than_what_is_wanted_is_no_difference() -> None:
    wish = wanted(settings())
    config = applied(wish)
    config["models"]["providers"]["mine"] = {"baseUrl": "https://example.org"}
    config["agents"]["defaults"]["workspace"] = "/srv"
    assert list(differences(wish, config)) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("models", "providers", "local-llm", "api"), "other", "models.providers.local-llm.api"),
        (("models", "providers", "local-llm", "models"), [], "models.providers.local-llm.models"),
        (("agents", "defaults", "utilityModel"), "other/model", "agents.defaults.utilityModel"),
        (("agents", "defaults", "model"), "anthropic/first", "the fallback local-llm/qwen2.5-1.5b-instruct"),
        (("plugins", "load", "paths"), [], f"the plugin in {openclaw.SLIM_DIRECTORY}"),
    ],
)
def test_each_difference_is_named(path: tuple[str, ...], value: object, named: str) -> None:
    wish = wanted(settings(openclaw_slim=True))
    config = applied(wish)
    value_at(config, path[:-1])[path[-1]] = value
    assert list(differences(wish, config)) == [named]


def test_only_the_keys_that_are_set_are_read() -> None:
    assert key_paths({"a": {"b": 1, "c": {}}, "d": []}) == [("a", "b"), ("a", "c"), ("d",)]
    paths = key_paths(openclaw.patch(with_cloud(), {}))
    assert all(path[:3] != ("models", "providers") for path in paths)


@pytest.mark.parametrize(
    ("version", "good"),
    [("24.16.0", True), ("24.21.0", True), ("24.15.9", False), ("25.0.0", False), ("26.1.0", True), ("18.19.1", False)],
)
def test_node_versions(version: str, good: bool) -> None:
    assert satisfies(version, NODE_RANGE) is good


def test_a_range_that_is_not_understood_is_left_to_openclaw() -> None:
    assert satisfies("18.0.0", "^24")
    assert satisfies("18.0.0", "")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, Status.PASS),
        ({"command": ""}, Status.WARN),
        ({"home": "", "command": ""}, Status.FAIL),
        ({"node_version": "20.19.2"}, Status.FAIL),
    ],
)
def test_an_openclaw_that_is_still_to_come_does_not_stop_the_deploy(changes: dict[str, str], status: Status) -> None:
    finding = openclaw.finding(CLAW, dataclasses.replace(INSTALLED, **changes))
    assert finding.status is status
    assert ("npm install -g openclaw" in finding.remedy) is (status is Status.WARN)
    assert (openclaw.DIRECTORY in finding.remedy) is (status is Status.WARN)


@pytest.mark.parametrize(
    ("values", "installation", "outcome"),
    [
        (Settings(), InstallationState(), "said"),
        (settings(), dataclasses.replace(INSTALLED, command=""), "said"),
        (settings(), INSTALLED, "wired"),
    ],
)
def test_what_wires_an_openclaw_is_always_left_on_the_host(
    monkeypatch: pytest.MonkeyPatch, values: Settings, installation: InstallationState, outcome: str
) -> None:
    left: list[ManagedFile] = []
    done: list[str] = []
    facts = {Installation: installation, Wiring: {}}
    monkeypatch.setattr(openclaw, "host", SimpleNamespace(log=lambda _: done.append("said")))
    monkeypatch.setattr(openclaw, "read", lambda fact, **_: facts[fact])
    monkeypatch.setattr(openclaw.files, "managed", lambda files, **_: left.extend(files))
    monkeypatch.setattr(openclaw.openclaw, "wired", lambda **_: done.append("wired"))
    vars(openclaw.wire)["_inner"](values)
    assert [file.path for file in left] == [openclaw.PATCH, openclaw.SCRIPT]
    assert done == [outcome]


def test_the_command_by_hand_says_where_openclaw_is() -> None:
    assert openclaw.by_hand(None) == openclaw.by_hand(CLAW) == f"sh {openclaw.SCRIPT}"
    elsewhere = Where("claw", state_directory="/srv/claw", command="/opt/claw")
    assert openclaw.by_hand(elsewhere) == f"OPENCLAW_STATE_DIR=/srv/claw OPENCLAW=/opt/claw sh {openclaw.SCRIPT}"


def test_an_installation_is_read() -> None:
    lines = ["@home", "/home/claw", "@command", INSTALLED.command, "@version", "2026.9.6", "@needs_node", NODE_RANGE]
    assert parse_installation([*lines, "@node", "/usr/bin/node", "@node_version", "v24.21.0"]) == INSTALLED
    assert parse_installation(["@home", ""]) == InstallationState()


def test_facts_are_shell() -> None:
    for command in (
        Installation().command(user="claw"),
        Wiring().command(user="claw", file="/x", keys=(("a", "b"),), environment={"HOME": "/home/claw"}),
    ):
        subprocess.run(["/bin/sh", "-n", "-c", command], check=True)


def wiring(text: str | None, tmp_path: Path, answer: str = "") -> dict[str, Any]:
    """What the fact reads from a file with this text (None: no file), where OpenClaw would answer that."""
    file = tmp_path / "openclaw.json"
    if text is not None:
        file.write_text(text)
    cli = tmp_path / "openclaw"
    cli.write_text(f"#!/bin/sh\n[ \"$1 $2 $4\" = 'config get --json' ] && printf %s '{answer}'\n")
    cli.chmod(0o755)
    keys = (("models", "providers", "local-llm", "baseUrl"), ("agents", "defaults", "utilityModel"))
    environment = {"HOME": "/", "PATH": os.environ["PATH"], "OPENCLAW": str(cli)}
    command = Wiring().command(user="u", file=str(file), keys=keys, environment=environment)
    runuser = tmp_path / "runuser"
    runuser.write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    runuser.chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", command], env=path, check=True, capture_output=True, text=True)
    return Wiring().process(done.stdout.splitlines())


def test_the_wiring_is_read_without_openclaw_and_without_what_is_the_users(tmp_path: Path) -> None:
    config = {
        "models": {"providers": {"local-llm": {"baseUrl": "x", "apiKey": "a"}, "mine": {"apiKey": "b"}}},
        "agents": {"defaults": {"workspace": "/srv"}},
    }
    found = wiring(json.dumps(config), tmp_path, answer="never asked")
    assert found == {"models": {"providers": {"local-llm": {"baseUrl": "x"}}}, "agents": {"defaults": {}}}


@pytest.mark.parametrize("text", ["// by hand\n{models: {}}", '{"$include": "other.json"}'])
def test_what_only_openclaw_can_read_is_asked_of_it(text: str, tmp_path: Path) -> None:
    answer = json.dumps({"defaults": {"utilityModel": "a/b"}, "providers": {"local-llm": {"baseUrl": "y"}}})
    found = wiring(text, tmp_path, answer)
    assert found["agents"]["defaults"] == {"utilityModel": "a/b"}
    assert found["models"]["providers"]["local-llm"] == {"baseUrl": "y"}


def test_a_configuration_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    found = wiring(None, tmp_path)
    assert value_at(found, ("agents", "defaults", "utilityModel")) is None
