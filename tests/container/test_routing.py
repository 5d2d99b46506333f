"""Who answers, through the deployed gateway, with a scripted cloud that fails in every way it can.

The cloud is reached by name over TLS, as a real one: the machine resolves it by its own resolver and trusts it by its
own authorities.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from checks.contract.paths import GATEWAY_ADMIN_SOCKET, PUBLISH_SOCKET, SOCKET
from sandbox.servers.answers import CLOUD_ANSWER, CLOUD_KEY, json_answer, stream_answer
from sandbox.servers.answers import Answer as CloudsAnswer
from sandbox.servers.cloud import CLOUD_NAME, Cloud, Fault
from tests.container.clouds import deployed_with, start_resolver, stop_resolver
from tests.container.conftest import with_settings
from tests.container.machine import Machine, eventually
from tests.container.test_gateway import is_running, run_in_background

API = "http://127.0.0.1:8765"
PREFIX = "/api/v1"
CLOUD_MODEL = "cloud-large"
FIRST_BYTE_SECONDS, SILENCE_SECONDS = 2, 5
LOCAL_PATIENCE_SECONDS, QUEUE_PATIENCE_SECONDS = 6, 1
"""How long the gateway waits: for the cloud's first byte of a stream and its whole answer, as `with_cloud` sets it; for
the model and a free slot, where a test sets it."""
AT_ONCE_SECONDS = 1.5
"""More than the machine's noise, less than any of the time limits."""
LONG = {"model": CLOUD_MODEL, "prompt": " tick", "n_predict": 8000}
"""Seconds of work for /v1/completions: the tiny model repeats this word until it is told to stop. `n_predict` is
llama-server's own name of the limit, which no rule reads."""
CREDENTIALS = tuple(
    f"{name}: of-the-client"
    for name in (
        "Authorization", "Proxy-Authorization", "x-api-key", "api-key", "x-goog-api-key", "Cookie",
        "OpenAI-Organization", "OpenAI-Project",
    )
)  # fmt: skip
ORIGINS = tuple(f"{name}: of-the-client" for name in ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded"))


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
    return _answer(machine.sh(_script("/tmp/asked", headers, path, _printed(body or body_of())), check=False))


@dataclass(frozen=True)
class Asked:
    """A request that has been sent; its answer is collected in a folder of the machine."""

    machine: Machine
    folder: str

    def is_being_answered(self) -> bool:
        return self.machine.sh(f"stat -c %s {self.folder}/body 2>/dev/null || echo 0") != "0"

    def answer(self) -> Answer:
        """The answer, once it is there."""
        end = f"{self.folder}.end"
        eventually(lambda: self.machine.sh(f"test -e {end} && echo yes || true") == "yes", 130, "an end of a request")
        return _answer(self.machine.sh(f"cat {end}; rm {end}"))


def asking(
    machine: Machine, body: dict[str, Any], *headers: str, path: str = "/v1/chat/completions", times: int = 1
) -> list[Asked]:
    """Post a request from inside the machine, some times at once, and do not wait for the answers."""
    name = f"asking{time.monotonic_ns()}"
    folders = [f"/tmp/{name}.{number}" for number in range(times)]
    machine.sh(f"printf %s {shlex.quote(json.dumps(body))} > /tmp/{name}.json")
    scripts = [
        f"{{ ( {_script(folder, headers, path, f'cat /tmp/{name}.json')} ) > {folder}.said; "
        f"mv {folder}.said {folder}.end; }} &"
        for folder in folders
    ]
    run_in_background(machine, {name: "\n".join([*scripts, "wait"])})
    return [Asked(machine, folder) for folder in folders]


def _printed(body: dict[str, Any]) -> str:
    return f"printf %s {shlex.quote(json.dumps(body))}"


def _script(folder: str, headers: Iterable[str], path: str, body: str) -> str:
    """Post what the command `body` prints, and print all that is answered."""
    given = " ".join(f"-H {shlex.quote(header)}" for header in ("Content-Type: application/json", "Expect:", *headers))
    return (
        f"mkdir -p {folder}; {body} | "
        f"curl -sS -N -m 120 -D {folder}/headers -o {folder}/body -w '%{{http_code}} %{{time_total}}' {given} "
        f"--data-binary @- {API}{path}; "
        f'echo " $?"; cat {folder}/headers; echo ---; cat {folder}/body; rm -rf {folder}'
    )


def _answer(said: str) -> Answer:
    head, _, rest = said.partition("\n")
    status, seconds, exit_status = head.split()
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
    with deployed_with(deployed, cloud) as machine:
        yield machine
    assert deployed.sh("ls /etc/local-llm/secrets") == ""


@pytest.fixture
def routed(clouded: Machine, cloud: Cloud) -> Machine:
    """The machine with both sides up and nothing recorded."""
    cloud.recover()
    if state(clouded, "cloud") == "resting":
        # A new worker knows of no rest.
        clouded.sh("systemctl reload local-llm-gateway")
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
        (body_of(reasoning_effort="xhigh"), (), "cloud", "reasoning"),
        (body_of(reasoning_effort="High"), (), "cloud", "reasoning"),
        (body_of(reasoning={"effort": "max"}), (), "cloud", "reasoning"),
        (body_of(reasoning={"effort": "Minimal"}), (), "local", "short-prompt"),
        (body_of(service_tier="Priority"), (), "cloud", "priority"),
        (body_of("Tiny", words=2000), (), "local", "unlisted-model"),
        (body_of("local-llm/tiny", words=2000), ("X-LLM-Route: cloud",), "local", "unlisted-model"),
        (body_of("Cloud-Large", words=2000), (), "local", "unlisted-model"),
        (body_of("", words=2000), (), "local", "unlisted-model"),
        (body_of(words=2000), ("X-LLM-Route: Local-Only",), "local", "asked-local"),
        (body_of(words=2000), ("X-LLM-Route: local-first",), "local", "asked-local-first"),
        (body_of(), ("X-LLM-Route: cloud-only",), "cloud", "asked-cloud-only"),
        (body_of(), ("X-LLM-Route: cloud-first",), "cloud", "asked-cloud"),
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
    given = ("X-LLM-Route: cloud", "X-LLM-Task: utility", *CREDENTIALS, *ORIGINS)
    assert ask(routed, body_of(), *given).by == "cloud"
    [request] = cloud.requests_for("completions")
    assert request.path == f"{PREFIX}/chat/completions"
    assert (request.server_name, request.host) == (CLOUD_NAME, f"{CLOUD_NAME}:{cloud.port}")
    assert request.headers["Authorization"] == f"Bearer {CLOUD_KEY}"
    assert request.json == body_of()
    assert "of-the-client" not in str(request.headers)
    assert not [name for name in request.headers if name.lower().startswith("x-llm")]


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


def test_large_bodies_go_to_the_cloud_whole_and_larger_ones_nowhere(routed: Machine, cloud: Cloud) -> None:
    for size, expected in ((700_000, (200, "cloud", "long-prompt")), (1_100_000, (413, "gateway", "not-routed"))):
        routed.sh(
            "python3 -c \"import json; print(json.dumps({'model': 'cloud-large', 'messages': [{'role': 'user', "
            f"'content': 'a' * {size}}}]}}), end='')\" > /tmp/large"
        )
        for encoding in ("Expect:", "Transfer-Encoding: chunked"):
            cloud.clear()
            status, headers, body = routed.http(
                f"{API}/v1/chat/completions -H 'Content-Type: application/json' -H '{encoding}' "
                "--data-binary @/tmp/large"
            )
            assert (status, headers["x-llm-backend"], headers["x-llm-reason"]) == expected
            if status == 200:
                [request] = cloud.requests_for("completions")
                assert len(request.body) == int(routed.sh("stat -c %s /tmp/large"))
            else:
                assert "max_body_kib" in json.loads(body)["error"]["message"]
                assert cloud.requests_for("completions") == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cloud-large"}{"model":"tiny","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"cloud-large","model":"tiny","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"cloud-large","m\\u006fdel":"tiny","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"cloud-large","messages":[{"role":"user","content":"\xe4"}]}',
        b'{"model":"cloud-large","messages":[{"role":"user","content":"x"}',
        b'[{"model":"cloud-large"}]',
    ],
)
def test_what_cannot_be_read_as_one_request_stays(routed: Machine, cloud: Cloud, body: bytes) -> None:
    sent = "".join(f"\\{byte:03o}" for byte in body)
    routed.sh(f"printf '{sent}' > /tmp/odd")
    status, headers, _ = routed.http(f"{API}/v1/chat/completions -H 'X-LLM-Route: cloud' --data-binary @/tmp/odd")
    assert (status, headers["x-llm-backend"]) in ((400, "gateway"), (200, "local"))
    assert cloud.requests_for("completions") == []


@pytest.mark.parametrize("word", ["private", "none", '"local"', "local;q=1", "local.", ""])
def test_an_unknown_route_is_refused_by_naming_the_known(routed: Machine, cloud: Cloud, word: str) -> None:
    header = f"X-LLM-Route: {word}" if word else "X-LLM-Route;"  # so curl sends an empty one
    answer = ask(routed, body_of(words=2000), header)
    assert (answer.status, answer.error, answer.by) == (400, "unknown_route", "gateway")
    for known in ("local", "cloud", "local-only", "local-first", "cloud-first", "cloud-only"):
        assert known in answer.body
    assert cloud.requests_for("completions") == []


# The cloud fails


def refuse(cloud: Cloud) -> None:
    cloud.stop_listening()


def fault(**fields: Any) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.set_fault(Fault(**fields), on="completions")


def certificate(kind: Any) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.use_certificate(kind)


def instead(answer: CloudsAnswer) -> Callable[[Cloud], None]:
    """The cloud says this whatever it is asked."""
    return fault(answer=answer)


ERROR = {"error": {"message": "Provider returned error", "code": 502}}
HTML = CloudsAnswer(200, (b"<html><body>Please log in</body></html>",), {"Content-Type": "text/html"})
HOLLOW: dict[str, CloudsAnswer] = {
    "page": HTML,
    "page-called-json": replace(HTML, headers={"Content-Type": "application/json"}),
    "empty": CloudsAnswer(200, (), {"Content-Type": "application/json"}),
    "status-204": CloudsAnswer(204, ()),
    "error-object": json_answer(ERROR),
    "error-stream": stream_answer([f"data: {json.dumps(ERROR)}\n\n".encode(), b"data: [DONE]\n\n"]),
    "anthropics-error-stream": stream_answer([b'event: error\ndata: {"type": "error", "error": {}}\n\n']),
    "empty-stream": stream_answer([]),
    "status-302": CloudsAnswer(302, (), {"Location": "http://127.0.0.1:9/"}),
    "status-307": CloudsAnswer(307, (), {"Location": "http://127.0.0.1:9/"}),
}
"""Answers that call themselves a success and are none, and redirects, which no API makes."""

FAILURES: dict[str, Callable[[Cloud], None]] = {
    "refused": refuse,
    "reset": fault(reset=True),
    "hang": fault(hang_seconds=30),
    "hang-after-headers": fault(stall_after_chunks=0, stall_seconds=30),
    "status-429": fault(status=429, retry_after="1"),
    **{f"status-{status}": fault(status=status) for status in (401, 402, 403, 500, 502, 503, 504, 507, 529, 530)},
    **{f"certificate-{kind}": certificate(kind) for kind in ("unknown-authority", "wrong-name", "expired")},
    **{name: instead(answer) for name, answer in HOLLOW.items()},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_same_request_is_answered_here(routed: Machine, cloud: Cloud, failure: str, stream: bool) -> None:
    FAILURES[failure](cloud)
    answer = ask(routed, body_of(stream=stream), "X-LLM-Route: cloud")
    assert (answer.exit, answer.status, answer.by, answer.reason) == (0, 200, "local", "asked-cloud")
    if not stream:
        assert answer.text == routed.source.models["tiny"].answer
    patience = FIRST_BYTE_SECONDS if stream else SILENCE_SECONDS
    assert answer.seconds < (patience if failure.startswith("hang") else 0) + AT_ONCE_SECONDS


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
        assert ask(routed, body_of("tiny")).by == "local"
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
    # It says nothing before it has finished.
    cloud.stop_listening()
    answer = ask(routed, LONG, path="/v1/completions")
    assert (answer.exit, answer.status, answer.by) == (0, 200, "local")
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 8000


def test_a_limited_cloud_is_left_alone_until_it_said(routed: Machine, cloud: Cloud) -> None:
    cloud.set_fault(Fault(status=429, retry_after="4", times=1), on="completions")
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    limited = time.monotonic()
    assert state(routed, "cloud") == "resting"
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    assert ask(routed, body_of("tiny")).by == "local"
    assert len(cloud.requests_for("completions")) == 1
    eventually(lambda: state(routed, "cloud") == "up", 10, "an end of the rest")
    assert time.monotonic() - limited > 2.5
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "cloud"


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [("7200", 3600), ("Fri, 31 Dec 2100 23:59:59 GMT", 60)], ids=["two-hours", "date"]
)
def test_a_cloud_that_asks_for_a_long_rest_gets_a_bounded_one(
    routed: Machine, cloud: Cloud, retry_after: str, seconds: int
) -> None:
    cloud.set_fault(Fault(status=429, retry_after=retry_after, times=1), on="completions")
    try:
        assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
        assert state(routed, "cloud") == "resting"
        assert seconds - 10 < seconds_of_rest(routed) <= seconds
    finally:
        routed.sh("systemctl restart local-llm-gateway")


def seconds_of_rest(machine: Machine) -> int:
    """For how long the gateway leaves the cloud alone, as its own variable says."""
    program = (
        "import re, socket, time; admin = socket.socket(socket.AF_UNIX); "
        f"admin.connect({GATEWAY_ADMIN_SOCKET!r}); admin.sendall(b'get var proc.cloud_rest_until\\n'); "
        "print(int(re.search(r'<(\\d+)>', admin.makefile().read())[1]) - int(time.time()))"
    )
    return int(machine.sh(f"python3 -c {shlex.quote(program)}"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_request_waits_for_a_cloud_that_is_known_to_hang(routed: Machine, cloud: Cloud, stream: bool) -> None:
    """And after the rest one request tries it, not all."""
    cloud.set_fault(Fault(hang_seconds=60), on="completions")
    request = body_of(stream=stream), "X-LLM-Route: cloud"
    assert ask(routed, *request).by == "local"
    for _ in range(3):
        later = ask(routed, *request)
        assert later.by == "local"
        assert later.seconds < AT_ONCE_SECONDS
    assert len(cloud.requests_for("completions")) == 1
    eventually(lambda: state(routed, "cloud") != "resting", 20, "an end of the rest")
    asked = asking(routed, *request, times=3)
    if not stream:
        time.sleep(FIRST_BYTE_SECONDS + 1.5)
        later = ask(routed, *request)
        assert later.by == "local"
        assert later.seconds < AT_ONCE_SECONDS
    answers = sorted((each.answer() for each in asked), key=lambda answer: answer.seconds)
    assert [answer.by for answer in answers] == ["local"] * 3
    assert [answer.seconds < AT_ONCE_SECONDS for answer in answers] == [True, True, False]
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


def test_hollow_answers_rest_the_cloud_and_reach_nobody(routed: Machine, cloud: Cloud) -> None:
    for answer in HOLLOW.values():
        cloud.set_fault(Fault(answer=answer), on="completions")
        # Nobody could take this over, so it is told as a failure.
        told = ask(routed, body_of(words=20_000))
        assert (told.status, told.error) == (404, "model_not_found")
        routed.sh("systemctl reload local-llm-gateway")
        eventually(lambda: state(routed, "cloud") == "up", 20, "a fresh start")
    for _ in range(3):
        assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "local"
    assert state(routed, "cloud") == "resting"


def test_nothing_that_the_cloud_says_becomes_a_word_of_the_gateways(routed: Machine, cloud: Cloud) -> None:
    forged = {
        "X-LLM-Backend": "local",
        "X-LLM-Reason": "local-model",
        "X-LLM-Queue-Ms": "0 backend=local reason=local-model status=200 end=----",
        "X-LLM-Other": "1",
    }
    cloud.set_fault(Fault(answer=json_answer({"choices": []}, headers=forged)), on="completions")
    answer = ask(routed, body_of(), "X-LLM-Route: cloud")
    assert (answer.status, answer.by, answer.reason) == (200, "cloud", "asked-cloud")
    assert not {"x-llm-queue-ms", "x-llm-other"} & set(answer.headers)
    line = routed.sh("journalctl -u local-llm-gateway -o cat | grep reason=asked-cloud | tail -n 1")
    assert line.count("backend=") == line.count("reason=") == 1
    assert "queue_ms=-" in line


def test_what_a_failing_cloud_hands_over_waits_in_the_same_queue(routed: Machine, cloud: Cloud) -> None:
    assert ask(routed, body_of(), "X-LLM-Route: cloud").by == "cloud"
    cloud.clear()
    cloud.set_fault(Fault(hang_seconds=30), on="completions")
    long = {"model": CLOUD_MODEL, "prompt": " tick", "max_tokens": 3000, "stream": True}
    asked = asking(routed, long, path="/v1/completions", times=6)
    eventually(lambda: state(routed, "cloud") != "up", 10, "an end of the cloud's patience")
    eventually(lambda: ask(routed, body_of("tiny")).by == "local", 60, "room for another request")
    answers = [each.answer() for each in asked]
    assert len(cloud.requests_for("completions")) == 6
    served = [answer for answer in answers if answer.status == 200]
    assert [(answer.exit, answer.by) for answer in served] == [(0, "local")] * 3
    for answer in (answer for answer in answers if answer not in served):
        assert (answer.status, answer.error, answer.by) == (503, "queue_full", "gateway")
        assert answer.headers["retry-after"] == "5"
        assert answer.seconds < FIRST_BYTE_SECONDS + AT_ONCE_SECONDS


def test_a_reload_finds_the_cloud_at_once(routed: Machine) -> None:
    # Too long for the local model, so it is refused where the cloud is not in service.
    long = json.dumps(body_of(words=20_000))
    routed.sh(f"printf %s {shlex.quote(long)} > /tmp/long.json")
    send = f"curl -sS -m 10 -o /dev/null -w '%{{http_code}}\\n' --data-binary @/tmp/long.json {API}/v1/chat/completions"
    run_in_background(routed, {"load": f"for i in $(seq 60); do {send}; sleep 0.1; done > /tmp/load 2>&1"})
    routed.sh("for i in 1 2 3; do sleep 1; systemctl reload local-llm-gateway; done")
    assert is_running(routed, "load")
    eventually(lambda: not is_running(routed, "load"), 60, "an end of the load")
    assert routed.sh("sort /tmp/load | uniq -c").split() == ["60", "200"]


# The local side fails

STAND_IN = """
import http.server, os, pathlib, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    rbufsize = 0
    def address_string(self): return ""
    def log_message(self, *_): pass
    def do_GET(self): self.answer(200)
    def do_POST(self):
        how = pathlib.Path("/tmp/stand-in.how").read_text().strip()
        if how == "reset": return
        self.rfile.read(int(self.headers["Content-Length"]))
        with open("/tmp/stand-in.seen", "a") as seen: seen.write(str(self.headers))
        if how == "junk": self.wfile.write(b"no HTTP")
        if how.isdigit(): self.answer(int(how))
    def answer(self, status):
        self.send_response(status); self.send_header("Content-Length", "0"); self.end_headers()
os.umask(0o007)
socketserver.ThreadingUnixStreamServer("/run/local-llm/llama.sock", Handler).serve_forever()
"""
"""In llama-server's place: it is healthy, notes what headers it gets, and does with requests as it is told. To hang up
on a request that was not read is a reset."""


@contextmanager
def stand_in(machine: Machine) -> Iterator[Callable[[str], None]]:
    """The program in place of llama-server; gives what tells it how to answer: reset, empty, junk, or a status."""

    def answer_with(how: str) -> None:
        machine.sh(f"echo {how} > /tmp/stand-in.how")

    answer_with("200")
    machine.sh(
        "systemctl stop local-llm; rm -f /tmp/stand-in.seen; mkdir -p /run/local-llm; rm -f /run/local-llm/llama.sock\n"
        "chown local-llm:local-llm /run/local-llm\n"
        "systemd-run --quiet --collect --unit=stand-in --property=User=local-llm "
        f"python3 -c {shlex.quote(STAND_IN)}\n"
        f"MAINPID=$$ {PUBLISH_SOCKET} /run/local-llm/llama.sock local-llm"
    )
    health = f"curl -fsS --unix-socket {SOCKET} http://localhost/health && echo up || true"
    try:
        eventually(lambda: machine.sh(health) == state(machine, "local") == "up", 20, "the stand-in")
        yield answer_with
    finally:
        machine.sh("systemctl stop stand-in; systemctl start local-llm; rm -f /tmp/stand-in.*")
        eventually(machine.answers, 30, "an answer")


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


def test_the_cloud_stands_in_for_a_model_that_fails(routed: Machine, cloud: Cloud) -> None:
    with stand_in(routed) as answer_with:
        for how in ("reset", "empty", "junk", "500", "503"):
            answer_with(how)
            for stream in (False, True):
                answer = ask(routed, body_of(stream=stream))
                assert (answer.exit, answer.status, answer.by) == (0, 200, "cloud"), how
                assert answer.seconds < AT_ONCE_SECONDS
            cloud.clear()
            for private in ((body_of("tiny"),), (body_of(), "X-LLM-Route: local")):
                assert ask(routed, *private).status >= 500
            assert cloud.requests_for("completions") == []


def test_a_cloud_that_fails_as_well_is_passed_on(routed: Machine, cloud: Cloud) -> None:
    with stopped(routed):
        for failure, status, by in (
            ("status-401", 401, "cloud"),
            ("status-429", 429, "cloud"),
            ("status-500", 500, "cloud"),
            ("hang", 504, "gateway"),
        ):
            eventually(lambda: state(routed, "cloud") == "up", 20, "the cloud")
            FAILURES[failure](cloud)
            answer = ask(routed, body_of(stream=True))
            assert (answer.exit, answer.status, answer.by) == (0, status, by)
            assert answer.seconds < (FIRST_BYTE_SECONDS if failure == "hang" else 0) + AT_ONCE_SECONDS
            cloud.recover()
        answer = ask(routed, body_of())
        assert (answer.status, answer.error, answer.by) == (503, "model_unavailable", "gateway")
        assert answer.seconds < AT_ONCE_SECONDS


@pytest.mark.parametrize(("model", "by", "statuses"), [(CLOUD_MODEL, "cloud", {200}), ("tiny", "gateway", {502, 503})])
def test_the_cloud_stands_in_for_a_model_that_dies_over_it(
    routed: Machine, cloud: Cloud, model: str, by: str, statuses: set[int]
) -> None:
    [asked] = asking(routed, {**LONG, "model": model}, path="/v1/completions")
    sessions = "curl -sS http://127.0.0.1:8766/metrics | grep -F 'haproxy_backend_current_sessions{proxy=\"llm\"}'"
    eventually(lambda: routed.sh(sessions).endswith(" 1"), 10, "a request at work")
    routed.sh("systemctl kill -s KILL local-llm")
    answer = asked.answer()
    assert (answer.exit, answer.by) == (0, by)
    assert answer.status in statuses
    assert len(cloud.requests_for("completions")) == (1 if by == "cloud" else 0)
    eventually(routed.answers, 30, "an answer of the model")


@pytest.mark.parametrize("model", [CLOUD_MODEL, "tiny"])
def test_a_stream_of_a_model_that_dies_stays_broken(routed: Machine, cloud: Cloud, model: str) -> None:
    [asked] = asking(routed, {**LONG, "model": model, "stream": True}, path="/v1/completions")
    eventually(asked.is_being_answered, 10, "first tokens")
    routed.sh("systemctl kill -s KILL local-llm")
    answer = asked.answer()
    assert answer.exit != 0
    assert (answer.status, answer.by) == (200, "local")
    assert "[DONE]" not in answer.body
    assert cloud.requests_for("completions") == []
    eventually(routed.answers, 30, "an answer of the model")


def test_a_pause_in_a_local_stream_does_not_end_it(routed: Machine, cloud: Cloud) -> None:
    [asked] = asking(routed, {**LONG, "stream": True}, path="/v1/completions")
    eventually(asked.is_being_answered, 10, "first tokens")
    with silent(routed):
        eventually(lambda: state(routed, "local") == "down", 20, "a local side that is down")
    answer = asked.answer()
    assert (answer.exit, answer.by) == (0, "local")
    assert answer.body.rstrip().endswith("data: [DONE]")
    assert cloud.requests_for("completions") == []


REFUSED_HERE: dict[str, dict[str, Any]] = {
    "two answers": {"n": 2},
    "a part that is no text": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
    "a picture": {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
    "a schema of another dialect": {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
}  # fmt: skip
"""What llama-server does not take, and a cloud may."""


@pytest.mark.parametrize("refused", REFUSED_HERE)
def test_what_the_local_model_refuses_is_the_clouds_where_it_may_leave(
    routed: Machine, cloud: Cloud, refused: str
) -> None:
    fields = REFUSED_HERE[refused]
    answer = ask(routed, body_of(**fields))
    assert (answer.status, answer.by, answer.reason) == (200, "cloud", "short-prompt")
    assert len(cloud.requests_for("completions")) == 1
    for body, headers in ((body_of("tiny", **fields), ()), (body_of(**fields), ("X-LLM-Route: local",))):
        answer = ask(routed, body, *headers)
        assert (answer.status, answer.by) == (400, "local")
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
    assert len(cloud.requests_for("completions")) == 1


@contextmanager
def silent(machine: Machine) -> Iterator[None]:
    """llama-server holds still, with all its connections."""
    pid = machine.main_pid()
    machine.sh(f"kill -STOP {pid}")
    try:
        yield
    finally:
        machine.sh(f"kill -CONT {pid}")
        eventually(lambda: state(machine, "local") != "down", 20, "the local side")


def test_the_cloud_stands_in_for_a_full_queue(routed: Machine, cloud: Cloud) -> None:
    body = shlex.quote(json.dumps({**LONG, "model": "tiny"}))
    start = f"curl -sS -m 120 -o /dev/null -d {body} {API}/v1/completions"
    routed.sh("\n".join(f"systemd-run --quiet --collect --unit=fill{number} {start}" for number in range(3)))
    eventually(lambda: state(routed, "local") == "full", 10, "a full queue")
    answer = ask(routed, body_of())
    assert (answer.status, answer.by, answer.reason) == (200, "cloud", "short-prompt")
    answer = ask(routed, body_of("tiny"))
    assert (answer.status, answer.error, answer.by) == (503, "queue_full", "gateway")
    assert len(cloud.requests_for("completions")) == 1
    routed.sh("systemctl stop fill0 fill1 fill2")
    eventually(routed.answers, 30, "a free slot")


# Privacy

LOCAL_ONLY: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "by name": (body_of("tiny"), ()),
    "by name, against everything": (
        body_of("tiny", words=600, service_tier="priority", reasoning_effort="high", max_completion_tokens=9000),
        ("X-LLM-Route: cloud",),
    ),
    "by another name": (body_of("local-llm/tiny", service_tier="priority"), ()),
    "by header": (body_of(), ("X-LLM-Route: local",)),
    "by header, against everything": (
        body_of(words=600, service_tier="priority", max_tokens=9000),
        ("X-LLM-Route: cloud", "X-LLM-Route: local"),
    ),
    "too long": (body_of("tiny", words=20_000), ()),
    "nameless": (body_of(None), ("X-LLM-Route: cloud",)),
    "streamed": (body_of("tiny", stream=True), ()),
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
    with silent(routed):
        eventually(lambda: state(routed, "local") == "down", 20, "a local side that is down")
        assert {answer.by for answer in send_all()} == {"gateway"}
    assert cloud.requests_for("completions") == []


@contextmanager
def private_load(machine: Machine, cloud: Cloud) -> Iterator[None]:
    """A client that asks all the while, in all the ways that keep a request on the machine.

    Afterwards: it was answered by the local model and by the gateway, and the cloud has seen nothing of it.
    """
    asks = [
        _script("/tmp/private", headers, "/v1/chat/completions", _printed({**body, "user": f"private-{number}"}))
        for number, (body, headers) in enumerate(LOCAL_ONLY.values())
    ]
    long = {**LONG, "model": "tiny", "n_predict": 2000, "stream": True, "user": "private-long"}
    asks.append(_script("/tmp/private", (), "/v1/completions", _printed(long)))
    rounds = "\n".join(f"( {script} ) | grep -i '^x-llm-backend'" for script in asks)
    run_in_background(machine, {"load": f"while :; do\n{rounds}\ndone > /tmp/load 2>/dev/null"})
    try:
        yield
        answered = machine.sh("tr -d '\\r' < /tmp/load | sort -u").lower().splitlines()
        assert answered == ["x-llm-backend: gateway", "x-llm-backend: local"]
    finally:
        machine.sh("systemctl stop load; rm -rf /tmp/private")
    seen = b"".join(request.body for request in cloud.requests)
    assert CLOUD_MODEL.encode() in seen
    assert b"private-" not in seen


def test_what_is_local_stays_while_everything_fails(routed: Machine, cloud: Cloud) -> None:
    with private_load(routed, cloud):
        routed.sh("systemctl kill -s KILL local-llm")
        assert ask(routed, body_of()).by == "cloud"
        eventually(routed.answers, 30, "an answer")
        with silent(routed):
            eventually(lambda: state(routed, "local") == "down", 20, "a local side that is down")
            assert ask(routed, body_of()).by == "cloud"
        for fault in (Fault(status=500), Fault(reset=True), Fault(hang_seconds=FIRST_BYTE_SECONDS + 1)):
            cloud.set_fault(fault, on="completions")
            assert ask(routed, body_of(stream=True), "X-LLM-Route: cloud").by == "local"
        assert state(routed, "cloud") != "up"
        cloud.recover()
        routed.sh("for i in 1 2 3; do sleep 0.5; systemctl reload local-llm-gateway; done")
        wait_until_up(routed)
        drill = json.loads(routed.sh("local-llm drill --json"))
        assert {side["answered_by"] for side in drill["sides"]} == {"local", "cloud"}, drill
        stop_resolver(routed)
        try:
            routed.sh("systemctl restart local-llm-gateway")
            eventually(lambda: state(routed, "local") == "up", 20, "the local side")
            assert state(routed, "cloud") == "down"
        finally:
            start_resolver(routed, cloud)
        wait_until_up(routed)


# Key


def test_the_key_lies_nowhere_but_in_its_file(routed: Machine) -> None:
    assert routed.sh("stat -c '%a %U:%G' /etc/local-llm/secrets/cloud.env /etc/local-llm/secrets") == (
        "600 root:root\n700 root:root"
    )
    ask(routed, body_of(), "X-LLM-Route: cloud")
    routed.sh(
        "install -d -o nobody /var/tmp/seen; systemd-run --quiet --collect --unit=curious --property=User=nobody "
        "sh -c 'while :; do cat /tmp/pyinfra-* >> /var/tmp/seen/all 2>/dev/null; done'"
    )
    loud = ("deploy.py", "--debug", "--diff", "-vvv")
    refused = replace(routed, environment={"LOCAL_LLM_CLOUD_KEY": f"{CLOUD_KEY}-wrong"}).deploy(*loud)
    assert refused.status == 1
    assert "it refuses the key" in refused.output
    right = routed.deploy(*loud)
    assert right.succeeded, right.output
    assert right.changed == 3  # the key, the unit with its stamp, the restart
    for run in (refused, right):
        assert CLOUD_KEY not in run.output + json.dumps(run.report)
    routed.sh("systemctl stop curious")
    found = routed.sh(f"grep -rlF {CLOUD_KEY} /etc /opt /var/log /var/lib /var/tmp /run /tmp /usr/local || true")
    assert found == "/etc/local-llm/secrets/cloud.env"
    routed.sh("rm -r /var/tmp/seen")
    assert routed.sh(f"journalctl -o cat | grep -cF {CLOUD_KEY} || true") == "0"
    assert routed.sh(f"ps -eo args | grep -F {CLOUD_KEY} | grep -vc grep || true") == "0"
    assert CLOUD_KEY not in routed.sh("systemctl show local-llm-gateway; systemctl cat local-llm-gateway")
    wait_until_up(routed)


def test_a_deploy_without_the_key_keeps_the_one_on_the_host(routed: Machine) -> None:
    assert replace(routed, environment={}).deploy().changed == 0


def test_the_model_gets_no_credentials_of_anybody(routed: Machine) -> None:
    with stand_in(routed):
        assert ask(routed, body_of("tiny"), *CREDENTIALS).by == "local"
        seen = routed.sh("cat /tmp/stand-in.seen").lower()
    assert "host:" in seen
    assert "of-the-client" not in seen
    assert CLOUD_KEY not in seen


# Counters, drill and words


def counts(machine: Machine, *keys: tuple[str, str]) -> list[int]:
    """How many requests were answered, by backend and reason."""
    _, _, text = machine.http("http://127.0.0.1:8766/requests")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return [int(values[f'local_llm_requests_total{{backend="{by}",reason="{reason}"}}']) for by, reason in keys]


def test_requests_are_counted_by_backend_and_reason(routed: Machine) -> None:
    keys = ("cloud", "priority"), ("local", "utility-task"), ("gateway", "local-model")
    before = counts(routed, *keys)
    assert ask(routed, body_of(service_tier="priority")).by == "cloud"
    assert ask(routed, body_of(), "X-LLM-Task: utility").by == "local"
    assert ask(routed, {"model": "tiny", "input": "words"}, path="/v1/embeddings").by == "gateway"
    assert counts(routed, *keys) == [number + 1 for number in before]
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
    # All at once: what is on its way counts.
    cloud.set_fault(Fault(hang_seconds=0.5), on="completions")
    answers = [each.answer() for each in asking(limited, long, path="/v1/messages", times=8)]
    assert sorted(answer.by for answer in answers) == ["cloud"] * 3 + ["gateway"] * 5
    assert len(cloud.requests_for("completions")) == 3
    cloud.recover()
    [*_, request] = cloud.requests_for("completions")
    assert request.path == f"{PREFIX}/messages"
    assert (request.headers["x-api-key"], request.headers["anthropic-version"]) == (CLOUD_KEY, "2023-06-01")
    assert request.headers["Authorization"] is None
    assert ask(limited, body_of(), "X-LLM-Route: cloud", path="/v1/messages").by == "local"
    answer = ask(limited, long, path="/v1/messages")
    assert (answer.status, answer.error, answer.by) == (503, "cloud_unavailable", "gateway")
    assert int(answer.headers["retry-after"]) > 60
    assert len(cloud.requests_for("completions")) == 3
    # Five were served by now, and some of the deploy's own checks; what is refused does not count.
    embeddings = {"model": "tiny", "input": "words"}
    assert {ask(limited, embeddings, path="/v1/embeddings").status for _ in range(12)} == {400}
    answers = [ask(limited, body_of("tiny"), path="/v1/messages") for _ in range(8)]
    served = [answer.status for answer in answers].count(200)
    assert [answer.status for answer in answers] == [200] * served + [429] * (8 - served)
    assert 0 < served < 8
    assert answers[-1].error == "rate_limit_exceeded"
    assert answers[-1].headers["retry-after"] == "60"
    # Who calls himself the host's own check is limited like everybody.
    assert ask(limited, body_of("tiny"), "X-LLM-Probe: 1", path="/v1/messages").status == 429
    eventually(lambda: ask(limited, body_of("tiny"), path="/v1/messages").status == 200, 80, "a minute's next request")


@pytest.fixture
def tight(routed: Machine) -> Iterator[Machine]:
    """The machine with a short context for each of two requests at once, nothing shared between requests, and little
    patience with the local side."""
    machine = with_settings(
        routed,
        context_tokens=2048,
        parallel=2,
        share_prompt_cache=False,
        route_long_prompt_tokens=4000,
        request_timeout_seconds=LOCAL_PATIENCE_SECONDS,
        queue_timeout_seconds=QUEUE_PATIENCE_SECONDS,
    )
    run = machine.deploy()
    assert run.succeeded, run.output
    wait_until_up(machine)
    yield machine
    assert routed.deploy().succeeded


def test_a_short_context_and_little_patience(tight: Machine, cloud: Cloud) -> None:
    by_count = {**body_of(), "messages": [{"role": "user", "content": " 1" * 2500}]}
    by_estimate = body_of(words=2500)
    assert [explain(tight, body, "X-LLM-Task: utility")["would_use"] for body in (by_count, by_estimate)] == [
        "local", "cloud",
    ]  # fmt: skip
    for body in (by_count, by_estimate):
        answer = ask(tight, body, "X-LLM-Task: utility")
        assert (answer.status, answer.by, answer.reason) == (200, "cloud", "utility-task")
    answer = ask(tight, {**by_count, "model": "tiny"})
    assert (answer.status, answer.error, answer.by) == (413, "context_length_exceeded", "local")

    # Who asks the same again learns nothing by it.
    for _ in range(3):
        usage = json.loads(ask(tight, body_of("tiny")).body)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    answer = ask(tight, body_of("tiny", cache_prompt=True))
    assert (answer.status, answer.error, answer.by) == (400, "prompt_cache_off", "gateway")

    # Two are at work, two wait.
    cloud.clear()
    keys = ("gateway", "local-model"), ("cloud", "short-prompt")
    before = counts(tight, *keys)
    with silent(tight):
        asked = [asking(tight, body_of(model))[0] for model in ("tiny", CLOUD_MODEL) * 2]
        private_works, works, private_waits, waits = (each.answer() for each in asked)
    assert (private_works.status, private_works.error, private_works.by) == (504, "model_timeout", "gateway")
    assert (works.status, works.by) == (200, "cloud")
    assert (private_waits.status, private_waits.error, private_waits.by) == (503, "model_unavailable", "gateway")
    assert (waits.status, waits.by) == (200, "cloud")
    for answer, patience in (
        (private_works, LOCAL_PATIENCE_SECONDS), (works, LOCAL_PATIENCE_SECONDS),
        (private_waits, QUEUE_PATIENCE_SECONDS), (waits, QUEUE_PATIENCE_SECONDS),
    ):  # fmt: skip
        assert patience <= answer.seconds < patience + AT_ONCE_SECONDS
    assert counts(tight, *keys) == [number + 2 for number in before]
    assert [request.json["model"] for request in cloud.requests_for("completions")] == [CLOUD_MODEL] * 2


def test_a_second_deploy_changes_nothing(routed: Machine) -> None:
    assert routed.deploy().changed == 0
