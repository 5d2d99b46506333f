"""The rules, the cloud's address and its key, before HAProxy sees them."""

import json
import re
from pathlib import Path

import pytest

from settings import Settings, parse
from tasks.cloud_key import environment_file, operators_key
from tasks.planning import Status, key_findings
from tasks.refusals import of_body, of_headers, of_local_model, of_routing, rate_limit
from tasks.routing import ROUTE_WORDS, Route, cloud_address, model_list, request_metrics, rules
from tasks.secret_files import SecretError

URL = "https://api.example.com/v1"
CLOUD = Settings(cloud_url=URL, cloud_models=("large",))


def test_without_a_cloud_everything_is_local() -> None:
    assert [rule.reason for rule in rules(Settings())] == ["local-model", "asked-local", "no-cloud"]
    assert {rule.route for rule in rules(Settings())} == {Route.LOCAL_ONLY}


def test_what_is_local_only_comes_before_what_may_leave() -> None:
    routes = [rule.route for rule in rules(CLOUD)]
    local = routes.count(Route.LOCAL_ONLY)
    assert set(routes[:local]) == {Route.LOCAL_ONLY}
    assert rules(CLOUD)[-1].conditions == ("",)


def test_every_word_of_the_route_header_has_its_rule() -> None:
    asked = {rule.route: rule.conditions for rule in rules(CLOUD) if rule.reason.startswith("asked-")}
    for word, route in ROUTE_WORDS.items():
        [condition] = asked[route]
        assert f" {word} " in condition
    assert set(asked) == set(Route)


def test_without_low_efforts_every_effort_is_the_clouds() -> None:
    without = CLOUD.model_copy(update={"route_low_efforts": ()})
    [rule] = [rule for rule in rules(without) if rule.reason == "reasoning"]
    assert "{ var(txn.reasoning_effort) -m found }" in rule.conditions


def test_refusals_are_what_clients_understand() -> None:
    for settings in (Settings(), CLOUD, CLOUD.model_copy(update={"outage_status": 503, "requests_per_minute": 5})):
        for refusal in (
            *of_headers(settings), *of_body(settings), *of_routing(settings, 100), *of_local_model(settings),
            rate_limit(settings),
        ):  # fmt: skip
            words = re.sub(r"%\[[^\]]*\]", "x", refusal.body.strip("'"))
            assert "%" not in words
            error = json.loads(words)["error"]
            assert list(error) == ["message", "type", "param", "code"]
            kind = {4: "invalid_request_error", 5: "server_error"}[refusal.status // 100]
            assert error["type"] == ("rate_limit_error" if refusal.status == 429 else kind)


def test_an_empty_list_is_no_rule() -> None:
    without = CLOUD.model_copy(update={"route_priority_tiers": (), "route_utility_tasks": ()})
    assert {rule.reason for rule in rules(CLOUD)} - {rule.reason for rule in rules(without)} == {
        "priority", "utility-task",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "authority", "tls", "prefix"),
    [
        ("https://api.example.com/v1", "api.example.com", True, "/v1"),
        ("https://api.example.com:443/api/v1/", "api.example.com", True, "/api/v1"),
        ("https://api.example.com:8443/v1beta/openai", "api.example.com:8443", True, "/v1beta/openai"),
        ("http://127.0.0.1:4000", "127.0.0.1:4000", False, ""),
    ],
)
def test_addresses_are_taken_apart(url: str, authority: str, tls: bool, prefix: str) -> None:
    assert parse({"cloud_url": url, "cloud_models": ["m"]})[1] == []
    address = cloud_address(url)
    assert (address.authority, address.tls, address.prefix) == (authority, tls, prefix)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://203.0.113.7/v1",
        "https://api.example.com/v1?key=1",
        "https://user:word@api.example.com/v1",
        "https://api.example.com:99999/v1",
        "https://api.example.com/v1 #",
        "https://api.example.com/v1'",
        "api.example.com",
    ],
)
def test_addresses_that_cannot_be_trusted_are_refused(url: str) -> None:
    [problem] = parse({"cloud_url": url, "cloud_models": ["m"]})[1]
    assert problem.startswith(f"cloud_url = {url!r}: allowed: ")


def test_a_cloud_is_whole_or_absent() -> None:
    assert parse({"cloud_url": URL})[1] == [
        "cloud_models is missing: cloud_url needs at least one of the provider's models"
    ]
    assert parse({"cloud_models": ["m"]})[1] == ["cloud_models = ('m',): only with cloud_url"]
    for name in ("cloud_models", "cloud_model_aliases"):
        # The host's own model, and one that it may have served before.
        for own in ("qwen2.5-1.5b-instruct", "qwen2.5-3b-instruct"):
            [problem] = parse({"cloud_url": URL, "cloud_models": ["m"], name: [own]})[1]
            assert problem == f"{name} contains {own!r}: that name is a model of the host's own"
    assert parse({"cloud_model_aliases": ["m"]})[1] == ["cloud_model_aliases = ('m',): only with cloud_url"]


def test_models_of_both_sides_are_listed_and_metrics_escape_their_quotes() -> None:
    assert model_list(CLOUD).index("qwen2.5-1.5b-instruct") < model_list(CLOUD).index("large")
    text = request_metrics(["default"])
    assert '{backend=\\"cloud\\",reason=\\"default\\"} %[str(cloud:default),table_gpc0(requests)]\\n' in text


def test_the_key_comes_from_the_file_or_else_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\n")
    with_file = CLOUD.model_copy(update={"cloud_key_file": str(file)})
    environment = {"LOCAL_LLM_CLOUD_KEY": "sk-from-environment"}
    assert operators_key(with_file, environment) == "sk-from-file"
    assert operators_key(CLOUD, environment) == "sk-from-environment"
    assert operators_key(CLOUD, {}) is None
    assert operators_key(Settings(), environment) is None
    assert environment_file("sk-1") == "LOCAL_LLM_CLOUD_KEY=sk-1\n"


@pytest.mark.parametrize("key", ["", "two words", "sk-1\nEXTRA=1", 'quo"te', "dollar$", "naïve"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str, tmp_path: Path) -> None:
    with pytest.raises(SecretError) as refused:
        operators_key(CLOUD, {"LOCAL_LLM_CLOUD_KEY": key})
    assert str(refused.value).startswith("the environment variable LOCAL_LLM_CLOUD_KEY: allowed: ")
    assert not key or key not in str(refused.value)
    missing = CLOUD.model_copy(update={"cloud_key_file": str(tmp_path / "missing")})
    with pytest.raises(SecretError, match="cannot be read: No such file"):
        operators_key(missing, {})


@pytest.mark.parametrize(
    ("given", "on_host", "status"),
    [(True, False, Status.PASS), (False, True, Status.PASS), (False, False, Status.FAIL)],
)
def test_a_cloud_without_any_key_is_found_before_the_deploy(given: bool, on_host: bool, status: Status) -> None:
    [finding] = key_findings(CLOUD, given, on_host)
    assert finding.status is status
    assert list(key_findings(Settings(), given, on_host)) == []
