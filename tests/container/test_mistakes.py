"""What clients get wrong, through the deployed gateway without a cloud: each mistake is told as one, in OpenAI's words.

Requests go out as bytes from a program inside the machine, many in one run of it.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import shlex
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from tests.container.machine import Machine, eventually
from tests.container.mistakes_drawn import NO_OBJECTS, OBJECTS, Body, drawn

ANSWER_SECONDS = 30
BACK_SECONDS = 30
BODY_LIMIT = 1024 * 1024
CHAT, COMPLETIONS, MESSAGES, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize"
BASE = "http://127.0.0.1:8765"
SERVED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

# Each exchange: what is sent (base64; numbers are pauses in seconds), and whether the writing side is then closed.
PROGRAM = """
import base64, json, socket, sys, time

def exchange(sends, hangs_up, seconds):
    with socket.create_connection(("127.0.0.1", 8765), timeout=seconds) as connection:
        answer = b""
        try:
            for part in sends:
                time.sleep(part) if isinstance(part, (int, float)) else connection.sendall(base64.b64decode(part))
            if hangs_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is answered already
        try:
            while more := connection.recv(65536):
                answer += more
                # HAProxy 3.0 does not hang up after it has answered a body that stopped.
                connection.settimeout(5)
        except OSError:
            pass
        return base64.b64encode(answer).decode()

print(json.dumps([exchange(*each) for each in json.load(sys.stdin)]))
"""


@dataclass(frozen=True)
class Exchange:
    """What goes over a connection: bytes, and pauses in seconds."""

    sends: tuple[bytes | float, ...]
    hangs_up: bool = False


@dataclass(frozen=True)
class Answer:
    """Status 0: none came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def backend(self) -> str | None:
        return self.headers.get("x-llm-backend")

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has exactly OpenAI's fields, and the class that fits the status."""
        assert self.headers["content-type"].startswith("application/json"), self
        said = json.loads(self.body)
        assert set(said) == {"error"}, self
        error: dict[str, Any] = said["error"]
        assert set(error) == {"message", "type", "param", "code"}, self
        assert error["type"] == ("server_error" if self.status >= 500 else "invalid_request_error"), self
        assert error["message"], self
        return error


class _Received(io.BytesIO):
    """Bytes that http.client reads as from a connection."""

    def makefile(self, *_: object) -> _Received:
        return self


def read(received: bytes) -> Answer:
    """The answer that came; where there is none, one with status 0."""
    if not received:
        return Answer(0, {}, b"")
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def exchanged(machine: Machine, *exchanges: Exchange) -> list[Answer]:
    """What is answered to each, one after the other."""
    work = [(_encoded(each.sends), each.hangs_up, ANSWER_SECONDS) for each in exchanges]
    command = f"python3 -c {shlex.quote(PROGRAM)}"
    done = subprocess.run(
        machine.host.ssh_argv(command), input=json.dumps(work), capture_output=True, text=True, check=True, timeout=600
    )
    return [read(base64.b64decode(each)) for each in json.loads(done.stdout)]


def _encoded(sends: tuple[bytes | float, ...]) -> list[str | float]:
    return [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in sends]


def request(
    body: Any = b"",
    path: str = CHAT,
    *headers: str,
    method: str = "POST",
    host: str | None = "127.0.0.1:8765",
    length: int | None = None,
) -> bytes:
    """A request's bytes; what is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
    if host is not None:
        lines.append(f"Host: {host}")
    if content or method == "POST":
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def chunked(body: bytes, size: int) -> bytes:
    """The same in chunks of that size."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def chat(*content: Any, **more: Any) -> dict[str, Any]:
    """A chat whose one message has these parts."""
    return {"messages": [{"role": "user", "content": list(content)}], "max_tokens": 3, **more}


def padded(size: int) -> bytes:
    """A body that could be served, of that many bytes."""
    return json.dumps({**SERVED, "user": ""}).encode().ljust(size)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "x"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
CUT_ARGUMENTS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "x"},
]
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense", "pattern": "((("}}}
NAMED = {"type": "function", "function": {"name": "f"}}
DEEP = b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"

GATEWAY, LOCAL = "gateway", "local"
Case = tuple[str, Any, int, str | None, str]
"""What it is, a request's bytes or the body of a chat, the status, the error's code (None: served), who answers."""

OF_BODIES: list[Case] = [
    ("an image", chat(IMAGE), 400, "unsupported_content", LOCAL),
    ("an image after a text", chat({"type": "text", "text": "what is it?"}, IMAGE), 400, "unsupported_content", LOCAL),
    ("audio", chat(AUDIO), 400, "unsupported_content", LOCAL),
    ("a file", chat(FILE), 400, "invalid_request", LOCAL),
    ("half an emoji", b'{"messages":[{"role":"user","content":"\\ud83d"}]}', 400, "invalid_request", LOCAL),
    ("arguments cut off", {"messages": CUT_ARGUMENTS}, 400, "invalid_request", LOCAL),
    ("a trailing comma", b'{"messages":[],}', 400, "invalid_json", GATEWAY),
    ("single quotes", b"{'messages':[]}", 400, "invalid_json", GATEWAY),
    ("a document cut off", json.dumps(SERVED).encode()[:-1], 400, "invalid_json", GATEWAY),
    ("two documents", json.dumps(SERVED).encode() * 2, 400, "invalid_json", GATEWAY),
    ("NaN", b'{"messages":[],"temperature":NaN}', 400, "invalid_json", GATEWAY),
    ("nothing", b"", 400, "invalid_json", GATEWAY),
    ("blanks", b" \r\n", 400, "invalid_json", GATEWAY),
    ("Latin-1", b'{"messages":[{"role":"user","content":"\xe4"}]}', 400, "invalid_json", GATEWAY),
    ("UTF-16", json.dumps(SERVED).encode("utf-16"), 400, "invalid_json", GATEWAY),
    ("a form", b"model=tiny&prompt=x", 400, "invalid_json", GATEWAY),
    ("a list", [SERVED], 400, "invalid_json", GATEWAY),
    ("null", None, 400, "invalid_json", GATEWAY),
    ("300 levels", DEEP, 400, "invalid_json", GATEWAY),
    ("a message without role", {"messages": [{"content": "x"}]}, 400, "invalid_request", LOCAL),
    ("no messages", {"model": "tiny"}, 400, "invalid_request", LOCAL),
    ("messages as a text", {"messages": "hi"}, 400, "invalid_request", LOCAL),
    ("two answers", {**SERVED, "n": 2}, 400, "invalid_request", LOCAL),
    ("max_tokens as a word", {**SERVED, "max_tokens": "many"}, 400, "invalid_request", LOCAL),
    ("temperature as a word", {**SERVED, "temperature": "hot"}, 400, "invalid_request", LOCAL),
    ("a schema of nonsense", {**SERVED, "response_format": BAD_SCHEMA}, 400, "invalid_request", LOCAL),
    ("a tool without function", {**SERVED, "tools": [{"type": "function"}]}, 400, "invalid_request", LOCAL),
    ("a grammar cut off", {**SERVED, "grammar": "root ::= ("}, 400, "invalid_request", LOCAL),
    ("no prompt", request({"x": 1}, COMPLETIONS), 400, "invalid_request", LOCAL),
    ("a prompt as an object", request({"prompt": {"a": 1}}, COMPLETIONS), 400, "invalid_request", LOCAL),
    ("50 prompts", request({"prompt": ["a"] * 50}, COMPLETIONS), 400, "too_many_prompts", GATEWAY),
    ("20,000 prompts", request({"prompt": ["a"] * 20_000}, COMPLETIONS), 400, "too_many_prompts", GATEWAY),
    ("no messages to /v1/messages", request({"max_tokens": 5}, MESSAGES), 400, "invalid_request", LOCAL),
    ("a number to tokenize", request({"content": 5}, TOKENIZE), 400, "invalid_request", LOCAL),
    ("a text of 60,000 words", {**SERVED, "prompt": "word " * 60_000}, 413, "context_length_exceeded", GATEWAY),
    ("a byte too much", padded(BODY_LIMIT + 1), 413, "request_too_large", GATEWAY),
    ("a byte too much in chunks", chunked(padded(BODY_LIMIT + 1), 9_000), 413, "request_too_large", GATEWAY),
    ("embeddings", request({"input": "x"}, "/v1/embeddings"), 400, "embeddings_unsupported", GATEWAY),
    ("a UTF-8 mark", b"\xef\xbb\xbf" + json.dumps(SERVED).encode(), 200, None, LOCAL),
    # llama.cpp passes over these without a word.
    ("a tool by its name", {**SERVED, "tools": [TOOL], "tool_choice": NAMED}, 200, None, LOCAL),
    ("an empty stop", {**SERVED, "stop": ""}, 200, None, LOCAL),
]  # fmt: skip

OF_HEADERS: list[Case] = [
    ("a header of 9 kB", request(SERVED, CHAT, "Baggage: " + "a" * 9_000), 431, "headers_too_large", GATEWAY),
    ("headers of 25 kB", request(SERVED, CHAT, *[f"X-{n}: {'a' * 5_000}" for n in range(5)]), 431, "headers_too_large",
     GATEWAY),
    ("95 headers", request(SERVED, CHAT, *[f"X-{n}: a" for n in range(95)]), 431, "headers_too_large", GATEWAY),
    ("multipart", request(SERVED, CHAT, "Content-Type: multipart/form-data; boundary=x"), 415,
     "content_type_unsupported", GATEWAY),
    ("gzip", request(SERVED, CHAT, "Content-Encoding: gzip"), 415, "encoding_unsupported", GATEWAY),
    ("identity", request(SERVED, CHAT, "Content-Encoding: Identity"), 200, None, LOCAL),
    ("curl's type", request(SERVED, CHAT, "Content-Type: application/x-www-form-urlencoded"), 200, None, LOCAL),
    ("the absolute form", request(SERVED, BASE + CHAT), 200, None, LOCAL),
    ("no host", request(SERVED, host=None), 400, "host_missing", GATEWAY),
    ("another host", request(SERVED, host='evil"x'), 403, "browser_refused", GATEWAY),
    ("an origin", request(SERVED, CHAT, "Origin: null"), 403, "browser_refused", GATEWAY),
    ("a route of no name", request(SERVED, CHAT, 'X-LLM-Route: "private"'), 400, "unknown_route", GATEWAY),
    ("a route that is empty", request(SERVED, CHAT, "X-LLM-Route:"), 400, "unknown_route", GATEWAY),
    ("a route in capitals", request(SERVED, CHAT, "X-LLM-Route: LOCAL-only, local"), 200, None, LOCAL),
    ("a body for health", request(b"abc", "/health", method="GET"), 400, "unexpected_body", GATEWAY),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request", GATEWAY),
    ("GET and hung up", Exchange((request(path="/health", method="GET"),), hangs_up=True), 200, None, LOCAL),
    ("a body that stops", request(SERVED, length=500), 408, "request_timeout", GATEWAY),
]  # fmt: skip

UNKNOWN_PATHS = (
    "POST /v1/v1/chat/completions", "POST /v1/chat/completions/", "POST /chat/completions", "POST /messages",
    "POST /v1/v1/messages", "POST /V1/chat/completions", "POST //tokenize", 'POST /a"b%0d?x=1', "POST /v1/responses",
    "POST /v1/messages/count_tokens", "POST /props", "GET /v1/models/tiny", "GET /models", "GET /", "GET /v1",
    f"GET {BASE}",
)  # fmt: skip


def of_unknown_path(line: str) -> Case:
    method, path = line.split(" ", 1)
    return line, request(SERVED if method == "POST" else b"", path, method=method), 404, "unknown_url", GATEWAY


OF_PATHS: list[Case] = [
    *map(of_unknown_path, UNKNOWN_PATHS),
    ("GET of a chat", request(path=CHAT, method="GET"), 405, "method_not_allowed", GATEWAY),
    ("a method of its own", request(SERVED, method="BREW"), 405, "method_not_allowed", GATEWAY),
    ("POST to models", request({}, "/v1/models"), 405, "method_not_allowed", GATEWAY),
]  # fmt: skip


def as_exchange(sent: Any) -> Exchange:
    """Of a case's second part."""
    if isinstance(sent, Exchange):
        return sent
    is_request = isinstance(sent, bytes) and b" HTTP/" in sent
    return Exchange((sent if is_request else request(sent),))


@pytest.mark.parametrize(
    ("sent", "status", "code", "backend"),
    [pytest.param(*rest, id=what) for what, *rest in [*OF_BODIES, *OF_HEADERS, *OF_PATHS]],
)
def test_a_mistake_is_told_as_one(deployed: Machine, sent: Any, status: int, code: str | None, backend: str) -> None:
    [answer] = exchanged(deployed, as_exchange(sent))
    assert (answer.status, answer.backend) == (status, backend), answer
    assert answer.headers["x-llm-reason"], answer
    if code is None:
        assert "error" not in json.loads(answer.body)
        return
    assert answer.error["code"] == code
    # A remedy that nobody here has is no help.
    assert "mmproj" not in answer.error["message"]


def test_what_is_told_helps(deployed: Machine) -> None:
    wrong_path, no_route, cut, no_host = exchanged(
        deployed,
        Exchange((request(SERVED, '/v1/v1/chat/"x'),)),
        Exchange((request(SERVED, CHAT, "X-LLM-Route: private"),)),
        Exchange((request(b'{"messages":[],}'),)),
        Exchange((request(SERVED, host=None),)),
    )
    assert '/v1/v1/chat/"x' in wrong_path.error["message"]
    assert f"{BASE}/v1 for OpenAI clients, {BASE} for Anthropic" in wrong_path.error["message"]
    assert "local-only" in no_route.error["message"]
    assert "private" in no_route.error["message"]
    assert "byte 16" in cut.error["message"]
    assert "Host" in no_host.error["message"]


@pytest.mark.parametrize(
    ("sends", "status"),
    [
        pytest.param((b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", 11.0), 408, id="slow headers"),
        pytest.param((request(SERVED, CHAT, "Transfer-Encoding: gzip, chunked"),), 422, id="gzip, chunked"),
        pytest.param((request(SERVED, CHAT, "Content-Length: 3"),), 400, id="two lengths"),
        pytest.param((request(SERVED, CHAT, "X Y: 1"),), 400, id="a blank in a header's name"),
        pytest.param((request(SERVED, method='PO"ST'),), 400, id="a quote in the method"),
        pytest.param((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",), 400, id="TLS"),
        pytest.param((b"hello\r\n\r\n",), 400, id="no HTTP"),
    ],
)
def test_what_haproxy_answers_before_there_is_a_request(
    deployed: Machine, sends: tuple[bytes | float, ...], status: int
) -> None:
    """It has its own pages for these, which nothing can change (src/mux_h1.c, h1_send_error): the status alone."""
    [answer] = exchanged(deployed, Exchange(sends))
    assert answer.status == status, answer


def test_who_closes_the_sending_side_is_served_or_told(deployed: Machine) -> None:
    """HAProxy may notice it before the model has answered, or after."""
    hung_up = [Exchange((request({**SERVED, "max_tokens": tokens}),), hangs_up=True) for tokens in (1, 40) * 5]
    for answer in exchanged(deployed, *hung_up):
        if answer.status != 200:
            assert (answer.status, answer.error["code"]) == (400, "bad_request")
            assert "hung up" in answer.error["message"]
    # Of a body that will never be whole nothing is left to say: the connection is closed.
    [answer] = exchanged(deployed, Exchange((request(SERVED, length=500),), hangs_up=True))
    assert answer.status in {0, 400}
    assert deployed.answers()


STOPS = """
import socket
with socket.create_connection(("127.0.0.1", 8765), timeout=60) as connection:
    connection.sendall(b"POST /v1/completions HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Length: 500\\r\\n\\r\\n{")
    answer = b"".join(iter(lambda: connection.recv(4096), b""))
    print(answer.partition(b"\\r\\n")[0].decode())
"""


@pytest.mark.distribution(-1)
def test_who_stops_in_a_body_does_not_keep_the_place(deployed: Machine) -> None:
    """HAProxy 3.0 waits on for the rest, after it has answered: as long as a client may be silent."""
    assert "408" in deployed.sh(f"python3 -c {shlex.quote(STOPS)}")


def explained(body: Body, answer: Answer) -> str:
    path, content = body
    return f"POST {path} {content!r}: {answer.status} {answer.headers} {answer.body[:600]!r}"


def test_no_body_makes_an_error_of_the_server(deployed: Machine) -> None:
    pid = deployed.main_pid()
    bodies = drawn(OBJECTS, 1_000)
    answers = exchanged(deployed, *(Exchange((request(content, path),)) for path, content in bodies))
    counted: Counter[int] = Counter()
    for body, answer in zip(bodies, answers, strict=True):
        counted[answer.status] += 1
        assert answer.status == 200 or 400 <= answer.status < 500, explained(body, answer)
        if answer.status != 200:
            assert answer.error["code"], explained(body, answer)
        else:
            assert not answer.body.startswith((b'{"error"', b'data: {"error"', b"error:", b"event: error")), explained(
                body, answer
            )
    assert len(bodies) > 200
    assert min(counted[200], counted[400]) > 20, counted
    assert deployed.main_pid() == pid
    assert deployed.answers()


def test_what_is_no_object_is_invalid_json(deployed: Machine) -> None:
    bodies = drawn(NO_OBJECTS, 60)
    answers = exchanged(deployed, *(Exchange((request(content, path),)) for path, content in bodies))
    for body, answer in zip(bodies, answers, strict=True):
        assert (answer.status, answer.backend) == (400, GATEWAY), explained(body, answer)
        assert answer.error["code"] == "invalid_json", explained(body, answer)


def test_a_request_that_kills_the_model_is_answered_and_the_model_comes_back(deployed: Machine) -> None:
    """llama.cpp's reader of grammars runs out of stack, in whatever it is nested."""
    grammar = "root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000
    [answer] = exchanged(deployed, Exchange((request({**SERVED, "grammar": grammar}),)))
    assert answer.status in {400, 502, 503}, answer
    assert answer.error["code"]
    eventually(deployed.answers, BACK_SECONDS, "the model back")
