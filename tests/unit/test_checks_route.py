"""`local-llm route`: the gateway explains, the command tells, and no request is ever served by accident."""

import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from checks import cli, route
from checks.route import HeaderError, RouteError
from checks.words import RULES
from settings import Settings
from tasks.routing import rules
from tests.unit.checks_support import REFUSED_URL, Api, serve, write_config

Capture = pytest.CaptureFixture[str]
BODY = b'{ "model": "big",  "messages": [] }\n'
LONG: Mapping[str, Any] = {
    "rule": "long-prompt",
    "route": "cloud-first",
    "would_use": "cloud",
    "estimated_prompt_tokens": 2410,
    "max_tokens": 512,
    "fits_local": True,
    "cloud": "up",
    "local": "up",
}


class Gateway:
    """Explains where it is asked to and serves everything else, as the real one does."""

    def __init__(self, api: Api) -> None:
        self.status = 200
        self.answer: object = LONG
        self.explains = True
        self.served: list[bytes] = []
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []
        api.respond = self._respond

    def _respond(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.explains and headers.get("X-LLM-Explain"):
            self.asked.append((path, headers, body))
            return self.status, {}, json.dumps(self.answer).encode()
        self.served.append(body)
        return 200, {"X-LLM-Backend": "local"}, b'{"choices":[]}'


@pytest.fixture
def api() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def gateway(api: Api) -> Gateway:
    return Gateway(api)


@pytest.fixture
def options(api: Api, tmp_path: Path) -> list[str]:
    return ["--config", str(write_config(tmp_path, api_url=api.url))]


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    path = tmp_path / "request.json"
    path.write_bytes(BODY)
    return str(path)


def test_the_request_is_shown_as_it_is(gateway: Gateway, options: list[str], request_file: str) -> None:
    words = ["--path", "/v1/completions", "--header", "X-LLM-Task: utility", "--header", "x-llm-route:  local"]
    assert cli.main(["route", request_file, *words, *options]) == 0
    path, headers, body = gateway.asked[-1]
    assert (path, body) == ("/v1/completions", BODY)
    assert (headers["X-LLM-Task"], headers["x-llm-route"]) == ("utility", "local")
    assert headers["Content-Type"] == "application/json"
    assert gateway.served == []


def test_the_explanation_in_words(gateway: Gateway, options: list[str], request_file: str, capsys: Capture) -> None:
    assert cli.main(["route", request_file, *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rule    long-prompt: its prompt is estimated above route_long_prompt_tokens",
        "prompt  about 2410 tokens, fits the local context",
        "answer  at most 512 tokens",
        "route   cloud-first: cloud; on its outage local",
        "now     cloud",
        "cloud   up",
        "local   up",
    ]


def test_a_request_that_nothing_can_serve(
    gateway: Gateway, options: list[str], request_file: str, capsys: Capture
) -> None:
    gateway.answer = {**LONG, "fits_local": False, "would_use": "gateway", "cloud": "down", "max_tokens": None}
    assert cli.main(["route", request_file, *options]) == 0
    out = capsys.readouterr().out
    assert "but this one is too long for it" in out
    assert "refused by the gateway" in out
    assert "no limit set" in out
    assert "down (why: sudo local-llm status)" in out


def test_words_that_a_newer_gateway_has(
    gateway: Gateway, options: list[str], request_file: str, capsys: Capture
) -> None:
    gateway.answer = {**LONG, "rule": "new-rule", "route": "new-route", "cloud": "new", "local": "newer"}
    assert cli.main(["route", request_file, *options]) == 0
    assert "other: a rule of the gateway" in capsys.readouterr().out


def test_the_gateways_own_answer(gateway: Gateway, options: list[str], request_file: str, capsys: Capture) -> None:
    assert cli.main(["route", request_file, "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out) == LONG


def test_standard_input(gateway: Gateway, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BODY)))
    assert cli.main(["route", "-", *options]) == 0
    assert gateway.asked[-1][2] == BODY


def test_a_gateway_that_does_not_explain_never_sees_the_request(
    gateway: Gateway, options: list[str], request_file: str, capsys: Capture
) -> None:
    gateway.explains = False
    assert cli.main(["route", request_file, *options]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "did not explain" in err
    assert "from local" in err
    assert gateway.served == [b"{}"]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {**LONG, "rule": 1},
        {**LONG, "estimated_prompt_tokens": "9"},
        {**LONG, "max_tokens": "9"},
        {**LONG, "fits_local": 1},
    ],
)
def test_answers_that_are_no_explanation(api: Api, gateway: Gateway, answer: object) -> None:
    gateway.answer = answer
    with pytest.raises(RouteError, match="did not explain"):
        route.explain(api.url, BODY)


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (403, {"error": {"message": "send no Origin header"}}, "403): send no Origin header"),
        (404, {"error": {"message": "Unknown path.\x1b[2J"}}, "404): Unknown path."),
        (413, {"error": "too large"}, "413): too large"),
        (502, None, "502): null"),
    ],
)
def test_refusals_in_the_gateways_words(api: Api, gateway: Gateway, status: int, answer: object, words: str) -> None:
    gateway.status, gateway.answer = status, answer
    with pytest.raises(RouteError) as caught:
        route.explain(api.url, BODY)
    assert words in str(caught.value)


def test_nothing_listens() -> None:
    with pytest.raises(RouteError, match="sudo systemctl start local-llm-gateway"):
        route.explain(REFUSED_URL, BODY)


def test_a_body_that_is_not_json_is_asked_for_with_a_warning(
    gateway: Gateway, options: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "x").write_bytes(b"\xff{")
    assert cli.main(["route", str(tmp_path / "x"), *options]) == 0
    out, err = capsys.readouterr()
    assert "not JSON" in err
    assert "rule " in out
    assert gateway.asked[-1][2] == b"\xff{"


@pytest.mark.parametrize("words", [["/none/request.json"], ["/"], ["x", "--header", "nonsense"]])
def test_wrong_usage_is_one_line(options: list[str], words: list[str], capsys: Capture) -> None:
    assert cli.main(["route", *words, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["v1", "/a b", "/\n"])
def test_a_path_that_is_none(options: list[str], path: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["route", "x", "--path", path, *options])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "text",
    ["x", ": y", "a b: c", "x: a\r\nHost: y", "ü: x", "x: ü", "X-LLM-Explain: 0", "content-length: 1", "Expect: x"],
)
def test_headers_that_are_not_sent(text: str) -> None:
    with pytest.raises(HeaderError):
        route.parse_header(text)


def test_a_header_of_the_users_takes_the_place_of_ours(api: Api, gateway: Gateway) -> None:
    route.explain(api.url, BODY, headers=[("content-type", "text/plain"), ("Host", "example.com")])
    _, headers, _ = gateway.asked[-1]
    assert [value for name, value in headers.items() if name.lower() == "content-type"] == ["text/plain"]
    assert headers["Host"] == "example.com"


@pytest.mark.parametrize(
    "cloud",
    [
        {},
        {"cloud_url": "https://api.example.com/v1", "cloud_models": ["big"]},
        {"cloud_url": "https://api.example.com/v1", "cloud_models": ["big"], "cloud_api": "anthropic"},
    ],
)
def test_every_rule_has_its_words(cloud: dict[str, Any]) -> None:
    for rule in rules(Settings(**cloud)):
        assert rule.reason in RULES
        assert rule.route in route._ROUTES
