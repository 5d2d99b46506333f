"""The rules as the running gateway applies them, against a plain statement of their table.

Each generated request is put to the gateway in explain mode, so that ten thousand of them take seconds.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from sandbox.cloud import Cloud
from sandbox.host import free_port
from tests.container.clouds import reachable, with_cloud
from tests.container.machine import Machine, eventually

REQUESTS = 10_000
SEED = 20_261_123
LOCAL_MODEL = "tiny"
BYTES_PER_TOKEN = 4.2
# What the deploy under test is told; the defaults are 2,000 and 500.
LONG_PROMPT, SHORT_PROMPT, LONG_ANSWER = 2_000, 500, 1_024


@dataclass(frozen=True)
class Request:
    """A request before it is written down. `spaces` is written between its parts."""

    path: str
    fields: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    spaces: str = ""

    @property
    def body(self) -> bytes:
        separators = ("," + self.spaces, ":" + self.spaces)
        return json.dumps(self.fields, separators=separators, ensure_ascii=False).encode()


def expected(request: Request) -> str:
    """The table, stated once more: the first line that is true decides."""
    fields, headers = request.fields, request.headers
    tokens = int(len(request.body) * 10 / round(BYTES_PER_TOKEN * 10))
    numbers = [fields.get(name) for name in ("max_tokens", "max_completion_tokens")]
    table = [
        ("probe", "X-LLM-Probe" in headers),
        ("local-model", fields.get("model") == LOCAL_MODEL),
        ("asked-local", headers.get("X-LLM-Route", "").lower() == "local"),
        ("no-model", "model" not in fields),
        ("local-endpoint", request.path in {"/v1/messages", "/tokenize"}),
        ("embeddings", request.path == "/v1/embeddings"),
        ("asked-cloud", headers.get("X-LLM-Route", "").lower() == "cloud"),
        ("priority", fields.get("service_tier") == "priority"),
        ("reasoning", fields.get("reasoning_effort") in {"medium", "high"}),
        ("long-prompt", tokens > LONG_PROMPT),
        ("long-answer", any(isinstance(number, int) and number > LONG_ANSWER for number in numbers)),
        ("utility-task", headers.get("X-LLM-Task") == "utility"),
        ("short-prompt", tokens < SHORT_PROMPT),
        ("default", True),
    ]
    return next(reason for reason, matches in table if matches)


# What could confuse a parser of JSON: quotes, braces, escapes, other scripts, and the fields' own names.
WORDS = (
    'say "hi"', "{", "}", "\\", "ä", "语", "🙂", "\n", "what", f'"model": "{LOCAL_MODEL}"',
    '"service_tier": "priority"', '\\"model\\"', "max_tokens", "[1, 2", "null",
)  # fmt: skip
# Fields of the same names that are not the request's own.
DECOYS: tuple[dict[str, Any], ...] = (
    {},
    {"metadata": {"model": LOCAL_MODEL, "service_tier": "priority", "max_tokens": 9_999}},
    {"tools": [{"model": LOCAL_MODEL, "reasoning_effort": "high"}]},
    {"models": [LOCAL_MODEL], "model_": LOCAL_MODEL},
)
LIMITS = (None, None, None, 0, 1, 1_023, 1_024, 1_025, 2_048, 100_000)
FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (*["cloud-large"] * 8, "unknown", "tiny2", LOCAL_MODEL, None),
    "max_tokens": LIMITS,
    "max_completion_tokens": LIMITS,
    "service_tier": (None, None, None, "auto", "priority", "priority2"),
    "reasoning_effort": (None, None, None, "low", "minimal", "medium", "high"),
    "stream": (None, True, False),
}
HEADERS: dict[str, tuple[str | None, ...]] = {
    "X-LLM-Route": (*[None] * 8, "local", "cloud", "Local", "CLOUD", "elsewhere"),
    "X-LLM-Task": (None, None, "utility", "other"),
    "X-LLM-Probe": (*[None] * 30, "1"),
}
PATHS = ("/v1/chat/completions",) * 12 + ("/v1/completions", "/v1/messages", "/v1/embeddings", "/tokenize")


def text_of(random: Random) -> str:
    """A text of a few words or of about as many tokens as a threshold, or a long one."""
    near = int(random.choice((SHORT_PROMPT, LONG_PROMPT)) * BYTES_PER_TOKEN) + random.randint(-400, 200)
    length = random.choice((random.randint(0, 40), near, near, 5_000, 60_000 if random.random() < 0.1 else 3_000))
    return "".join(random.choices(WORDS, k=random.randint(0, 4))) + "x" * length


def generated(random: Random) -> Request:
    """Any request; each rule fires for many of them."""
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": text_of(random), "model": "nested"}]}
    fields |= random.choice(DECOYS)
    fields |= {name: value for name, values in FIELDS.items() if (value := random.choice(values)) is not None}
    shuffled = dict(random.sample(list(fields.items()), k=len(fields)))
    headers = {name: value for name, values in HEADERS.items() if (value := random.choice(values)) is not None}
    return Request(random.choice(PATHS), shuffled, headers, random.choice(("", " ", "\n  ")))


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
                yield connection
        finally:
            process.terminate()
            process.wait(timeout=20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_rule_that_fires_is_the_first_of_the_table(gateway: http.client.HTTPConnection) -> None:
    random = Random(SEED)
    fired: Counter[str] = Counter()
    for number in range(REQUESTS):
        request = generated(random)
        headers = {"Content-Type": "application/json", "X-LLM-Explain": "1", **request.headers}
        gateway.request("POST", request.path, body=request.body, headers=headers)
        answer = gateway.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        explained = json.loads(said)
        assert explained["rule"] == expected(request), f"request {number} of seed {SEED}: {request}"
        limits = [request.fields.get(name) for name in ("max_completion_tokens", "max_tokens")]
        assert explained["max_tokens"] == next((limit for limit in limits if limit is not None), None)
        fired[explained["rule"]] += 1
    assert len(fired) == 14, fired
    assert min(fired.values()) > 20, fired
