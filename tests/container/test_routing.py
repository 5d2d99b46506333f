"""Who answers, through the deployed gateway, with a scripted cloud that fails in every way it can.

The cloud is reached by name over TLS, as a real one: the machine resolves it by its own resolver and trusts it by its
own authorities.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sandbox.cloud import CLOUD_ANSWER, CLOUD_KEY, CLOUD_NAME, Cloud, Fault
from tests.container.clouds import reachable, start_resolver, stop_resolver, with_cloud
from tests.container.conftest import with_settings
from tests.container.machine import Machine, eventually

API = "http://127.0.0.1:8765"
PREFIX = "/api/v1"
CLOUD_MODEL = "cloud-large"
FIRST_BYTE_SECONDS = 2
AT_ONCE_SECONDS = 1.5
"""More than the machine's noise, less than any of the time limits."""


@dataclass(frozen=True)
class Answer:
    """What a client got. `exit` is curl's status: 0 for an answer that came whole."""

    exit: int
    status: int
    headers: dict[str, str]
    body: str
    seconds: float

    @property
    def by(self) -> str:
        return self.headers.get("x-llm-backend", "")

    @property
    def reason(self) -> str:
        return self.headers.get("x-llm-reason", "")

    @property
    def text(self) -> str:
        return str(json.loads(self.body)["choices"][0]["message"]["content"]).strip()

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def body_of(model: str | None = CLOUD_MODEL, words: int = 3, **fields: Any) -> dict[str, Any]:
    """A chat request; two words are about three estimated tokens."""
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": " ".join(["what"] * words)}], "max_tokens": 40, **fields}


def ask(
    machine: Machine, body: dict[str, Any] | None = None, *headers: str, path: str = "/v1/chat/completions"
) -> Answer:
    """Post a request from inside the machine."""
    sent = shlex.quote(json.dumps(body or body_of()))
    given = " ".join(f"-H {shlex.quote(header)}" for header in ("Content-Type: application/json", "Expect:", *headers))
    return _curl(machine, f"{given} --data-binary @- {API}{path}", sent)


def _curl(machine: Machine, arguments: str, sent: str) -> Answer:
    began = time.monotonic()
    answer = machine.sh(
        "d=$(mktemp -d); "
        f"printf %s {sent} | "
        f"curl -sS -N -m 60 -D $d/headers -o $d/body -w '%{{http_code}} %{{time_total}}' {arguments}; "
        'echo " $?"; cat $d/headers; echo ---; cat $d/body; rm -rf $d',
        check=False,
    )
    head, _, rest = answer.partition("\n")
    *_, status, seconds, exit_status = f"{began} {head}".split()
    lines, _, body = rest.partition("---\n")
    pairs = (line.split(":", 1) for line in lines.splitlines() if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    return Answer(int(exit_status), int(status), headers, body, float(seconds))


def explain(machine: Machine, body: dict[str, Any] | None = None, *headers: str) -> dict[str, Any]:
    """What the gateway would do with a request."""
    answer = ask(machine, body, "X-LLM-Explain: 1", *headers)
    assert answer.status == 200, answer
    explained: dict[str, Any] = json.loads(answer.body)
    return explained


def state(machine: Machine, side: str) -> str:
    return str(explain(machine)[side])


def wait_until_up(machine: Machine) -> None:
    eventually(
        lambda: (explained := explain(machine))["cloud"] == "up" and explained["local"] == "up", 40, "both sides up"
    )


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(prefix=PREFIX) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def clouded(deployed: Machine, cloud: Cloud) -> Iterator[Machine]:
    """The machine, deployed with the cloud; afterwards deployed without it."""
    machine = with_cloud(deployed, cloud)
    with reachable(deployed, cloud):
        run = machine.deploy()
        assert run.succeeded, run.output
        yield machine
    assert deployed.sh("ls /etc/local-llm/secrets") == ""


@pytest.fixture
def routed(clouded: Machine, cloud: Cloud) -> Machine:
    """The machine with both sides up and nothing recorded."""
    cloud.recover()
    wait_until_up(clouded)
    cloud.clear()
    return clouded


# Rules


@pytest.mark.parametrize(
    ("body", "headers", "by", "reason"),
    [
        (body_of("tiny"), (), "local", "local-model"),
        (body_of("tiny", words=2000), ("X-LLM-Route: cloud",), "local", "local-model"),
        (body_of(words=2000), ("X-LLM-Route: local",), "local", "asked-local"),
        (body_of(None, words=2000), ("X-LLM-Route: cloud",), "local", "no-model"),
        (body_of(), ("X-LLM-Route: cloud", "X-LLM-Task: utility"), "cloud", "asked-cloud"),
        (body_of(service_tier="priority"), (), "cloud", "priority"),
        (body_of(reasoning_effort="high"), (), "cloud", "reasoning"),
        (body_of(reasoning_effort="low"), (), "local", "short-prompt"),
        (body_of(words=2000), ("X-LLM-Task: utility",), "cloud", "long-prompt"),
        (body_of(max_tokens=2000), (), "cloud", "long-answer"),
        (body_of(max_completion_tokens=2000), (), "cloud", "long-answer"),
        (body_of(words=600), ("X-LLM-Task: utility",), "local", "utility-task"),
        (body_of(), (), "local", "short-prompt"),
        (body_of(words=600), (), "cloud", "default"),
    ],
)
def test_each_rule_picks_its_side(
    routed: Machine, cloud: Cloud, body: dict[str, Any], headers: tuple[str, ...], by: str, reason: str
) -> None:
    answer = ask(routed, body, *headers)
    assert (answer.status, answer.by, answer.reason) == (200, by, reason)
    assert answer.text == {"local": routed.source.models["tiny"].answer, "cloud": CLOUD_ANSWER}[by]
    assert len(cloud.requests_for("completions")) == (1 if by == "cloud" else 0)


def test_models_of_both_sides_are_listed(routed: Machine) -> None:
    _, _, body = routed.http(f"{API}/v1/models")
    assert [model["id"] for model in json.loads(body)["data"]] == ["tiny", "cloud-large", "cloud-small"]


def test_streams_of_both_sides_come_whole(routed: Machine) -> None:
    for headers, by in (("X-LLM-Route: cloud", "cloud"), ("X-LLM-Task: utility", "local")):
        answer = ask(routed, body_of(stream=True), headers)
        assert (answer.status, answer.by) == (200, by)
        assert answer.body.rstrip().endswith("data: [DONE]")


def test_the_cloud_gets_its_key_and_name_and_nothing_of_the_clients(routed: Machine, cloud: Cloud) -> None:
    client = ("Authorization: Bearer of-the-client", "Cookie: of=the-client", "x-api-key: of-the-client")
    assert ask(routed, body_of(), "X-LLM-Route: cloud", "X-LLM-Task: utility", *client).by == "cloud"
    [request] = cloud.requests_for("completions")
    assert request.path == f"{PREFIX}/chat/completions"
    assert (request.server_name, request.host) == (CLOUD_NAME, f"{CLOUD_NAME}:{cloud.port}")
    assert request.headers["Authorization"] == f"Bearer {CLOUD_KEY}"
    assert request.json == body_of()
    names = {name.lower() for name in request.headers}
    assert not {name for name in names if name.startswith("x-llm") or name in {"cookie", "x-api-key"}}


def test_embeddings_are_the_clouds_or_refused(routed: Machine, cloud: Cloud) -> None:
    text = {"input": "words"}
    assert ask(routed, {"model": CLOUD_MODEL, **text}, path="/v1/embeddings").by == "cloud"
    for refused in ({"model": "tiny", **text}, text):
        answer = ask(routed, refused, path="/v1/embeddings")
        assert (answer.status, answer.error, answer.by) == (400, "embeddings_unsupported", "gateway")
    assert len(cloud.requests_for("completions")) == 1


def test_a_path_that_the_cloud_lacks_is_answered_here(routed: Machine, cloud: Cloud) -> None:
    answer = ask(routed, body_of(words=2000), path="/v1/messages")
    assert (answer.status, answer.by, answer.reason) == (200, "local", "local-endpoint")
    assert cloud.requests_for("completions") == []


def test_bodies_beyond_the_buffer_go_to_the_cloud_whole(routed: Machine, cloud: Cloud) -> None:
    routed.sh(
        "python3 -c \"import json; print(json.dumps({'model': 'cloud-large', 'messages': [{'role': 'user', "
        "'content': 'a' * 700000}]}), end='')\" > /tmp/large"
    )
    size = int(routed.sh("stat -c %s /tmp/large"))
    for encoding in ("Expect:", "Transfer-Encoding: chunked"):
        status, headers, _ = routed.http(
            f"{API}/v1/chat/completions -H 'Content-Type: application/json' -H '{encoding}' --data-binary @/tmp/large"
        )
        assert (status, headers["x-llm-backend"], headers["x-llm-reason"]) == (200, "cloud", "long-prompt")
        assert len(cloud.requests_for("completions")[-1].body) == size


def test_a_large_body_whose_model_is_out_of_sight_stays_here(routed: Machine, cloud: Cloud) -> None:
    body = shlex.quote("import json; print(json.dumps({'messages': 'a' * 700000, 'model': 'tiny'}), end='')")
    routed.sh(f"python3 -c {body} > /tmp/large")
    status, headers, text = routed.http(
        f"{API}/v1/chat/completions -H 'X-LLM-Route: cloud' -H 'Expect:' --data-binary @/tmp/large"
    )
    assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
    assert headers["x-llm-reason"] == "no-model"
    assert cloud.requests == [] or not cloud.requests_for("completions")


# The cloud fails


def refuse(cloud: Cloud) -> None:
    cloud.stop_listening()


def fault(**fields: Any) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.set_fault(Fault(**fields), on="completions")


def certificate(kind: Any) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.use_certificate(kind)


FAILURES: dict[str, Callable[[Cloud], None]] = {
    "refused": refuse,
    "reset": fault(reset=True),
    "hang": fault(hang_seconds=30),
    **{f"status-{status}": fault(status=status) for status in (401, 402, 403, 429, 500, 502, 503, 504, 529)},
    **{f"certificate-{kind}": certificate(kind) for kind in ("unknown-authority", "wrong-name", "expired")},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_same_request_is_answered_here(routed: Machine, cloud: Cloud, failure: str, stream: bool) -> None:
    if failure == "hang" and not stream:
        pytest.skip("an answer in one piece may take cloud_silence_seconds: tested with streams")
    FAILURES[failure](cloud)
    answer = ask(routed, body_of(stream=stream), "X-LLM-Route: cloud")
    assert (answer.exit, answer.status, answer.by, answer.reason) == (0, 200, "local", "asked-cloud")
    if not stream:
        assert answer.text == routed.source.models["tiny"].answer
    assert answer.seconds < (FIRST_BYTE_SECONDS if failure == "hang" else 0) + AT_ONCE_SECONDS


@pytest.mark.parametrize(
    "failure", ["refused", "reset", "status-429", "status-500", "status-503", "certificate-expired"]
)
def test_what_is_too_long_for_here_is_told_at_once(routed: Machine, cloud: Cloud, failure: str) -> None:
    FAILURES[failure](cloud)
    for _ in range(2):
        answer = ask(routed, body_of(words=20_000))
        assert (answer.status, answer.error, answer.by, answer.reason) == (
            404, "model_not_found", "gateway", "long-prompt",
        )  # fmt: skip
        assert answer.seconds < AT_ONCE_SECONDS


def test_what_only_looked_short_enough_is_told_as_well(routed: Machine, cloud: Cloud) -> None:
    # The estimate says 12,000 tokens; the model counts more than its context holds.
    body = {**body_of(), "messages": [{"role": "user", "content": " 1" * 25_000}]}
    cloud.stop_listening()
    for _ in range(2):
        answer = ask(routed, body)
        assert (answer.status, answer.error, answer.by) == (404, "model_not_found", "gateway")
    answer = ask(routed, {**body, "model": "tiny"})
    assert (answer.status, answer.error, answer.by, answer.reason) == (
        413, "context_length_exceeded", "local", "local-model",
    )  # fmt: skip


def test_a_name_that_no_longer_resolves_costs_nothing(routed: Machine, cloud: Cloud) -> None:
    stop_resolver(routed)
    try:
        routed.sh("systemctl restart local-llm-gateway")
        eventually(lambda: state(routed, "local") == "up", 20, "the local side")
        assert state(routed, "cloud") == "down"
        answer = ask(routed, body_of(), "X-LLM-Route: cloud")
        assert (answer.status, answer.by) == (200, "local")
        assert answer.seconds < AT_ONCE_SECONDS
    finally:
        start_resolver(routed, cloud)
    wait_until_up(routed)


def test_a_broken_stream_is_passed_on_as_broken(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(break_after_chunks=3), on="completions")
    answer = ask(routed, body_of(stream=True), "X-LLM-Route: cloud")
    assert answer.exit != 0
    assert (answer.status, answer.by) == (200, "cloud")
    assert "[DONE]" not in answer.body
    assert routed.source.models["tiny"].answer.split()[1] not in answer.body
    assert len(cloud.requests_for("completions")) == 1


def test_a_slow_stream_is_not_cut(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(chunk_seconds=0.4), on="completions")
    answer = ask(routed, body_of(stream=True), "X-LLM-Route: cloud")
    assert (answer.exit, answer.by) == (0, "cloud")
    assert answer.seconds > FIRST_BYTE_SECONDS
    assert answer.body.rstrip().endswith("data: [DONE]")


def test_a_slow_answer_of_the_local_model_is_not_cut(routed: Machine, cloud: Cloud) -> None:
    # The tiny model repeats this word until it is told to stop, and says nothing before it has finished.
    cloud.stop_listening()
    long = {"model": CLOUD_MODEL, "prompt": " tick", "max_tokens": 8000}
    answer = ask(routed, long, path="/v1/completions")
    assert (answer.exit, answer.status, answer.by) == (0, 200, "local")
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 8000


def test_a_limited_cloud_is_left_alone_until_it_said(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(status=429, retry_after="4", times=1), on="completions")
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    limited = time.monotonic()
    assert state(routed, "cloud") == "resting"
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    assert len(cloud.requests_for("completions")) == 1
    eventually(lambda: state(routed, "cloud") == "up", 10, "an end of the rest")
    assert time.monotonic() - limited > 2.5
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "cloud"


def test_no_request_waits_for_a_cloud_that_is_known_to_hang(routed: Machine, cloud: Cloud) -> None:
    """And after the rest one request tries it, not all."""
    cloud.set_fault(Fault(hang_seconds=60), on="completions")
    first = ask(routed, body_of(stream=True), "X-LLM-Route: cloud")
    assert first.by == "local"
    for _ in range(3):
        later = ask(routed, body_of(stream=True), "X-LLM-Route: cloud")
        assert later.by == "local"
        assert later.seconds < AT_ONCE_SECONDS
    assert len(cloud.requests_for("completions")) == 1
    eventually(lambda: state(routed, "cloud") != "resting", 20, "an end of the rest")
    body = shlex.quote(json.dumps(body_of(stream=True)))
    command = f"curl -sS -m 30 -o /dev/null -H 'X-LLM-Route: cloud' -d {body} {API}/v1/chat/completions"
    routed.sh("\n".join([f"{command} &"] * 3 + ["wait"]))
    assert len(cloud.requests_for("completions")) == 2


def test_three_failures_in_a_row_open_the_breaker_and_checks_close_it(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(status=500))
    for _ in range(3):
        assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    eventually(lambda: state(routed, "cloud") == "down", 10, "an open breaker")
    reached = len(cloud.requests_for("completions"))
    for _ in range(3):
        assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    assert len(cloud.requests_for("completions")) == reached
    cloud.recover()
    eventually(lambda: state(routed, "cloud") == "up", 20, "a closed breaker")
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "cloud"


# The local side fails


@contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    machine.sh("systemctl stop local-llm")
    try:
        eventually(lambda: state(machine, "local") == "down", 20, "a local side that is down")
        yield
    finally:
        machine.sh("systemctl start local-llm")
        eventually(machine.answers, 30, "an answer")


def test_the_cloud_stands_in_for_a_stopped_model(routed: Machine, cloud: Cloud) -> None:
    with stopped(routed):
        for stream in (False, True):
            answer = ask(routed, body_of(stream=stream))
            assert (answer.exit, answer.status, answer.by, answer.reason) == (0, 200, "cloud", "short-prompt")
            assert answer.seconds < AT_ONCE_SECONDS
        cloud.stop_listening()
        answer = ask(routed, body_of())
        assert (answer.status, answer.by) == (503, "gateway")
        assert answer.headers["retry-after"]
        assert answer.seconds < AT_ONCE_SECONDS


def test_the_cloud_stands_in_for_a_model_that_dies_over_it(routed: Machine, cloud: Cloud) -> None:
    # n_predict is llama-server's own name of the limit, which no rule reads.
    body = shlex.quote(json.dumps({"model": CLOUD_MODEL, "prompt": " tick", "n_predict": 8000}))
    headers = "-H 'Content-Type: application/json' -H 'X-LLM-Task: utility' -D /tmp/dies.headers"
    routed.sh(
        "rm -f /tmp/dies.headers; systemd-run --quiet --collect --unit=dies "
        f"curl -sS -m 60 -o /tmp/dies {headers} -d {body} {API}/v1/completions"
    )
    sessions = "curl -sS http://127.0.0.1:8766/metrics | grep -F 'haproxy_backend_current_sessions{proxy=\"llm\"}'"
    eventually(lambda: routed.sh(sessions).endswith(" 1"), 10, "a request at work")
    routed.sh("systemctl kill -s KILL local-llm")
    eventually(lambda: routed.sh("cat /tmp/dies.headers 2>/dev/null || true") != "", 20, "an answer")
    assert "x-llm-backend: cloud" in routed.sh("cat /tmp/dies.headers").lower()
    eventually(routed.answers, 30, "an answer of the model")


def test_the_cloud_stands_in_for_a_full_queue(routed: Machine, cloud: Cloud) -> None:
    body = shlex.quote(json.dumps({"model": "tiny", "prompt": " tick", "max_tokens": 8000}))
    start = f"curl -sS -m 120 -o /dev/null -d {body} {API}/v1/completions"
    routed.sh("\n".join(f"systemd-run --quiet --collect --unit=fill{number} {start}" for number in range(3)))
    eventually(lambda: state(routed, "local") == "full", 10, "a full queue")
    answer = ask(routed, body_of())
    assert (answer.status, answer.by, answer.reason) == (200, "cloud", "short-prompt")
    routed.sh("systemctl stop fill0 fill1 fill2")
    eventually(routed.answers, 30, "a free slot")


# Privacy

LOCAL_ONLY: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "by name": (body_of("tiny"), ()),
    "by name, against everything": (
        body_of("tiny", words=600, service_tier="priority", reasoning_effort="high", max_completion_tokens=9000),
        ("X-LLM-Route: cloud",),
    ),
    "by header": (body_of(), ("X-LLM-Route: local",)),
    "by header, against everything": (
        body_of(words=600, service_tier="priority", max_tokens=9000),
        ("X-LLM-Route: cloud", "X-LLM-Route: local"),
    ),
    "too long": (body_of("tiny", words=20_000), ()),
    "nameless": (body_of(None), ("X-LLM-Route: cloud",)),
}


def test_what_is_local_never_reaches_the_cloud(routed: Machine, cloud: Cloud) -> None:
    def send_all() -> list[Answer]:
        return [ask(routed, body, *headers) for body, headers in LOCAL_ONLY.values()]

    assert {answer.by for answer in send_all()} == {"local"}
    for fail in FAILURES.values():
        fail(cloud)
        assert {answer.by for answer in send_all()} <= {"local", "gateway"}
        cloud.recover()
    with stopped(routed):
        assert [(answer.status, answer.by) for answer in send_all()] == [(503, "gateway")] * len(LOCAL_ONLY)
    routed.sh(f"kill -STOP {routed.main_pid()}")
    try:
        eventually(lambda: state(routed, "local") == "down", 20, "a local side that is down")
        answers = [ask(routed, body, *headers) for body, headers in list(LOCAL_ONLY.values())[:2]]
        assert {answer.by for answer in answers} == {"gateway"}
    finally:
        routed.sh(f"kill -CONT {routed.main_pid()}")
    eventually(routed.answers, 30, "an answer")
    assert cloud.requests_for("completions") == []


# Key


def test_the_key_lies_nowhere_but_in_its_file(routed: Machine) -> None:
    assert routed.sh("stat -c '%a %U:%G' /etc/local-llm/secrets/cloud.env /etc/local-llm/secrets") == (
        "600 root:root\n700 root:root"
    )
    ask(routed, body_of(), "X-LLM-Route: cloud")
    loud = ("deploy.py", "--debug", "--diff", "-vvv")
    refused = replace(routed, environment={"LOCAL_LLM_CLOUD_KEY": f"{CLOUD_KEY}-wrong"}).deploy(*loud)
    assert refused.status == 1
    assert "it refuses the key" in refused.output
    right = routed.deploy(*loud)
    assert right.succeeded, right.output
    assert right.changed == 3  # the key, the unit with its stamp, the restart
    for run in (refused, right):
        assert CLOUD_KEY not in run.output + json.dumps(run.report)
    found = routed.sh(f"grep -rlF {CLOUD_KEY} /etc /opt /var/log /var/lib /run /tmp /usr/local 2>/dev/null || true")
    assert found == "/etc/local-llm/secrets/cloud.env"
    assert routed.sh(f"journalctl -o cat | grep -cF {CLOUD_KEY} || true") == "0"
    assert routed.sh(f"ps -eo args | grep -F {CLOUD_KEY} | grep -vc grep || true") == "0"
    assert CLOUD_KEY not in routed.sh("systemctl show local-llm-gateway; systemctl cat local-llm-gateway")
    wait_until_up(routed)


def test_a_deploy_without_the_key_keeps_the_one_on_the_host(routed: Machine) -> None:
    assert replace(routed, environment={}).deploy().changed == 0


def test_the_model_gets_no_credentials_of_anybody(routed: Machine) -> None:
    recorder = (
        "import os, socketserver, http.server\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def address_string(self): return ''\n"
        "    def log_message(self, *a): pass\n"
        "    def do_GET(self): self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
        "    def do_POST(self):\n"
        "        self.rfile.read(int(self.headers['Content-Length']))\n"
        "        open('/tmp/seen', 'a').write(str(self.headers)); self.do_GET()\n"
        "os.umask(0o007)\n"
        "socketserver.UnixStreamServer('/run/local-llm/llama.sock', H).serve_forever()\n"
    )
    routed.sh("systemctl stop local-llm; rm -f /tmp/seen; mkdir -p /run/local-llm; rm -f /run/local-llm/llama.sock")
    routed.sh("chown local-llm:local-llm /run/local-llm")
    routed.sh(
        f"systemd-run --quiet --collect --unit=recorder --property=User=local-llm python3 -c {shlex.quote(recorder)}"
    )
    try:
        client = ("Authorization: Bearer of-the-client", "Cookie: of=the-client", "x-api-key: of-the-client")
        eventually(lambda: ask(routed, body_of("tiny"), *client).by == "local", 20, "the recorder")
        seen = routed.sh("cat /tmp/seen").lower()
    finally:
        routed.sh("systemctl stop recorder; systemctl start local-llm; rm -f /tmp/seen")
    assert "host:" in seen
    assert "of-the-client" not in seen
    assert CLOUD_KEY not in seen
    eventually(routed.answers, 30, "an answer")


# Counters, drill and words


def test_requests_are_counted_by_backend_and_reason(routed: Machine) -> None:
    def count(backend: str, reason: str) -> int:
        _, _, text = routed.http("http://127.0.0.1:8766/requests")
        name = f'local_llm_requests_total{{backend="{backend}",reason="{reason}"}} '
        [line] = [line for line in text.splitlines() if line.startswith(name)]
        return int(line.removeprefix(name))

    before = count("cloud", "priority"), count("local", "utility-task"), count("gateway", "local-model")
    assert ask(routed, body_of(service_tier="priority")).by == "cloud"
    assert ask(routed, body_of(), "X-LLM-Task: utility").by == "local"
    assert ask(routed, {"model": "tiny", "input": "words"}, path="/v1/embeddings").by == "gateway"
    after = count("cloud", "priority"), count("local", "utility-task"), count("gateway", "local-model")
    assert after == tuple(number + 1 for number in before)
    line = routed.sh("journalctl -u local-llm-gateway -o cat | grep reason=utility-task | tail -n 1")
    assert "backend=local" in line


def test_route_explains_in_words_and_sends_nothing(routed: Machine, cloud: Cloud) -> None:
    routed.sh(f"echo {shlex.quote(json.dumps(body_of(words=2000)))} > /tmp/request.json")
    said = routed.sh("local-llm route /tmp/request.json")
    assert "long-prompt" in said
    assert "cloud" in said
    assert cloud.requests_for("completions") == []


def test_the_drill_takes_each_side_out_and_puts_it_back(routed: Machine) -> None:
    drill = json.loads(routed.sh("local-llm drill --json"))
    assert json.dumps(drill).count('"ok": true') >= 2, drill
    wait_until_up(routed)


def test_a_drill_that_is_killed_leaves_both_sides_in_service(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(hang_seconds=5), on="completions")
    routed.sh("systemctl start --no-block local-llm-drill")
    eventually(lambda: state(routed, "local") == "down" or state(routed, "cloud") == "down", 10, "a side taken out")
    routed.sh("systemctl kill -s KILL local-llm-drill")
    cloud.recover()
    wait_until_up(routed)


@pytest.fixture
def limited(routed: Machine) -> Iterator[Machine]:
    """The machine with a cloud of the other kind, limits by the minute, and the other answer to an outage."""
    machine = with_settings(
        routed, cloud_api="anthropic", requests_per_minute=12, cloud_requests_per_minute=3, outage_status=503
    )
    run = machine.deploy()
    assert run.succeeded, run.output
    wait_until_up(machine)
    yield machine
    assert routed.deploy().succeeded


def test_limits_by_the_minute_with_a_cloud_of_the_other_kind(limited: Machine, cloud: Cloud) -> None:
    long = body_of(words=20_000)
    assert ask(limited, long).reason == "local-endpoint"
    for _ in range(3):
        assert ask(limited, long, path="/v1/messages").by == "cloud"
    [*_, request] = cloud.requests_for("completions")
    assert request.path == f"{PREFIX}/messages"
    assert (request.headers["x-api-key"], request.headers["anthropic-version"]) == (CLOUD_KEY, "2023-06-01")
    assert request.headers["Authorization"] is None
    assert ask(limited, body_of(), "X-LLM-Route: cloud", path="/v1/messages").by == "local"
    answer = ask(limited, long, path="/v1/messages")
    assert (answer.status, answer.error, answer.by) == (503, "cloud_unavailable", "gateway")
    assert int(answer.headers["retry-after"]) > 60
    assert len(cloud.requests_for("completions")) == 3
    answers = [ask(limited, body_of("tiny"), path="/v1/messages") for _ in range(12)]
    assert {answer.status for answer in answers} == {200, 429}
    assert answers[-1].error == "rate_limit_exceeded"
    assert answers[-1].headers["retry-after"] == "60"


def test_a_second_deploy_changes_nothing(routed: Machine) -> None:
    assert routed.deploy().changed == 0
