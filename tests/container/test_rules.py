"""The rules as the running gateway applies them, against a plain statement of their table.

Each generated request is put to the gateway in explain mode, so that ten thousand of them take seconds.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.cloud import Cloud
from sandbox.host import free_port
from tests.container.clouds import forget, start_resolver, trust, with_cloud
from tests.container.machine import Machine, eventually

REQUESTS = 10_000
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


# Texts with what could confuse a parser of JSON: quotes, braces, escapes, other scripts, and the fields' own names.
words = st.sampled_from(
    [
        'say "hi"', "{", "}", "\\", "ä", "语", "🙂", "\n", "what", f'"model": "{LOCAL_MODEL}"',
        '"service_tier": "priority"', '\\"model\\"', "max_tokens", "[1, 2", "null",
    ]
)  # fmt: skip
lengths = st.one_of(
    st.integers(0, 40),
    st.integers(450, 550).map(lambda tokens: int(tokens * BYTES_PER_TOKEN)),
    st.integers(1900, 2100).map(lambda tokens: int(tokens * BYTES_PER_TOKEN)),
    st.sampled_from([5_000, 20_000, 60_000]),
)
limits = st.sampled_from([None, 0, 1, 1_023, 1_024, 1_025, 2_048, 100_000])
# Fields of the same names that are not the request's own.
decoys: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"metadata": {"model": LOCAL_MODEL, "service_tier": "priority", "max_tokens": 9_999}},
        {"tools": [{"model": LOCAL_MODEL, "reasoning_effort": "high"}]},
        {"models": [LOCAL_MODEL], "model_": LOCAL_MODEL},
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    fields: dict[str, Any] = {}
    if (
        model := draw(st.sampled_from(["cloud-large", "cloud-large", "unknown", "tiny2", LOCAL_MODEL, None]))
    ) is not None:
        fields["model"] = model
    text = "".join(draw(st.lists(words, max_size=4))) + "x" * draw(lengths)
    fields["messages"] = [{"role": "user", "content": text, "model": "nested"}]
    fields.update(draw(decoys))
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := draw(limits)) is not None:
            fields[name] = limit
    optional = {
        "service_tier": st.sampled_from([None, None, "auto", "priority", "priority2"]),
        "reasoning_effort": st.sampled_from([None, None, "low", "medium", "high", "minimal"]),
        "stream": st.sampled_from([None, True, False]),
    }
    fields.update({name: value for name, values in optional.items() if (value := draw(values)) is not None})
    fields = dict(draw(st.permutations(list(fields.items()))))
    route = draw(st.sampled_from([None, None, None, "local", "cloud", "Local", "CLOUD", "elsewhere"]))
    task = draw(st.sampled_from([None, None, "utility", "other"]))
    headers = {name: value for name, value in (("X-LLM-Route", route), ("X-LLM-Task", task)) if value is not None}
    paths = ["/v1/chat/completions"] * 6 + ["/v1/completions", "/v1/messages", "/v1/embeddings", "/tokenize"]
    return Request(draw(st.sampled_from(paths)), fields, headers, draw(st.sampled_from(["", " ", "\n  "])))


@pytest.fixture(scope="module")
def gateway(deployed: Machine) -> Iterator[http.client.HTTPConnection]:
    """A kept connection to the gateway of the machine with a cloud, through an SSH tunnel, as an operator would."""
    with Cloud() as cloud:
        trust(deployed, cloud)
        start_resolver(deployed, cloud)
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
            forget(deployed)
            assert deployed.deploy().succeeded


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_rule_that_fires_is_the_first_of_the_table(gateway: http.client.HTTPConnection) -> None:
    seen: set[str] = set()

    @settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck))
    @given(request=requests())
    def fires(request: Request) -> None:
        headers = {"Content-Type": "application/json", "X-LLM-Explain": "1", **request.headers}
        gateway.request("POST", request.path, body=request.body, headers=headers)
        answer = gateway.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        explained = json.loads(said)
        seen.add(explained["rule"])
        assert explained["rule"] == expected(request)
        numbers = [request.fields.get(name) for name in ("max_completion_tokens", "max_tokens")]
        assert explained["max_tokens"] == next((number for number in numbers if number is not None), None)

    fires()
    assert len(seen) == 13, seen  # or the table has lines that were never tried
