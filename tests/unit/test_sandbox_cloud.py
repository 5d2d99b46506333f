"""The scripted cloud over real TLS on 127.0.0.1: both APIs, keys, every fault, certificates, what it records."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.common import REPOSITORY_ROOT, SandboxError
from sandbox.servers.answers import CLOUD_ANSWER, CLOUD_KEY, CLOUD_MODELS
from sandbox.servers.cloud import CLOUD_NAME, Cloud, Fault, Target
from sandbox.servers.tls import OTHER_NAME, Certificate

BEARER = {"Authorization": f"Bearer {CLOUD_KEY}"}
API_KEY = {"x-api-key": CLOUD_KEY, "anthropic-version": "2023-06-01"}
ASK: dict[str, Any] = {"model": "cloud-large", "messages": [{"role": "user", "content": "Which colour?"}]}
# Long enough that a test which has to wait for it fails.
NEVER_SECONDS = 3600
LIMIT_SECONDS = 5


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud(bind="127.0.0.1", host="127.0.0.1") as cloud:
        yield cloud


@pytest.fixture
def call(cloud: Cloud, tmp_path: Path) -> Iterator[Callable[..., requests.Response]]:
    """Send a request on a kept connection: the path after the prefix, then what requests.request takes."""
    with requests.Session() as session:
        yield caller(cloud, tmp_path, session)


def caller(cloud: Cloud, folder: Path, session: requests.Session | None = None) -> Callable[..., requests.Response]:
    ca_file = folder / "ca.pem"
    ca_file.write_text(cloud.ca_pem)

    def send(path: str = "/chat/completions", method: str = "", **more: Any) -> requests.Response:
        if path == "/models":
            defaults: dict[str, Any] = {"headers": BEARER}
        else:
            defaults = {"headers": API_KEY if path == "/messages" else BEARER, "json": ASK}
        arguments = {"verify": str(ca_file), "timeout": LIMIT_SECONDS, **defaults, **more}
        # One without a session closes its connection.
        sender = session or requests
        return sender.request(
            method or ("POST" if "json" in arguments else "GET"), f"{cloud.address_url}{path}", **arguments
        )

    return send


def connect(cloud: Cloud, name: str = CLOUD_NAME, **options: Any) -> ssl.SSLSocket:
    """A TLS connection that trusts the cloud's authority and asks for that name."""
    context = ssl.create_default_context(cadata=cloud.ca_pem)
    connection = socket.create_connection(("127.0.0.1", cloud.port), timeout=LIMIT_SECONDS)
    return context.wrap_socket(connection, server_hostname=name, **options)


def raw_request(body: bytes = b'{"stream":true}') -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {CLOUD_NAME}\r\nAuthorization: Bearer {CLOUD_KEY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def receive_until_reset(cloud: Cloud, request: bytes) -> bytes:
    """What arrives before the connection is reset; fails when it ends in any other way.

    TLS runs beside the socket here, because the library's own TLS socket tells no reset from an end.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cadata=cloud.ca_pem).wrap_bio(incoming, outgoing, server_hostname=CLOUD_NAME)
    received, to_send = b"", [request]
    with socket.create_connection(("127.0.0.1", cloud.port), timeout=LIMIT_SECONDS) as connection:
        while True:
            try:
                tls.do_handshake()
                while to_send:
                    tls.write(to_send.pop())
                piece = tls.read(65536)
                assert piece, "TLS was ended, the connection was not reset."
                received += piece
            except ssl.SSLWantReadError:
                try:
                    connection.sendall(outgoing.read())
                    piece = connection.recv(65536)
                except ConnectionResetError:
                    return received
                assert piece, "The connection was ended, not reset."
                incoming.write(piece)


def events(answer: requests.Response) -> list[Any]:
    """The data of server-sent events, parsed where it is JSON."""
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Answers


def test_chat_completion(call: Callable[..., requests.Response]) -> None:
    answer = call()
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    content = answer.json()
    assert (content["object"], content["model"]) == ("chat.completion", "cloud-large")
    assert content["choices"][0]["message"]["content"] == CLOUD_ANSWER
    assert content["choices"][0]["finish_reason"] == "stop"
    usage = content["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("wants_usage", [False, True])
def test_chat_completion_as_stream(call: Callable[..., requests.Response], wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    answer = call(json={**ASK, "stream": True, **options})
    assert answer.headers["Content-Type"] == "text/event-stream"
    *chunks, end = events(answer)
    assert end == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == CLOUD_ANSWER
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert [chunk["usage"]["completion_tokens"] > 0 for chunk in chunks if "usage" in chunk] == [True] * wants_usage


def test_completion(call: Callable[..., requests.Response]) -> None:
    request = {"model": "cloud-small", "prompt": "Say it."}
    assert call("/completions", json=request).json()["choices"][0]["text"] == CLOUD_ANSWER
    *chunks, end = events(call("/completions", json={**request, "stream": True}))
    assert (end, "".join(chunk["choices"][0]["text"] for chunk in chunks)) == ("[DONE]", CLOUD_ANSWER)


def test_message(call: Callable[..., requests.Response]) -> None:
    content = call("/messages").json()
    assert (content["type"], content["stop_reason"]) == ("message", "end_turn")
    assert content["content"] == [{"type": "text", "text": CLOUD_ANSWER}]
    assert content["usage"]["output_tokens"] > 0


def test_message_as_stream(call: Callable[..., requests.Response]) -> None:
    answer = call("/messages", json={**ASK, "stream": True})
    parts = events(answer)
    named = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert named == [part["type"] for part in parts]
    assert (named[0], named[-2], named[-1]) == ("message_start", "message_delta", "message_stop")
    text = "".join(part["delta"]["text"] for part in parts if part["type"] == "content_block_delta")
    assert text == CLOUD_ANSWER


@pytest.mark.parametrize(("texts", "count"), [("one", 1), (["one", "two"], 2), ([1, 2, 3], 1)])
def test_embeddings(call: Callable[..., requests.Response], texts: object, count: int) -> None:
    content = call("/embeddings", json={"model": "cloud-small", "input": texts}).json()
    assert [item["index"] for item in content["data"]] == list(range(count))


@pytest.mark.parametrize("headers", [BEARER, API_KEY])
def test_models(call: Callable[..., requests.Response], headers: dict[str, str]) -> None:
    names = [model["id"] for model in call("/models", headers=headers).json()["data"]]
    assert names == list(CLOUD_MODELS)


def test_another_prefix_answer_and_key(tmp_path: Path) -> None:
    with Cloud(key="k", prefix="/api/v1", answer="Blue.", bind="127.0.0.1", host="127.0.0.1") as cloud:
        assert cloud.url == f"https://{CLOUD_NAME}:{cloud.port}/api/v1"
        answer = caller(cloud, tmp_path)(headers={"Authorization": "Bearer k"})
        assert answer.json()["choices"][0]["message"]["content"] == "Blue."
        with connect(cloud) as connection:
            connection.sendall(raw_request())
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/chat/completions", {}),
        ("/chat/completions", {"Authorization": "Bearer another"}),
        ("/chat/completions", API_KEY),
        ("/embeddings", {"Authorization": CLOUD_KEY}),
        ("/messages", BEARER),
        ("/messages", {"x-api-key": CLOUD_KEY}),
        ("/messages", {**API_KEY, "x-api-key": "another"}),
        ("/models", {}),
    ],
)
def test_wrong_key_is_refused(call: Callable[..., requests.Response], path: str, headers: dict[str, str]) -> None:
    answer = call(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_what_it_does_not_serve(call: Callable[..., requests.Response]) -> None:
    assert call("/tokenize").status_code == 404
    assert call("/models", "POST", json={}).status_code == 404
    assert call("/chat/completions", "GET").status_code == 404
    answer = call(json=["no object"])
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


# Connections and records


def test_requests_are_recorded(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    before = time.time()
    call(headers={**BEARER, "X-LLM-Task": "utility"})
    call("/models")
    assert [request.path for request in cloud.requests] == ["/v1/chat/completions", "/v1/models"]
    [completion], [probe] = cloud.requests_for("completions"), cloud.requests_for("probe")
    assert (completion.method, completion.json) == ("POST", ASK)
    assert completion.headers["x-llm-task"] == "utility"
    assert completion.host == f"127.0.0.1:{cloud.port}"
    assert before <= completion.time <= probe.time <= time.time()
    assert (probe.method, probe.body) == ("GET", b"")


def test_connections_are_kept_and_counted(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    call()
    call(json={**ASK, "stream": True})
    call(json=["no object"])
    cloud.set_fault(Fault(status=503, times=1))
    assert call().status_code == 503
    assert [request.connection for request in cloud.requests] == [1] * 4
    assert (cloud.connections, cloud.handshakes) == (1, 1)


def test_client_may_end_the_connection(cloud: Cloud) -> None:
    with connect(cloud, suppress_ragged_eofs=False) as connection:
        connection.sendall(raw_request(b"{}").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert json.loads(received.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == CLOUD_ANSWER


def test_server_name_is_recorded(cloud: Cloud) -> None:
    with connect(cloud) as connection:
        connection.sendall(raw_request())
        connection.recv(1)
    [request] = cloud.requests
    assert (request.server_name, request.host) == (CLOUD_NAME, CLOUD_NAME)


def test_body_in_chunks_is_read_whole(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    whole = json.dumps(ASK).encode()
    answer = call(method="POST", json=None, data=iter([whole[:9], whole[9:]]))
    assert answer.status_code == 200
    [request] = cloud.requests
    assert request.headers["Transfer-Encoding"] == "chunked"
    assert request.json == ASK


def test_half_a_request_is_not_recorded(cloud: Cloud) -> None:
    for start in (raw_request()[:-1], b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"):
        with connect(cloud) as connection:
            connection.sendall(start)
            connection.unwrap()
    assert cloud.requests == []


def test_connection_without_handshake_holds_up_nobody(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    with socket.create_connection(("127.0.0.1", cloud.port)):
        wait_for(lambda: cloud.connections == 1)
        assert call().status_code == 200
    assert (cloud.connections, cloud.handshakes) == (2, 1)


# Faults


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429, 500, 502, 503, 504, 529])
def test_status(cloud: Cloud, call: Callable[..., requests.Response], status: int) -> None:
    cloud.set_fault(Fault(status=status))
    for path in ("/chat/completions", "/models"):
        answer = call(path)
        assert answer.status_code == status
        assert {"message", "type", "param", "code"} == set(answer.json()["error"])
        assert "Retry-After" not in answer.headers


def test_retry_after(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    cloud.set_fault(Fault(status=429, retry_after="7"))
    answer = call()
    assert answer.headers["Retry-After"] == "7"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_fault_happens_as_often_as_asked(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    cloud.set_fault(Fault(status=500, times=2))
    assert [call().status_code for _ in range(3)] == [500, 500, 200]
    assert [call("/models").status_code for _ in range(3)] == [500, 500, 200]


@pytest.mark.parametrize(("target", "expected"), [("completions", [500, 200]), ("probe", [200, 500])])
def test_fault_of_one_kind_of_request(
    cloud: Cloud, call: Callable[..., requests.Response], target: Target, expected: list[int]
) -> None:
    cloud.set_fault(Fault(status=500), on=target)
    assert [call().status_code, call("/models").status_code] == expected


def test_reset(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    cloud.set_fault(Fault(reset=True, times=1))
    assert receive_until_reset(cloud, raw_request()) == b""
    assert [request.json for request in cloud.requests] == [{"stream": True}]
    assert call().status_code == 200


def test_hang_goes_on_after_its_time(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    cloud.set_fault(Fault(hang_seconds=0.2))
    begin = time.monotonic()
    assert call().status_code == 200
    assert time.monotonic() - begin >= 0.2


def test_hang_sends_nothing_until_faults_are_cleared(cloud: Cloud) -> None:
    cloud.set_fault(Fault(hang_seconds=NEVER_SECONDS))
    with connect(cloud) as connection:
        connection.sendall(raw_request())
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert len(cloud.requests) == 1
        connection.settimeout(LIMIT_SECONDS)
        cloud.recover()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_slow_stream(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    cloud.set_fault(Fault(chunk_seconds=0.02))
    with call(json={**ASK, "stream": True}, stream=True) as answer:
        arrivals = [time.monotonic() for _ in answer.iter_content(None)]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert len(gaps) >= len(CLOUD_ANSWER.split())
    assert sum(gaps) >= 0.015 * len(gaps)


@pytest.mark.parametrize("chunks", [0, 3])
def test_stall_is_silence_after_the_headers_or_later(
    cloud: Cloud, call: Callable[..., requests.Response], chunks: int
) -> None:
    cloud.set_fault(Fault(stall_after_chunks=chunks, stall_seconds=0.3))
    begin = time.monotonic()
    with call(json={**ASK, "stream": True}, stream=True) as answer:
        assert time.monotonic() - begin < 0.3
        arrivals = [time.monotonic() - begin for _ in answer.iter_content(None)]
    assert [arrival >= 0.3 for arrival in arrivals].index(True) == chunks


@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_stream_breaks(cloud: Cloud, chunks: int) -> None:
    cloud.set_fault(Fault(break_after_chunks=chunks))
    received = receive_until_reset(cloud, raw_request())
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"data: ") == chunks


def test_answer_that_is_no_stream_breaks(cloud: Cloud) -> None:
    cloud.set_fault(Fault(break_after_chunks=1))
    head, _, body = receive_until_reset(cloud, raw_request(b"{}")).partition(b"\r\n\r\n")
    assert b"Content-Length: " in head
    assert 0 < len(body) < 100


def test_refused_then_back_on_the_same_port(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    assert call().status_code == 200
    port = cloud.port
    cloud.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS)
    with pytest.raises(requests.ConnectionError):
        call()
    cloud.listen()
    cloud.listen()
    assert call().status_code == 200
    assert cloud.port == port


def test_nobody_takes_the_port_while_it_is_refused(cloud: Cloud) -> None:
    cloud.stop_listening()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", cloud.port))


@pytest.mark.parametrize(
    ("certificate", "complaint"),
    [
        ("unknown-authority", "unable to get local issuer certificate"),
        ("wrong-name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
    ],
)
def test_bad_certificate(
    cloud: Cloud, call: Callable[..., requests.Response], certificate: Certificate, complaint: str
) -> None:
    assert call().status_code == 200
    cloud.use_certificate(certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match=complaint):
        connect(cloud)
    # The connection from before is gone, so its user sees the certificate too.
    with pytest.raises(requests.exceptions.SSLError):
        call()
    wait_for(lambda: cloud.connections == 3)
    assert cloud.handshakes == 1
    cloud.use_certificate("good")
    assert call().status_code == 200


def test_bad_certificate_has_that_fault_alone(cloud: Cloud) -> None:
    cloud.use_certificate("wrong-name")
    connect(cloud, OTHER_NAME).close()


def test_swapped_certificate_is_not_hidden_by_a_resumed_session(cloud: Cloud) -> None:
    context = ssl.create_default_context(cadata=cloud.ca_pem)

    def handshake(session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
        connection = socket.create_connection(("127.0.0.1", cloud.port), timeout=LIMIT_SECONDS)
        with context.wrap_socket(connection, server_hostname=CLOUD_NAME, session=session) as tls:
            tls.sendall(raw_request())
            tls.recv(1)
            return tls.session_reused, tls.session

    _, session = handshake(None)
    assert handshake(session)[0] is True
    cloud.use_certificate("expired")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(session)


def test_clear_forgets_everything(cloud: Cloud, call: Callable[..., requests.Response]) -> None:
    call()
    cloud.set_fault(Fault(status=500))
    cloud.use_certificate("expired")
    cloud.stop_listening()
    cloud.clear()
    assert (cloud.requests, cloud.connections, cloud.handshakes) == ([], 0, 0)
    assert call().status_code == 200
    assert (len(cloud.requests), cloud.connections, cloud.handshakes) == (1, 1, 1)


# Start and stop


@pytest.mark.parametrize("fault", [Fault(hang_seconds=NEVER_SECONDS), Fault(stall_after_chunks=1, stall_seconds=3600)])
def test_stopping_ends_what_goes_on(fault: Fault) -> None:
    before = threading.active_count()
    cloud = Cloud(bind="127.0.0.1", host="127.0.0.1").start()
    cloud.set_fault(fault)
    with connect(cloud) as pausing, connect(cloud), socket.create_connection(("127.0.0.1", cloud.port)):
        pausing.sendall(raw_request())
        wait_for(lambda: cloud.requests and cloud.connections == 3)
        begin = time.monotonic()
        cloud.stop()
        wait_for(lambda: threading.active_count() == before)
        assert time.monotonic() - begin < 2
    cloud.stop()


def test_taken_port_is_an_error(cloud: Cloud) -> None:
    with pytest.raises(SandboxError, match=f"127.0.0.1:{cloud.port}"):
        Cloud(bind="127.0.0.1", host="127.0.0.1", port=cloud.port).start()


def test_help_by_hand() -> None:
    argv = [sys.executable, "-m", "sandbox.servers.cloud", "--help"]
    result = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=REPOSITORY_ROOT, timeout=30)
    assert "--ca-file" in result.stdout
