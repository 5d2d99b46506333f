"""What the benchmarks compute before and after measuring."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import build, fallback, memory, noop_deploy, reload, routing, synthetic_model, token_estimate
from benchmarks.common import cpu_model, markdown_table, percentile, ratio
from benchmarks.fallback import Client
from benchmarks.llama_server import deployed_environment, random_prompt
from benchmarks.probes import reload as reload_probe
from benchmarks.second_gateway import gateway_process, stub_configuration
from benchmarks.token_estimate import Sample
from checks.contract import paths
from operations.llama_cpp import CMAKE_FLAGS
from sandbox.common import SandboxError
from settings import Settings


def test_percentiles_lie_between_the_neighbours() -> None:
    values = [float(value) for value in range(101)]

    assert percentile(values, 95) == pytest.approx(95)
    assert percentile(values, 99) == pytest.approx(99)


def test_ratio_to_a_peer_without_a_value_is_a_dash() -> None:
    assert ratio(3, 2) == "1.50"
    assert ratio(3, 0) == "–"


def test_markdown_table_aligns_numbers_to_the_right() -> None:
    assert markdown_table(("a", "b"), [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t\t: 1\n", "AMD EPYC"),
        ("CPU part\t: 0xd0c\n", "0xd0c"),
        ("", "unknown CPU"),
    ],
)
def test_cpu_model_is_read_from_cpuinfo(cpuinfo: str, name: str) -> None:
    assert cpu_model(cpuinfo) == name


def test_our_build_has_the_deploys_flags_without_its_compiler_cache() -> None:
    configure, compile_ = build.our_commands()

    missing = {flag for flag in CMAKE_FLAGS if flag not in configure}
    assert missing == {"-DCMAKE_C_COMPILER_LAUNCHER=ccache", "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"}
    assert compile_[-2:] == ["llama-server", "llama-bench"]


def test_every_variant_of_memory_starts_from_what_the_deploy_writes() -> None:
    plain = deployed_environment(Settings())

    shape, changed = memory.parse_variant("context_tokens=2048 LLAMA_ARG_UBATCH=128")

    assert plain["LLAMA_ARG_CTX_SIZE"] == "16384"
    assert shape == synthetic_model.DEFAULT
    assert changed == plain | {"LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_ARG_UBATCH": "128"}


def test_a_variant_with_a_wrong_setting_is_refused() -> None:
    with pytest.raises(SandboxError, match="context_tokens"):
        memory.parse_variant("context_tokens=1")
    larger, _ = memory.parse_variant("model=qwen2.5-3b-instruct")
    assert larger == synthetic_model.SHAPES["qwen2.5-3b-instruct"]


def test_prompts_of_different_seeds_share_no_beginning() -> None:
    beginnings = {random_prompt(1, seed)[0] for seed in range(-20, 20)}

    assert len(beginnings) == 40
    assert random_prompt(5, 1) == random_prompt(5, 1)


@pytest.mark.parametrize("shape", synthetic_model.SHAPES.values(), ids=lambda shape: str(shape.model))
def test_synthetic_models_have_the_published_size_within_two_per_cent(shape: synthetic_model.Shape) -> None:
    kinds = {synthetic_model.Q4_K: 144, synthetic_model.Q6_K: 210}
    weights = sum(
        rows * columns // 256 * kinds[kind] if kind is not None else 4 * columns
        for _, rows, columns, kind in synthetic_model.tensors(shape)
    )
    tokens, merges = synthetic_model.vocabulary()

    assert weights / shape.published_bytes == pytest.approx(1, abs=synthetic_model.SIZE_TOLERANCE)
    assert len(tokens) == len(set(tokens)) == 151_936
    assert len(merges) == len(set(merges)) == 151_387


def test_q4_k_m_gives_more_bits_to_the_first_the_last_and_every_third_layer_between() -> None:
    better = [layer for layer in range(28) if synthetic_model.DEFAULT.has_more_bits(layer)]

    assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("--> Connecting to hosts...\n", "connect"),
        ("--> Starting operation: Service | Run llama-server \n", "Service | Run llama-server"),
        ("    [host] No changes\n", None),
    ],
)
def test_phases_are_read_off_pyinfras_messages(line: str, phase: str | None) -> None:
    assert noop_deploy.phase_of(line) == phase


def test_durations_add_up_to_the_whole() -> None:
    marks = [(0.0, "imports"), (2.0, "connect"), (2.5, "prepare"), (3.0, "connect")]

    assert noop_deploy.durations(marks, 4.0) == {"imports": 2.0, "connect": 1.5, "prepare": 0.5}


@pytest.mark.parametrize("totals", [{"success": 1, "error": 0}, {"success": 0, "error": 1}])
def test_a_deploy_that_changes_or_breaks_something_is_no_measurement(totals: dict[str, int]) -> None:
    with pytest.raises(SandboxError, match="not as deployed"):
        noop_deploy.require_no_change(json.dumps({"results": {"totals": totals}}))


def test_a_deploy_without_changes_is_one() -> None:
    noop_deploy.require_no_change(json.dumps({"results": {"totals": {"success": 0, "error": 0, "no_change": 20}}}))


def test_output_without_totals_is_an_error() -> None:
    with pytest.raises(SandboxError, match="no totals"):
        noop_deploy.require_no_change("Traceback")


def test_an_estimate_is_off_by_the_ratio_of_bytes_a_token() -> None:
    sample = Sample(body_bytes=4_000, prompt_tokens=800)

    assert sample.bytes_per_token == 5
    assert sample.error(5) == 0
    assert sample.error(4) == pytest.approx(0.25)
    assert sample.error(10) == pytest.approx(-0.5)


def test_the_best_constant_is_no_hostage_of_one_kind_of_text() -> None:
    groups = [[Sample(bytes_, 1_000) for bytes_ in sizes] for sizes in ((4_000, 4_100, 9_000), (4_300,), (1_400,))]

    assert token_estimate.best_constant(groups) == 4.1


def test_chunks_come_from_all_over_the_text_in_the_size_asked_for() -> None:
    text = "".join(f"{number:04d}" for number in range(1_000))

    found = token_estimate.chunks(text, size_bytes=40)

    assert len(found) <= token_estimate.CHUNKS
    assert {len(chunk) for chunk in found} == {40}
    assert found[0].startswith("0000")
    assert int(found[-1][:4]) > 900


def test_chunks_are_sized_in_bytes_not_in_characters() -> None:
    (chunk, *_) = token_estimate.chunks("ä" * 1_000, size_bytes=40)

    assert len(chunk.encode()) == 40


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(SandboxError, match="too short"):
        token_estimate.chunks("short", size_bytes=40)


def test_a_conversation_holds_the_whole_text_and_ends_with_the_user() -> None:
    text = "0123456789" * 250

    body = json.loads(token_estimate.chat_body(text, turns=True, tools=token_estimate.agent_tools()))

    system, *turns = body["messages"]
    assert system["role"] == "system"
    assert "".join(turn["content"] for turn in turns) == text
    assert [turn["role"] for turn in turns[-2:]] == ["assistant", "user"]
    assert {tool["function"]["name"] for tool in body["tools"]} >= {"read", "exec"}


def test_bodies_are_utf_8_unless_escapes_are_asked_for() -> None:
    assert "ä".encode() in token_estimate.chat_body("ä")
    assert b"\\u00e4" in token_estimate.chat_body("ä", escape=True)


def test_the_samples_named_on_the_command_line_need_a_name_and_a_file() -> None:
    with pytest.raises(SystemExit):
        token_estimate.main(["--text", "no-separator"])


@pytest.mark.parametrize("size", [300, 2_000, 6_000, 60_000])
def test_a_routed_request_has_exactly_the_size_that_it_claims(size: int) -> None:
    body = routing.request_body(size)

    assert len(body.encode()) == size
    assert json.loads(body)["model"] == routing.CLOUD_MODEL


def test_the_routed_requests_meet_the_rules_that_they_are_named_for() -> None:
    settings = Settings()

    estimates = {case.reason: case.body_bytes / settings.bytes_per_token for case in routing.CASES}

    assert estimates["short-prompt"] < settings.route_short_prompt_tokens
    assert settings.route_short_prompt_tokens <= estimates["default"] <= settings.route_long_prompt_tokens
    assert settings.route_long_prompt_tokens < estimates["long-prompt"] < settings.context_tokens


def test_what_routing_adds_is_the_difference_to_the_peer() -> None:
    rows = routing.rows("2 kB", {routing.PEER: [0.001] * 3, "gateway": [0.0015] * 3})

    assert rows == [
        [f"2 kB: {routing.PEER}", "1.00", "–", "1.00", "–"],
        ["2 kB: gateway", "1.50", "0.50", "1.50", "0.50"],
    ]


def test_a_second_gateway_shares_no_socket_with_the_deployed_one() -> None:
    settings = Settings(
        api_port=28765, metrics_port=28766, cloud_url="https://cloud.test/v1", cloud_models=("cloud-large",)
    )

    process = gateway_process("second", settings, model_socket="/run/stub.sock")
    configuration = process.configuration

    assert paths.GATEWAY_RUNTIME not in configuration.replace("local-llm-benchmark", "")
    assert paths.SOCKET not in configuration
    assert "server llama unix@/run/stub.sock" in configuration
    assert "bind 127.0.0.1:28765" in configuration
    assert paths.CONFIGURATION not in configuration
    assert all(f"{process.folder}/{name}" in configuration for name in process.files)


def test_the_plain_haproxy_has_the_gateways_buffers() -> None:
    settings = Settings()
    line = next(line for line in gateway_process("x", settings).configuration.splitlines() if "tune.bufsize" in line)

    assert line in routing.peer_configuration(settings).splitlines()
    assert line in stub_configuration(settings, 28785).splitlines()


def answering(**answer: object) -> Client:
    """A client to whom every request is answered like that."""
    whole = {"seconds": 0.25, "status": 200, "headers": {}, "body": "{}"} | answer
    return Client(io.StringIO(), io.StringIO(json.dumps(whole) + "\n"))


def test_only_an_answer_of_the_local_model_is_a_fallback() -> None:
    local = {"x-llm-backend": "local", "x-llm-reason": "asked-cloud"}

    assert answering(headers=local).local_seconds("cloud", "asked-cloud") == 0.25
    with pytest.raises(SandboxError, match="answered by"):
        answering(headers=local | {"x-llm-backend": "cloud"}).local_seconds("cloud", "asked-cloud")
    with pytest.raises(SandboxError, match="503"):
        answering(status=503).local_seconds("cloud", "asked-cloud")


def test_a_client_that_ended_is_no_answer() -> None:
    with pytest.raises(SandboxError, match="ended"):
        Client(io.StringIO(), io.StringIO()).send("local")


def test_the_state_of_the_cloud_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(body='{"cloud":"up"}').wait_for("up")
    monkeypatch.setattr(fallback, "STATE_SECONDS", -1)
    with pytest.raises(SandboxError, match="is down, not up"):
        answering(body='{"cloud":"down"}').wait_for("up")


def test_what_a_fallback_adds_is_taken_from_pairs() -> None:
    samples = [fallback.Sample(0.010, 0.012), fallback.Sample(0.100, 0.103), fallback.Sample(0.020, 0.021)]

    assert fallback.row("500", samples) == ["500", "20.0", "21.0", "2.0", "3.0"]


def test_a_load_is_summed_up() -> None:
    assert reload.summary({"seconds": [0.001] * 1_200, "failures": ["x"]}) == ["1,200", "1", "1.0", "1.0"]


class _Picky(BaseHTTPRequestHandler):
    """Serves /good, breaks every connection off in the middle of /broken, and closes after every third request."""

    protocol_version = "HTTP/1.1"
    served = 0

    def do_GET(self) -> None:
        self.served += 1
        if self.path == "/broken":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(200 if self.path == "/good" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = self.served % 3 == 0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def picky_server() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Picky) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def failures_of(path: str, *, keeps: bool = True) -> tuple[int, list[str]]:
    """Requests and failures of one load on the picky server, for a moment."""
    with picky_server() as port:
        load = reload_probe.Client(port, "GET", path, {}, "", keeps=keeps)
        load.start()
        time.sleep(0.5)
        load.end()
    return len(load.seconds), load.failures


@pytest.mark.parametrize("keeps", [True, False])
def test_a_kept_connection_that_was_closed_between_requests_is_no_failure(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the server needs to close.
    monkeypatch.setattr(reload_probe, "PAUSE_SECONDS", 0.05)

    requests, failures = failures_of("/good", keeps=keeps)

    assert requests > 3
    assert failures == []


@pytest.mark.parametrize("path", ["/broken", "/unknown"])
def test_a_request_that_is_broken_off_or_refused_is_a_failure(path: str) -> None:
    requests, failures = failures_of(path)

    assert len(failures) == requests > 0
