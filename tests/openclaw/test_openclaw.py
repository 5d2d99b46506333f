"""A real OpenClaw, wired over SSH: what the deploy writes, what it leaves alone, and turns while the cloud is dead.

The tests up to the last build on each other, in this order: a wiring takes OpenClaw's own commands most of a minute.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.container.conftest import with_settings
from tests.container.machine import Machine
from tests.openclaw.user import DEAD_PORT, HOME, NAME, STATE, OpenClawUser

BY_HAND = f"""// my own configuration
{{
  models: {{ mode: "merge", providers: {{
    mine: {{ baseUrl: "http://127.0.0.1:{DEAD_PORT}/v1", apiKey: "sk-mine", api: "openai-completions",
      models: [{{ id: "large", name: "Large", input: ["text"], contextWindow: 128000, maxTokens: 8192 }}],
    }} }} }},
  agents: {{ defaults: {{
    model: {{ primary: "mine/large", fallbacks: ["mine/other"] }},
    models: {{ "mine/large": {{ alias: "big" }} }},
    modelPolicy: {{ allow: ["mine/*"] }},
  }} }},
  plugins: {{ entries: {{ "llm-task": {{ enabled: true }} }} }},
  tools: {{ alsoAllow: ["llm-task"] }},
}}
"""
LOCAL = "local-llm/tiny"
DIRECTORY = "/etc/local-llm/openclaw"
FASTER = 20


def dead_cloud_settings(url: str) -> dict[str, object]:
    """The cloud that never answers, as the primary model; what OpenClaw can do in short itself, it does."""
    return {
        "cloud_url": url,
        "cloud_models": ["large"],
        "openclaw_primary": True,
        "openclaw_slim": True,
        "fallback_prompt_tokens": 4000,
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"openclaw_user": "nobody-here"}, "there is no such user"),
        ({"openclaw_user": NAME, "openclaw_node": "/bin/true"}, "openclaw_node"),
    ],
)
def test_what_cannot_be_wired_is_said_before_anything_is_written(
    machine: Machine, user: OpenClawUser, settings: dict[str, object], words: str
) -> None:
    run = with_settings(machine, **settings).deploy()
    assert not run.succeeded
    assert words in run.output
    assert user.sh(f"ls -A {HOME}/.openclaw 2>/dev/null", check=False) == ""


def test_for_an_openclaw_that_is_still_to_come_file_and_commands_are_left(machine: Machine, user: OpenClawUser) -> None:
    machine.sh(f"rm -rf {DIRECTORY}")
    run = with_settings(machine, openclaw_user=NAME, openclaw_command="/opt/none").deploy()
    assert run.succeeded, run.output
    assert f"OPENCLAW=/opt/none sh {DIRECTORY}/apply.sh" in run.output
    assert machine.sh(f"ls {DIRECTORY}").split() == ["apply.sh", "provider.json"]
    assert user.sh(f"ls -A {HOME}/.openclaw 2>/dev/null", check=False) == ""


def test_what_fails_after_the_write_is_put_back(machine: Machine, user: OpenClawUser) -> None:
    user.write(BY_HAND)
    machine.sh("systemctl stop local-llm-gateway.socket local-llm-gateway")
    try:
        said = user.sh(f"sh {DIRECTORY}/apply.sh 2>&1", check=False)
    finally:
        machine.sh("systemctl start local-llm-gateway")
    assert said.index("writing the providers") < said.index("ECONNREFUSED") < said.index("was put back")
    assert user.text() == BY_HAND.strip()
    assert user.machine.sh(f"stat -c '%U %a' {STATE}/openclaw.json") == f"{NAME} 600"
    assert user.sh(f"ls {STATE} | grep local-llm") == "openclaw.json.before-local-llm"


def test_a_configuration_that_openclaw_refuses_stays_as_it_is(user: OpenClawUser) -> None:
    user.write('{"nonsense": 1}')
    run = user.wired.deploy()
    assert not run.succeeded
    assert 'Unrecognized key: "nonsense"' in run.output
    assert user.text() == '{"nonsense": 1}'
    assert user.sh(f"ls {STATE} | grep local-llm", check=False) == ""


def test_wiring_adds_and_removes_nothing(user: OpenClawUser) -> None:
    user.write(BY_HAND)
    run = user.wired.deploy()
    assert run.succeeded, run.output
    config = user.config()
    assert config["agents"]["defaults"]["model"] == {"primary": "mine/large", "fallbacks": ["mine/other", LOCAL]}
    assert config["agents"]["defaults"]["models"] == {"mine/large": {"alias": "big"}, LOCAL: {}}
    assert config["agents"]["defaults"]["modelPolicy"] == {"allow": ["mine/*"]}
    assert config["agents"]["defaults"]["utilityModel"] == LOCAL
    assert config["models"]["providers"]["mine"]["apiKey"] == "sk-mine"
    assert config["plugins"]["entries"]["llm-task"]["config"]["defaultProvider"] == "local-llm"
    assert config["tools"]["alsoAllow"] == ["llm-task"]
    assert user.text("openclaw.json.before-local-llm") == BY_HAND.strip()
    assert "sk-mine" not in run.output


def test_the_users_files_stay_the_users(user: OpenClawUser) -> None:
    assert user.machine.sh(f"find {HOME} ! -user {NAME}") == ""
    assert user.machine.sh(f"stat -c %a {STATE}/openclaw.json") == "600"


def test_openclaw_itself_finds_nothing_wrong(user: OpenClawUser) -> None:
    assert user.openclaw("config", "validate", "--json") | {"path": ""} == {"valid": True, "path": "", "warnings": []}


def test_a_second_run_writes_nothing(user: OpenClawUser) -> None:
    before = user.stamp()
    run = user.wired.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0
    assert user.stamp() == before


def test_a_completion_goes_to_the_local_model(user: OpenClawUser) -> None:
    began = float(user.machine.sh("date +%s.%N"))
    answer = user.openclaw("infer", "model", "run", "--local", "--model", LOCAL, "--prompt", "Who?", "--json")
    assert answer["ok"] is True
    assert answer["outputs"][0]["text"].strip() == user.machine.source.models["tiny"].answer
    assert [reason for _, _, reason in user.requests(began)] == ["local-model"]


def test_a_turn_while_the_cloud_is_dead(user: OpenClawUser) -> None:
    """Without the gateway OpenClaw tries a dead cloud again and again, for a minute or more, before its fallback."""
    # No other fallback: OpenClaw would try it with the same patience first. And it uses no primary that is not allowed.
    by_hand = BY_HAND.replace('fallbacks: ["mine/other"]', "fallbacks: []")
    user.write(by_hand.replace('allow: ["mine/*"]', 'allow: ["mine/*", "local-llm-router/*"]'))
    routing = with_settings(user.wired, **dead_cloud_settings(user.start_dead_cloud()))
    run = replace(routing, environment={"LOCAL_LLM_CLOUD_KEY": "a-key"}).deploy()
    assert run.succeeded, run.output
    routed = user.turn("routed")
    assert routed.provider == "local-llm"
    assert routed.attempts == ["local-llm-router", "local-llm"]
    assert routed.text == user.machine.source.models["tiny"].answer

    config = user.config()
    config["agents"]["defaults"]["model"] = {"primary": "mine/large", "fallbacks": [LOCAL]}
    direct_state = f"{HOME}/direct"
    user.write(json.dumps(config), direct_state)
    direct = user.turn("direct", direct_state)
    assert direct.provider == "local-llm"
    print(f"until the local model has answered: {routed.seconds:.1f} s routed, {direct.seconds:.1f} s direct")
    assert direct.seconds > FASTER * routed.seconds
