"""The deployed gateway: what it lets through, what it refuses and in which words, and what it never drops."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.container.conftest import with_settings
from tests.container.machine import TEST_LIMITS, Machine, eventually

API = "http://127.0.0.1:8765"
# The tiny model repeats this word until it is told to stop: thousands of tokens, seconds of work.
LONG = '-H \'Content-Type: application/json\' -d \'{"prompt": " tick", "max_tokens": 8000, "stream": true}\''


def error(body: str) -> dict[str, str]:
    """The error object, which has exactly OpenAI's fields."""
    found: dict[str, str] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def start_long_requests(machine: Machine, *names: str) -> None:
    """Streamed answers of some seconds, collected in /tmp/NAME, asked for at nearly the same moment."""
    run_in_background(machine, {name: f"curl -sSN -m 300 -o /tmp/{name} {API}/v1/completions {LONG}" for name in names})


def run_in_background(machine: Machine, commands: dict[str, str]) -> None:
    """A unit for each shell command, by name."""
    machine.sh(
        "\n".join(
            f"rm -f /tmp/{name}; cat > /tmp/{name}.sh <<'END'\n{command}\nEND\n"
            f"systemd-run --quiet --collect --unit={name} sh /tmp/{name}.sh"
            for name, command in commands.items()
        )
    )


def is_running(machine: Machine, name: str) -> bool:
    return machine.show(name, "ActiveState") == "active"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (f"{API}/", 404, "unknown_url"),
        (f"{API}/props", 404, "unknown_url"),
        (f"{API}/slots", 404, "unknown_url"),
        (f"{API}/metrics", 404, "unknown_url"),
        (f"{API}/v1/embeddings -d '{{}}'", 400, "embeddings_unsupported"),
        (f"{API}/v1/completions -d '{{}}' -H 'Content-Encoding: gzip'", 415, "encoding_unsupported"),
        (f"{API}/v1/chat/completions", 405, "method_not_allowed"),
        (f"-X DELETE {API}/v1/models", 405, "method_not_allowed"),
        (f"-H 'Host: evil.example' {API}/v1/models", 403, "browser_refused"),
        (f"-H 'Origin: https://evil.example' {API}/v1/models", 403, "browser_refused"),
    ],
)
def test_refusals_are_in_openais_format(deployed: Machine, request_: str, status: int, code: str) -> None:
    answered, headers, body = deployed.http(request_)
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert headers["x-llm-backend"] == "gateway"
    assert headers["x-llm-reason"]
    assert error(body)["code"] == code


def test_what_the_gateway_tells_its_sides_is_told_by_nobody_else(deployed: Machine) -> None:
    """It says by this header that a refusal may go on to another side."""
    status, headers, body = deployed.http(f"{API}/v1/chat/completions -H 'X-LLM-Fallback: cloud' -d '{{}}'")
    assert (status, error(body)["code"], headers["x-llm-backend"]) == (400, "invalid_request", "local")


@pytest.mark.parametrize("encoding", ["", "-H 'Transfer-Encoding: chunked'"], ids=["length", "chunked"])
@pytest.mark.parametrize(("kib", "status"), [(1_023, 200), (1_025, 413), (1_500, 413)])
def test_bodies_beyond_the_limit_are_refused_at_once(deployed: Machine, encoding: str, kib: int, status: int) -> None:
    deployed.sh(
        f"head -c {kib * 1024} /dev/zero | tr '\\0' ' ' > /tmp/padding; printf '{{\"content\": \"x\"}}' >> /tmp/padding"
    )
    answered, _, body = deployed.http(
        f"{API}/tokenize -H 'Content-Type: application/json' -H 'Expect:' {encoding} --data-binary @/tmp/padding"
    )
    assert answered == status
    if status == 413:
        assert error(body)["code"] == "request_too_large"


@pytest.mark.parametrize("encoding", ["", "-H 'Transfer-Encoding: chunked'"], ids=["whole", "chunked"])
@pytest.mark.parametrize("page", ["8765/health", "8765/v1/models", "8766/llama/metrics", "8766/requests"])
def test_nobody_reads_a_body_that_comes_with_get(deployed: Machine, page: str, encoding: str) -> None:
    pid = deployed.main_pid()
    deployed.sh("head -c 20000000 /dev/zero > /tmp/zeros")
    ask = f"-X GET -H 'Expect:' {encoding} --data-binary @/tmp/zeros http://127.0.0.1:{page}"
    # The connection is closed while curl still sends, so that at times the answer is lost with it.
    eventually(lambda: deployed.http(ask)[0] == 400, 20, "a refusal")
    assert deployed.main_pid() == pid


def test_models_and_health_answer(deployed: Machine) -> None:
    status, _, body = deployed.http(f"{API}/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == ["tiny"]
    assert deployed.http(f"{API}/health")[0] == 200


def test_no_origin_is_ever_allowed(deployed: Machine) -> None:
    headers = deployed.sh(
        "curl -sS -D - -o /dev/null --unix-socket /run/local-llm-sockets/llama.sock -H 'Origin: https://evil.example' "
        "http://localhost/health"
    ).lower()
    assert "200 ok" in headers
    assert "evil.example" not in headers
    assert "access-control-allow-origin: *" not in headers
    assert "access-control-allow-credentials: true" not in headers


def test_streaming_streams(deployed: Machine) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "?"}], "stream": True, "max_tokens": 40})
    _, headers, text = deployed.http(f"-N {API}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    assert headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    words = [json.loads(event)["choices"] for event in events[:-1]]
    said = "".join(choice[0]["delta"].get("content") or "" for choice in words if choice)
    assert said.strip() == deployed.source.models["tiny"].answer
    assert len(events) > 5


def test_a_full_queue_answers_at_once_and_health_still_does(deployed: Machine) -> None:
    waiting = 1 + int(TEST_LIMITS["queue_length"])
    names = [f"long{number}" for number in range(waiting)]
    start_long_requests(deployed, *names)
    sessions = "curl -sS http://127.0.0.1:8766/metrics | grep -F 'haproxy_backend_current_sessions{proxy=\"llm\"}'"
    eventually(lambda: deployed.sh(sessions).endswith(f" {waiting}"), 30, "a full queue")
    ask = f'{API}/v1/completions -H \'Content-Type: application/json\' -d \'{{"prompt": " tick", "max_tokens": 1}}\''
    status, headers, body = deployed.http(ask)
    assert (status, error(body)["code"]) == (503, "queue_full")
    assert headers["retry-after"] == "5"
    assert all(is_running(deployed, name) for name in names)  # so this one did not wait
    assert deployed.http(f"{API}/health")[0] == 200
    eventually(lambda: not any(is_running(deployed, name) for name in names), 300, "an end of the long requests")
    for name in names:
        assert deployed.sh(f"tail -n 2 /tmp/{name}").strip() == "data: [DONE]"
    assert deployed.http(ask)[0] == 200


def test_a_reload_drops_nothing(deployed: Machine) -> None:
    start_long_requests(deployed, "inflight")
    eventually(lambda: deployed.sh("stat -c %s /tmp/inflight 2>/dev/null || echo 0") != "0", 10, "first tokens")
    ask = f"curl -sS -m 5 -o /dev/null -w '%{{http_code}}\\n' {API}/health"
    run_in_background(deployed, {"load": f"for i in $(seq 300); do {ask}; done > /tmp/load 2>&1"})
    deployed.sh("for i in 1 2 3; do systemctl reload local-llm-gateway; sleep 0.5; done")
    assert is_running(deployed, "inflight")
    eventually(lambda: not is_running(deployed, "inflight") and not is_running(deployed, "load"), 60, "an end")
    assert deployed.sh("tail -n 2 /tmp/inflight").strip() == "data: [DONE]"
    assert deployed.sh("sort /tmp/load | uniq -c").split() == ["300", "200"]


KEPT = """
import http.client, json, select, time
connection = http.client.HTTPConnection("127.0.0.1", 8765, timeout=30)
body = json.dumps({"prompt": "x", "max_tokens": 1})
for _ in range(100):
    if connection.sock and select.select([connection.sock], [], [], 0)[0]:
        connection.close()
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    said = response.read()
    print(response.status, said if response.status != 200 else "", flush=True)
    time.sleep(0.05)
"""
"""A client that mostly waits between two requests on one connection, as an agent does."""


def test_a_kept_connection_is_served_by_a_worker_that_stops(deployed: Machine) -> None:
    run_in_background(deployed, {"kept": f"python3 -c '{KEPT}' > /tmp/kept.said 2>&1"})
    deployed.sh("for i in 1 2 3 4 5 6; do sleep 0.5; systemctl reload local-llm-gateway; done")
    assert is_running(deployed, "kept")
    eventually(lambda: not is_running(deployed, "kept"), 60, "an end")
    assert deployed.sh("sort /tmp/kept.said | uniq -c").split() == ["100", "200"]


CROWD = """
import http.client, threading
body = b"{\\"a\\":[" + b"{\\"b\\":[1,\\"x\\",null]}," * 55000 + b"1]}"
said = []
def ask():
    connection = http.client.HTTPConnection("127.0.0.1", 8765, timeout=200)
    connection.request("POST", "/v1/completions", body, {"X-LLM-Explain": "1"})
    said.append(connection.getresponse().status)
clients = [threading.Thread(target=ask) for _ in range(100)]
[client.start() for client in clients]
[client.join() for client in clients]
print(len(said), *set(said))
"""
"""As many of the largest bodies as there are places, and more, each of them slow to read."""


@pytest.mark.distribution(0)
def test_as_many_bodies_as_it_takes_fit_into_the_gateways_memory(deployed: Machine) -> None:
    gateway = deployed.main_pid("local-llm-gateway")
    assert deployed.sh(f"python3 -c '{CROWD}'") == "100 200"
    assert deployed.main_pid("local-llm-gateway") == gateway
    assert deployed.answers()


IDLE = """
import socket, time
held = []
while len(held) < 250:
    client = socket.create_connection(("127.0.0.1", PORT), timeout=5)
    client.sendall(b"GET PATH HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    assert client.recv(4096)
    held.append(client)
print("held", flush=True)
time.sleep(60)
"""
"""Connections that were answered once and stay open, twice as many as there are places."""


@pytest.mark.parametrize(("port", "path"), [(8765, "/health"), (8766, "/requests")])
def test_idle_connections_lock_nobody_out(deployed: Machine, port: int, path: str) -> None:
    program = IDLE.replace("PORT", str(port)).replace("PATH", path)
    run_in_background(deployed, {"idle": f"python3 -c '{program}' > /tmp/idle.said 2>&1"})
    try:
        eventually(lambda: "held" in deployed.sh("cat /tmp/idle.said 2>/dev/null || true"), 20, "many idle connections")
        for _ in range(3):
            status, _, _ = deployed.http(f"-m 2 http://127.0.0.1:{port}{path}")
            assert status == 200
        assert deployed.answers()
        assert " OK " in deployed.sh("local-llm health")
    finally:
        deployed.sh("systemctl stop idle; rm -f /tmp/idle.said")


def test_a_client_that_leaves_frees_its_slot(deployed: Machine) -> None:
    start_long_requests(deployed, "leaver")
    eventually(lambda: deployed.sh("stat -c %s /tmp/leaver 2>/dev/null || echo 0") != "0", 10, "first tokens")
    deployed.sh("systemctl kill -s KILL leaver")
    eventually(deployed.answers, 3, "a free slot")


def test_a_configuration_that_haproxy_refuses_never_replaces_the_old(deployed: Machine) -> None:
    # An address that another program holds makes no difference to `haproxy -c`; a directive of nonsense does.
    before = deployed.sh("sha256sum /etc/local-llm/haproxy.cfg")
    deployed.sh(
        "mv /usr/sbin/haproxy /usr/sbin/haproxy.real && printf '#!/bin/sh\\n"
        'case "$*" in *.new*) echo "[ALERT] refused for the test" >&2; exit 1;; esac\\n'
        'exec /usr/sbin/haproxy.real "$@"\\n\' > /usr/sbin/haproxy && chmod 755 /usr/sbin/haproxy'
    )
    try:
        run = with_settings(deployed, queue_length=5).deploy()
    finally:
        deployed.sh("mv /usr/sbin/haproxy.real /usr/sbin/haproxy")
    assert run.status == 1
    assert "refused for the test" in run.output
    assert deployed.sh("sha256sum /etc/local-llm/haproxy.cfg") == before
    assert deployed.sh("ls -A /etc/local-llm | grep -c new || true") == "0"
    assert deployed.answers()
    assert deployed.deploy().changed == 0


def test_a_silent_model_ends_in_504_and_a_stopped_one_in_503(deployed: Machine) -> None:
    pid = deployed.main_pid()
    chat = f'{API}/v1/completions -H \'Content-Type: application/json\' -d \'{{"prompt": "x", "max_tokens": 1}}\''
    deployed.sh(f"kill -STOP {pid}")
    try:
        status, _, body = deployed.http(chat)
        assert (status, error(body)["code"]) == (504, "model_timeout")
        status, headers, body = deployed.http(chat)
        assert (status, error(body)["code"]) == (503, "model_unavailable")
        assert headers["retry-after"] == "5"
    finally:
        deployed.sh(f"kill -CONT {pid}")
    eventually(deployed.answers, 20, "an answer")


def test_the_access_log_says_what_happened_and_not_what_was_asked(deployed: Machine) -> None:
    secret = "xylophonic-marmalade"
    body = json.dumps({"messages": [{"role": "user", "content": secret}], "max_tokens": 4})
    deployed.http(f"'{API}/v1/chat/completions?q={secret}' -H 'Content-Type: application/json' -d '{body}'")
    time.sleep(1)
    line = deployed.sh("journalctl -u local-llm-gateway -o cat | grep 'path=/v1/chat/completions' | tail -n 1")
    assert re.search(r"status=200 reason=no-cloud backend=local .*total_ms=\d+", line)
    assert deployed.sh(f"journalctl -o cat --since -2min | grep -c {secret} || true") == "0"
    assert deployed.sh(f"grep -rl {secret} /var/log 2>/dev/null | grep -v journal || true") == ""


def test_prometheus_gets_the_gateways_and_the_models_counters(deployed: Machine) -> None:
    _, _, text = deployed.http("http://127.0.0.1:8766/metrics")
    assert re.search(r'^haproxy_frontend_http_responses_total\{proxy="api",code="2xx"\} [1-9]', text, re.MULTILINE)
    _, _, text = deployed.http("http://127.0.0.1:8766/llama/metrics")
    assert "llamacpp:prompt_tokens_total" in text
