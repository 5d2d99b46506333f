"""The API checks against a real server that behaves, and that misbehaves in every way it can."""

import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import api, probe
from checks.contract.config import Config
from checks.result import Status
from tests.unit.checks_support import (
    CLOUD,
    REFUSED_URL,
    Api,
    FakeHost,
    make_config,
    results,
    serve,
    statuses,
    stream_of,
)


@pytest.fixture
def server() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def config(server: Api, tmp_path: Path) -> Config:
    return make_config(tmp_path, api_url=server.url)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_good_server_passes(config: Config, host: FakeHost) -> None:
    for check in (api.models, api.completion, api.streaming, api.response_time):
        assert set(statuses(check, config, host).values()) == {Status.PASS}, check


def test_requests_are_tiny_and_repeatable(server: Api, config: Config, host: FakeHost) -> None:
    list(api.completion(config, host))
    (request,) = server.requests
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("tiny", 8, 0)


def test_a_proxy_of_the_environment_is_not_used(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", REFUSED_URL)
    monkeypatch.delenv("no_proxy", raising=False)
    assert statuses(api.completion, config, host) == {"chat completion": Status.PASS}


def test_health_on_both_ways(config: Config, host: FakeHost) -> None:
    found = results(api.health, config, host)
    assert found["health through the gateway"].status is Status.PASS
    missing = found["health on the socket"]
    assert missing.status is Status.FAIL
    assert "refused" in missing.value
    assert "journalctl -u local-llm.service" in missing.remedy


def test_the_unix_socket_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            assert self.rfile.readline().startswith(b"GET /health ")
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')

    monkeypatch.chdir(tmp_path)  # a socket's path holds 108 bytes
    with socketserver.UnixStreamServer("s", Handler) as listening:
        threading.Thread(target=listening.handle_request, daemon=True).start()
        assert probe.over_socket("s").ok


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((200, b'{"status":"ok"}'), "ok"),
        ((200, b"<html>router</html>"), "broken"),
        ((503, b'{"error":{"message":"Loading model"}}'), "loading"),
        ((503, b""), "http_503"),
        ((500, b""), "http_500"),
    ],
)
def test_states_of_the_probe(server: Api, answer: tuple[int, bytes], state: str) -> None:
    server.health = answer
    assert probe.over_tcp(server.url).state == state


def test_the_probe_is_refused() -> None:
    assert probe.over_tcp(REFUSED_URL).state == "refused"


def test_the_probe_does_not_wait_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        answer = probe.over_tcp(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2)
    assert answer.state == "timeout"
    assert time.monotonic() - start < 2


def test_nor_on_a_silent_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind("s")
        silent.listen()
        # Ends the wait of a probe that has no time limit, so that the test fails instead of hanging.
        threading.Timer(2, silent.close).start()
        start = time.monotonic()
        answer = probe.over_socket("s", timeout_seconds=0.2)
    assert answer.state == "timeout"
    assert time.monotonic() - start < 1


def test_something_else_than_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        assert probe.over_tcp(f"http://127.0.0.1:{other.getsockname()[1]}").state == "broken"


@pytest.mark.parametrize(
    "answer",
    [
        (200, b'{"data":[{"id":"another"}]}'),
        (200, b'{"data":[]}'),
        (200, b'{"data":{}}'),
        (200, b'{"data":[{}]}'),
        (200, b"[]"),
        (200, b"{"),
        (200, b""),
        (500, b'{"error":{"message":"boom"}}'),
        (404, b""),
    ],
)
def test_bad_lists_of_models(server: Api, config: Config, host: FakeHost, answer: tuple[int, bytes]) -> None:
    server.models = answer
    assert statuses(api.models, config, host)["models list"] is Status.FAIL


def test_a_smaller_context_than_deployed(server: Api, config: Config, host: FakeHost) -> None:
    server.models = (200, b'{"data":[{"id":"tiny","meta":{"n_ctx":2048}}]}')
    assert statuses(api.models, config, host) == {"models list": Status.PASS, "context": Status.FAIL}


def test_a_server_that_does_not_tell_its_context(server: Api, config: Config, host: FakeHost) -> None:
    server.models = (200, b'{"data":[{"id":"tiny","meta":null}]}')
    assert statuses(api.models, config, host) == {"models list": Status.PASS}


def test_the_gateways_own_list_with_a_cloud(
    server: Api, tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, api_url=server.url, cloud=CLOUD)
    server.models = (200, b'{"data":[{"id":"tiny"},{"id":"big"},{"id":"bigger"}]}')
    assert statuses(api.models, config, host) == {"models list": Status.PASS}
    monkeypatch.setattr(probe, "models_over_socket", lambda _path: b'{"data":[{"id":"tiny","meta":{"n_ctx":2048}}]}')
    assert statuses(api.models, config, host) == {"models list": Status.PASS, "context": Status.FAIL}
    server.models = (200, b'{"data":[{"id":"tiny"},{"id":"big"}]}')
    found = results(api.models, config, host)["models list"]
    assert found.status is Status.FAIL
    assert "restart local-llm-gateway.service" in found.remedy


def test_the_list_on_the_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            assert self.rfile.readline().startswith(b"GET /v1/models ")
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    monkeypatch.chdir(tmp_path)
    with socketserver.UnixStreamServer("s", Handler) as listening:
        threading.Thread(target=listening.handle_request, daemon=True).start()
        assert probe.models_over_socket("s") == b"{}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"{"), "not JSON"),
        ((200, b"[1]"), "not a JSON object"),
        ((200, b"{}"), "not a chat completion"),
        ((200, b'{"choices":[],"usage":{"completion_tokens":1}}'), "not a chat completion"),
        ((200, b'{"choices":[{"message":{"content":"x"}}]}'), "not a chat completion"),
        ((200, b'{"choices":[{"message":{"content":" "}}],"usage":{"completion_tokens":1}}'), "no text"),
        ((200, b'{"choices":[{"message":{"content":null}}],"usage":{"completion_tokens":1}}'), "no text"),
        ((200, b'{"choices":[{"message":{"content":"x"}}],"usage":{"completion_tokens":0}}'), "no tokens"),
        ((200, b'{"pad":"' + b"x" * 1_100_000 + b'"}'), "larger than 1 MiB"),
        ((500, b'{"error":{"message":"boom"}}'), "HTTP status 500: boom"),
        ((500, b"<html>"), "HTTP status 500"),
        ((404, b'{"error":"gone"}'), "HTTP status 404: gone"),
    ],
)
def test_bad_completions(server: Api, config: Config, host: FakeHost, answer: tuple[int, bytes], message: str) -> None:
    server.completion = answer
    found = results(api.completion, config, host)["chat completion"]
    assert found.status is Status.FAIL
    assert message in found.value
    assert "journalctl" in found.remedy


def test_nothing_listens(tmp_path: Path, host: FakeHost) -> None:
    config = make_config(tmp_path, api_url=REFUSED_URL)
    for check in (api.models, api.completion, api.streaming, api.response_time):
        (found,) = check(config, host)
        assert found.status is Status.FAIL
        assert found.value == "nothing listens there"


def test_a_server_that_hangs(server: Api, config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "COMPLETION_SECONDS", 0.2)
    server.delay_seconds = 1.0
    assert results(api.completion, config, host)["chat completion"].value == "no answer in time"


def test_a_full_queue_is_a_warning(server: Api, config: Config, host: FakeHost) -> None:
    server.completion = (503, b'{"error":{"message":"2 requests wait already","code":"queue_full"}}')
    found = results(api.completion, config, host)["chat completion"]
    assert found.status is Status.WARN
    assert "2 requests wait already" in found.value


def test_a_dead_model_behind_the_gateway_is_a_failure(server: Api, config: Config, host: FakeHost) -> None:
    server.completion = server.health = (503, b"{}")
    assert statuses(api.completion, config, host) == {"chat completion": Status.FAIL}


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (stream_of("a", done=False), "without [DONE]"),
        (stream_of(), "no text"),
        ([b"data: [DONE]\n\n"], "no text"),
        ([b"data: {\n\n", b"data: [DONE]\n\n"], "malformed chunk"),
        ([b"data: []\n\n"], "malformed chunk"),
        ([b'data: {"choices":[{"delta":null}]}\n\n'], "malformed chunk"),
        ([*stream_of("a", done=False), b'data: {"error":{"message":"out of slots"}}\n\n'], "out of slots"),
        ([*stream_of("a", done=False), b'error: {"message":"out of slots"}\n\n'], "out of slots"),
        ([], "without [DONE]"),
    ],
)
def test_bad_streams(server: Api, config: Config, host: FakeHost, stream: list[bytes], message: str) -> None:
    server.stream = stream
    found = results(api.streaming, config, host)["streamed completion"]
    assert found.status is Status.FAIL
    assert message in found.value


def test_a_stream_cut_off(server: Api, config: Config, host: FakeHost) -> None:
    server.stream, server.stream_cut = stream_of("a", done=False), True
    assert "broke off" in results(api.streaming, config, host)["streamed completion"].value


def test_the_token_counts_at_the_end_are_no_text(server: Api, config: Config, host: FakeHost) -> None:
    server.stream[-1:-1] = [b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n', b": a comment\n\n"]
    found = results(api.streaming, config, host)["streamed completion"]
    assert found.status is Status.PASS
    assert "3 chunks" in found.value


def test_the_first_token_is_timed_when_it_arrives(server: Api, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            for number, chunk in enumerate(stream_of("a", "b", "c")):
                if number == 3:
                    time.sleep(0.3)
                yield chunk

    server.stream = Slow()
    with api.new_session() as session:
        done = api.stream(session, config, "x")
    assert (done.text, done.chunks, done.finish_reason) == ("abc", 3, "stop")
    assert done.first_token_seconds < 0.2 < 0.3 <= done.seconds


@pytest.mark.parametrize(("load", "status"), [(0.1, Status.FAIL), (2.0, Status.WARN)])
def test_too_slow_is_a_failure_only_on_an_idle_machine(
    server: Api, tmp_path: Path, host: FakeHost, load: float, status: Status
) -> None:
    config = make_config(tmp_path, api_url=server.url, response_limit_seconds=0.05)
    server.delay_seconds = 0.1
    host.load = load
    found = results(api.response_time, config, host)["response time"]
    assert found.status is status
    assert found.limit == "at most 0.05 s"
    assert ("top" in found.remedy) is (load > 1)


def test_load_is_per_core() -> None:
    from checks.host import Host

    assert Host().load_per_core() == pytest.approx(os.getloadavg()[0] / (os.cpu_count() or 1), abs=0.2)
