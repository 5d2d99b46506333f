"""The rules as the running gateway applies them, against a plain statement of their table.

Each generated request is put to the gateway in explain mode, so that ten thousand of them take seconds; some hundred
others are sent for real.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import pytest

from sandbox.cloud import Cloud
from sandbox.host import free_port
from tests.container.clouds import reachable, with_cloud
from tests.container.machine import Machine, eventually

EXPLAINED, SENT = 10_000, 400
SEED = 20_261_123
LOCAL_MODEL = "tiny"
BYTES_PER_TOKEN = 4.2
BODY_LIMIT = 256 * 1024
# What the deploy under test is told; the defaults are 2,000 and 500.
LONG_PROMPT, SHORT_PROMPT, LONG_ANSWER = 2_000, 500, 1_024


@dataclass(frozen=True)
class Request:
    """A request before it is written down: `spaces` between its parts, with `escapes` some values as \\uXXXX."""

    path: str
    fields: dict[str, Any]
    headers: tuple[tuple[str, str], ...] = ()
    spaces: str = ""
    escapes: bool = False

    @cached_property
    def body(self) -> bytes:
        separators = ("," + self.spaces, ":" + self.spaces)
        text = json.dumps(self.fields, separators=separators, ensure_ascii=False)
        for value in ESCAPED if self.escapes else ():
            text = text.replace(f'"{value}"', '"' + "".join(f"\\u{ord(letter):04x}" for letter in value) + '"')
        return text.encode()

    @property
    def is_oversized(self) -> bool:
        return len(self.body) > BODY_LIMIT

    @property
    def seen(self) -> dict[str, Any]:
        """The fields that the gateway can read: of a body beyond its limit those before the long one."""
        until = list(self.fields).index("messages") if self.is_oversized else None
        return dict(list(self.fields.items())[:until])

    def values(self, header: str) -> set[str]:
        return {value.lower() for name, value in self.headers if name == header}

    def limit(self, name: str) -> int | None:
        """The whole part of a number, also of one that a text begins with."""
        digits = re.match(r"\d+", str(self.seen.get(name)))
        return int(digits[0]) if digits else None


def expected(request: Request) -> tuple[str, str]:
    """The table, stated once more: the first line that is true decides who answers, and whether the other side may."""
    fields = request.seen
    tokens = int(len(request.body) * 10 / round(BYTES_PER_TOKEN * 10))
    limits = (request.limit("max_tokens"), request.limit("max_completion_tokens"))
    table = [
        ("probe", "local-only", request.values("X-LLM-Probe")),
        ("local-model", "local-only", fields.get("model") == LOCAL_MODEL),
        ("asked-local", "local-only", "local" in request.values("X-LLM-Route")),
        ("no-model", "local-only", "model" not in fields),
        ("local-endpoint", "local-only", request.path in {"/v1/messages", "/tokenize"}),
        ("embeddings", "cloud-only", request.path == "/v1/embeddings"),
        ("asked-cloud", "cloud-first", "cloud" in request.values("X-LLM-Route")),
        ("priority", "cloud-first", fields.get("service_tier") == "priority"),
        ("reasoning", "cloud-first", fields.get("reasoning_effort") in {"medium", "high"}),
        ("long-prompt", "cloud-first", tokens > LONG_PROMPT),
        ("long-answer", "cloud-first", any(limit is not None and limit > LONG_ANSWER for limit in limits)),
        ("utility-task", "local-first", "utility" in request.values("X-LLM-Task")),
        ("short-prompt", "local-first", tokens < SHORT_PROMPT),
        ("default", "cloud-first", True),
    ]
    return next((reason, route) for reason, route, matches in table if matches)


def expected_backend(request: Request) -> str:
    """Who answers while both sides are up; the gateway itself what the local side cannot and the cloud may not."""
    _, route = expected(request)
    refuses = route == "local-only" and (request.is_oversized or request.path == "/v1/embeddings")
    return "gateway" if refuses else route.partition("-")[0]


# What could confuse a parser of JSON: quotes, braces, escapes, other scripts, and the fields' own names.
WORDS = (
    'say "hi"', "{", "}", "\\", "ä", "语", "🙂", "\n", "what", f'"model": "{LOCAL_MODEL}"',
    '"service_tier": "priority"', '\\"model\\"', "max_tokens", "[1, 2", "null",
)  # fmt: skip
# Fields of the same names that are not the request's own.
DECOYS: tuple[dict[str, Any], ...] = (
    {},
    {"metadata": {"model": LOCAL_MODEL, "service_tier": "priority", "max_tokens": 9_999}},
    {"examples": [{"model": LOCAL_MODEL, "reasoning_effort": "high"}]},
    {"models": [LOCAL_MODEL], "model_": LOCAL_MODEL},
)
LIMITS = (
    None,
    None,
    None,
    None,
    0,
    1,
    1_023,
    1_024,
    1_025,
    100_000,
    1_024.5,
    1_025.0,
    "1024",
    "2048",
    "12 apples",
    "foo",
)
FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (*["cloud-large"] * 8, "unknown", "tiny2", LOCAL_MODEL, None),
    "max_tokens": LIMITS,
    "max_completion_tokens": LIMITS,
    "service_tier": (None, None, None, "auto", "priority", "priority2"),
    "reasoning_effort": (None, None, None, "low", "minimal", "medium", "high"),
    "stream": (None, True, False),
}
ESCAPED = (LOCAL_MODEL, "priority", "high")
# A header may come more than once.
HEADERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "X-LLM-Route": (
        *[()] * 9, ("local",), ("cloud",), ("Local",), ("CLOUD",), ("elsewhere",),
        ("cloud", "local"), ("local", "cloud"),
    ),
    "X-LLM-Task": ((), (), ("utility",), ("other",)),
    "X-LLM-Probe": (*[()] * 30, ("1",)),
}  # fmt: skip
PATHS = ("/v1/chat/completions",) * 12 + ("/v1/completions", "/v1/messages", "/v1/embeddings", "/tokenize")


def text_of(random: Random) -> str:
    """A text of a few words or of about as many tokens as a threshold, or a long one; for the model few of its own."""
    near = int(random.choice((SHORT_PROMPT, LONG_PROMPT)) * BYTES_PER_TOKEN) + random.randint(-400, 200)
    long = random.choices((3_000, 120_000, 400_000), (90, 9, 1))[0]
    length = random.choice((random.randint(0, 40), near, near, 5_000, long))
    return "".join(random.choices(WORDS, k=random.randint(0, 4))) + " model" * (length // 6) + "x" * (length % 6)


def generated(random: Random) -> Request:
    """Any request; each rule fires for many of them."""
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": text_of(random), "model": "nested"}]}
    fields |= random.choice(DECOYS)
    fields |= {name: value for name, values in FIELDS.items() if (value := random.choice(values)) is not None}
    shuffled = dict(random.sample(list(fields.items()), k=len(fields)))
    headers = tuple((name, value) for name, choices in HEADERS.items() for value in random.choice(choices))
    spaces = random.choice(("", " ", "\n  "))
    return Request(random.choice(PATHS), shuffled, headers, spaces, escapes=random.random() < 0.2)


@pytest.fixture(scope="module")
def gateway(deployed: Machine) -> Iterator[http.client.HTTPConnection]:
    """A kept connection to the gateway of the machine with a cloud, through an SSH tunnel, as an operator would."""
    with Cloud() as cloud, reachable(deployed, cloud):
        run = with_cloud(deployed, cloud).deploy()
        assert run.succeeded, run.output
        port = free_port()
        tunnel = deployed.host.ssh_argv()
        tunnel[1:1] = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:127.0.0.1:8765"]
        process = subprocess.Popen(tunnel)
        try:
            eventually(lambda: _listens(port), 20, "the tunnel")
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                eventually(lambda: _both_are_up(connection), 40, "both sides up")
                yield connection
        finally:
            process.terminate()
            process.wait(timeout=20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _both_are_up(connection: http.client.HTTPConnection) -> bool:
    explained = explain(connection, Request("/v1/completions", {"model": LOCAL_MODEL}))
    return (explained["cloud"], explained["local"]) == ("up", "up")


def send(connection: http.client.HTTPConnection, request: Request, *headers: tuple[str, str]) -> tuple[Any, bytes]:
    """The response and its body, read whole."""
    connection.putrequest("POST", request.path)
    needed = (("Content-Type", "application/json"), ("Content-Length", str(len(request.body))))
    for name, value in (*needed, *headers, *request.headers):
        connection.putheader(name, value)
    connection.endheaders(request.body)
    response = connection.getresponse()
    return response, response.read()


def explain(connection: http.client.HTTPConnection, request: Request) -> dict[str, Any]:
    response, said = send(connection, request, ("X-LLM-Explain", "1"))
    assert response.status == 200, said
    explained: dict[str, Any] = json.loads(said)
    return explained


def test_the_rule_that_fires_is_the_first_of_the_table(gateway: http.client.HTTPConnection) -> None:
    random = Random(SEED)
    fired: Counter[str] = Counter()
    for number in range(EXPLAINED):
        request = generated(random)
        explained = explain(gateway, request)
        found = explained["rule"], explained["route"], explained["would_use"]
        where = f"request {number} of seed {SEED}: {request}"
        assert found == (*expected(request), expected_backend(request)), where
        limits = (request.limit("max_completion_tokens"), request.limit("max_tokens"))
        assert explained["max_tokens"] == next((limit for limit in limits if limit), None), where
        fired[explained["rule"]] += 1
    assert len(fired) == 14, fired
    assert min(fired.values()) > 20, fired


def test_what_is_sent_is_answered_by_the_side_of_its_rule(gateway: http.client.HTTPConnection) -> None:
    random = Random(SEED + 1)
    answered: Counter[str] = Counter()
    for number in range(SENT):
        request = generated(random)
        response, said = send(gateway, request)
        found = response.headers["X-LLM-Reason"], response.headers["X-LLM-Backend"]
        reason, _ = expected(request)
        where = f"request {number} of seed {SEED + 1}: {request} {response.status} {said[:500]!r}"
        assert found == (reason, expected_backend(request)), where
        answered[found[1]] += 1
    assert min(answered[backend] for backend in ("local", "cloud", "gateway")) > 5, answered
