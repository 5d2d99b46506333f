"""What may leave, and the table of rules, stated in plain Python and compared with the running gateway.

Thousands of requests are put to it in explain mode; some hundred others are sent for real, and what the cloud has
seen of them is what counts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest

from sandbox.host import free_port
from sandbox.servers.answers import CLOUD_MODELS
from sandbox.servers.cloud import Cloud
from settings import CATALOGUE, Settings
from tasks.routing import rules
from tests.container.clouds import deployed_with
from tests.container.machine import TEST_LIMITS, Machine, eventually
from tests.container.requests_drawn import CLOUD_ALIAS, LOCAL_MODEL, PATHS, SEED, TOKEN_HEADER, Request, drawn
from tests.strict_json import Pairs, document_of, value_at

EXPLAINED, SENT = 20_000, 1_500
BODY_LIMIT = 1024 * 1024
CONTEXT_TOKENS = 16_384
# No text has more bytes a token, so what is longer is refused without a count.
CERTAIN_BYTES = CONTEXT_TOKENS * 16
TENTHS_OF_BYTES_PER_TOKEN = 42
LONG_PROMPT, SHORT_PROMPT, LONG_ANSWER = 2_000, 500, 1_024
MOST_PROMPTS = 1 + int(str(TEST_LIMITS["queue_length"]))

LOW_EFFORTS = {None, b"none", b"minimal", b"low"}
CLOUDS_MODELS = {*CLOUD_MODELS, CLOUD_ALIAS}
CLOUDS_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
WORDS_OF_ROUTES = {
    b"local": "local-only", b"local-only": "local-only", b"local-first": "local-first", b"cloud": "cloud-first",
    b"cloud-first": "cloud-first", b"cloud-only": "cloud-only",
}  # fmt: skip


@dataclass(frozen=True)
class Meant:
    """What a request means to a person who reads it with care."""

    request: Request

    @cached_property
    def path(self) -> str:
        target = self.request.target.decode()
        if target.startswith("http://"):
            target = "/" + target.removeprefix("http://").partition("/")[2]
        return target.partition("?")[0]

    @cached_property
    def document(self) -> Pairs | None:
        """The body's one object; None where it is none."""
        return document_of(self.request.body)

    def word(self, place: str) -> str | None:
        """The string at a place. What is longer than any word, or holds a NUL, is none."""
        value = None if self.document is None else value_at(self.document, place)
        return value if isinstance(value, str) and len(value) <= 254 and "\0" not in value else None

    def number(self, place: str) -> int:
        """The whole part of the number at a place; 0 where none is."""
        value = None if self.document is None else value_at(self.document, place)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return 0
        return math.floor(max(-1, min(value, 2**40)))

    def header(self, name: str) -> list[bytes]:
        """The members of all headers of that name, in lower case."""
        values = (member for value in self.request.values(name) for member in value.split(b","))
        return [value.strip(b" \t").lower() for value in values]

    @cached_property
    def routes(self) -> set[str]:
        """The routes that are asked for, each by name; "?" for what is no name of one."""
        return {WORDS_OF_ROUTES.get(value, "?") for value in self.header("x-llm-route")}

    @cached_property
    def prompts(self) -> int:
        lists = [value for name, value in self.document or () if name == "prompt" and type(value) is list]
        return sum(isinstance(item, str | list) and not isinstance(item, Pairs) for items in lists for item in items)

    @cached_property
    def tokens(self) -> int:
        return len(self.request.body) * 10 // TENTHS_OF_BYTES_PER_TOKEN

    @property
    def may_leave(self) -> bool:
        """Only what is known to be meant for the cloud: one of its models, by a path of its, and nothing says local."""
        return (
            self.document is not None
            and len(self.request.body) <= BODY_LIMIT
            and self.word("model") in CLOUDS_MODELS
            and self.path in CLOUDS_PATHS
            and not self.routes & {"?", "local-only"}
        )

    def refusal(self) -> tuple[int, str] | None:
        """What is answered before any rule is looked at."""
        size = len(self.request.body)
        encodings = self.request.values("content-encoding")
        if self.path not in PATHS and self.path not in {"/health", "/v1/models"}:
            return 404, "unknown_url"
        if (self.request.method == b"POST") != (self.path in PATHS):
            return 405, "method_not_allowed"
        if encodings and [encoding.lower() for encoding in encodings] != [b"identity"]:
            return 415, "encoding_unsupported"
        if any(value.lower().startswith(b"multipart/") for value in self.request.values("content-type")):
            return 415, "content_type_unsupported"
        if "?" in self.routes:
            return 400, "unknown_route"
        if size > BODY_LIMIT:
            return 413, "request_too_large"
        if self.document is None:
            return 400, "invalid_json"
        return None

    @cached_property
    def rule(self) -> tuple[str, str]:
        """The table: the first line that is true decides who answers, and whether the other side may."""
        efforts = [
            _lower(self.word(place)) for place in ("reasoning_effort", "reasoning.effort", "output_config.effort")
        ]
        table = [
            ("local-model", "local-only", self.word("model") == LOCAL_MODEL),
            ("asked-local", "local-only", "local-only" in self.routes),
            ("no-model", "local-only", self.word("model") is None),
            ("unlisted-model", "local-only", self.word("model") not in CLOUDS_MODELS),
            ("local-endpoint", "local-only", self.path not in CLOUDS_PATHS),
            ("embeddings", "cloud-only", self.path == "/v1/embeddings"),
            ("asked-local-first", "local-first", "local-first" in self.routes),
            ("asked-cloud-only", "cloud-only", "cloud-only" in self.routes),
            ("asked-cloud", "cloud-first", "cloud-first" in self.routes),
            ("priority", "cloud-first", _lower(self.word("service_tier")) == b"priority"),
            ("reasoning", "cloud-first", any(effort not in LOW_EFFORTS for effort in efforts)),
            ("long-prompt", "cloud-first", self.tokens > LONG_PROMPT),
            ("long-answer", "cloud-first", self.number("max_tokens") > LONG_ANSWER),
            ("long-answer", "cloud-first", self.number("max_completion_tokens") > LONG_ANSWER),
            ("utility-task", "local-first", b"utility" in self.header("x-llm-task")),
            ("short-prompt", "local-first", self.tokens < SHORT_PROMPT),
            ("default", "cloud-first", True),
        ]  # fmt: skip
        return next((reason, route) for reason, route, is_true in table if is_true)

    @property
    def fits_local(self) -> bool:
        return self.tokens < CONTEXT_TOKENS and self.prompts <= MOST_PROMPTS

    @property
    def backend(self) -> str:
        """Who is asked first while both sides are up; the gateway where only the local side may, and cannot."""
        _, route = self.rule
        if route == "local-first":
            return "local" if self.fits_local else "cloud"
        if route != "local-only":
            return "cloud"
        is_too_long = len(self.request.body) > CERTAIN_BYTES and self.path != "/tokenize"
        cannot = self.path == "/v1/embeddings" or is_too_long or self.prompts > MOST_PROMPTS
        return "gateway" if cannot else "local"

    def explained(self) -> dict[str, Any]:
        """What explain mode says."""
        limits = (self.number("max_completion_tokens"), self.number("max_tokens"))
        return {
            "rule": self.rule[0],
            "route": self.rule[1],
            "would_use": self.backend,
            "estimated_prompt_tokens": self.tokens,
            "max_tokens": next((limit for limit in limits if limit > 0), None),
            "fits_local": self.fits_local,
            "cloud": "up",
            "local": "up",
        }


def _lower(word: str | None) -> bytes | None:
    """In lower case as HTTP and JSON's own words know it: the letters of ASCII."""
    return None if word is None else word.encode("utf-8", "surrogatepass").lower()


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Gateway:
    """The gateway by a kept connection through an SSH tunnel, as an operator would reach it, and the cloud behind."""

    cloud: Cloud
    port: int
    _kept: socket.socket | None = field(default=None)

    def ask(self, request: Request, *headers: tuple[bytes, bytes]) -> Answer:
        wire = request.wire(*headers)
        was_kept = self._kept is not None
        try:
            return self._exchange(wire, request.method.decode())
        except (OSError, http.client.HTTPException):
            self.close()
            # One that was kept may have been closed in the meantime.
            if not was_kept:
                raise
            return self._exchange(wire, request.method.decode())

    def _exchange(self, wire: bytes, method: str) -> Answer:
        connection = self._kept = self._kept or socket.create_connection(("127.0.0.1", self.port), timeout=60)
        # It may be answered, and the connection closed, before all is sent.
        with contextlib.suppress(OSError):
            connection.sendall(wire)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        answer = Answer(response.status, response.headers, response.read())
        if response.will_close:
            self.close()
        return answer

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def explain(self, request: Request) -> Answer:
        return self.ask(request, (b"X-LLM-Explain", b"1"))


@pytest.fixture(scope="module")
def gateway(deployed: Machine) -> Iterator[Gateway]:
    """The gateway of the machine with a cloud."""
    with Cloud() as cloud, deployed_with(deployed, cloud, cloud_model_aliases=[CLOUD_ALIAS]):
        port = free_port()
        tunnel = deployed.host.ssh_argv()
        tunnel[1:1] = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:127.0.0.1:8765"]
        process = subprocess.Popen(tunnel)
        reached = Gateway(cloud, port)
        try:
            eventually(lambda: _listens(port), 20, "the tunnel")
            eventually(lambda: _both_are_up(reached), 40, "both sides up")
            yield reached
        finally:
            reached.close()
            process.terminate()
            process.wait(timeout=20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def plain(fields: dict[str, Any], path: str = "/v1/chat/completions") -> Request:
    """A request as any program sends it."""
    return Request(b"POST", path.encode(), ((b"Host", b"127.0.0.1"),), (json.dumps(fields).encode(),), is_chunked=False)


def _both_are_up(gateway: Gateway) -> bool:
    explained = json.loads(gateway.explain(plain({"model": LOCAL_MODEL})).body)
    return (explained["cloud"], explained["local"]) == ("up", "up")


def shown(series: str, number: int) -> str:
    """A request of a series, for who has to find out why."""
    request = drawn(series, number)
    body = request.body if len(request.body) < 3_000 else request.body[:1_500] + b" ... " + request.body[-1_500:]
    return f"drawn({series!r}, {number}) of seed {SEED}: {request.target!r} {request.headers} {body!r}"


def test_the_rule_that_fires_is_the_first_of_the_table_and_only_what_is_meant_for_the_cloud_may_leave(
    gateway: Gateway,
) -> None:
    fired: Counter[str] = Counter()
    for number in range(EXPLAINED):
        request = drawn("explained", number)
        meant = Meant(request)
        answer = gateway.explain(request)
        said = json.loads(answer.body)
        if refusal := meant.refusal():
            assert (answer.status, said.get("error", {}).get("code")) == refusal, (
                f"{shown('explained', number)}: {said}"
            )
            fired[refusal[1]] += 1
            continue
        assert (answer.status, said) == (200, meant.explained()), f"{meant.explained()} {shown('explained', number)}"
        # The rules have to say it too, whatever the table says.
        assert meant.may_leave == (said["route"] != "local-only"), shown("explained", number)
        fired[said["rule"]] += 1
        fired[f"uses {said['would_use']}"] += 1
    assert gateway.cloud.requests_for("completions") == []
    # All rules, and all refusals, had much to decide; so had both sides.
    of_product = rules(Settings(cloud_url=gateway.cloud.url, cloud_models=CLOUD_MODELS))
    assert {rule.reason for rule in of_product} <= set(fired)
    assert len(fired) == 16 + 7 + 3, fired
    assert min(fired.values()) > 20, fired


def test_what_is_sent_is_seen_by_the_cloud_only_if_it_may_leave(gateway: Gateway) -> None:
    counted: Counter[str] = Counter()
    for number in range(SENT):
        request = drawn("sent", number)
        meant = Meant(request)
        gateway.cloud.clear()
        answer = gateway.ask(request)
        token = dict(request.headers)[TOKEN_HEADER]
        seen = gateway.cloud.requests_for("completions")
        where = f"{shown('sent', number)}: {answer.status} {dict(answer.headers)} {answer.body[:500]!r}"
        assert meant.may_leave or not seen, where
        assert all(token.decode() == it.headers[TOKEN_HEADER.decode()] and it.body == request.body for it in seen), (
            where
        )
        backend = answer.headers["X-LLM-Backend"]
        if refusal := meant.refusal():
            assert (answer.status, backend) == (refusal[0], "gateway"), where
            counted["refused"] += 1
            continue
        reason, route = meant.rule
        assert answer.headers["X-LLM-Reason"] == reason, where
        first = meant.backend
        # Where the local side cannot make sense of a request, the cloud is asked, if the route lets it.
        may_go_on = route == "local-first" and first == "local"
        assert backend == first or (may_go_on and backend == "cloud"), where
        assert len(seen) == (backend == "cloud"), where
        counted[backend] += 1
    assert min(counted[kind] for kind in ("local", "cloud", "gateway", "refused")) > 5, counted


@pytest.mark.parametrize("former", CATALOGUE)
def test_a_name_that_the_host_had_before_stays_its_own(gateway: Gateway, former: str) -> None:
    """Programs that name the model of before mean to stay on the host."""
    gateway.cloud.clear()
    long = {"model": former, "messages": [{"role": "user", "content": "a b " * 5_000}], "service_tier": "priority"}
    said = json.loads(gateway.explain(plain(long)).body)
    assert (said["rule"], said["route"], said["would_use"]) == ("unlisted-model", "local-only", "local")
    answer = gateway.ask(plain(long))
    assert (answer.status, answer.headers["X-LLM-Backend"]) == (200, "local")
    assert gateway.cloud.requests_for("completions") == []
