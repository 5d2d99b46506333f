"""What the benchmarks compute before and after measuring."""

import json

import pytest

from benchmarks import build, memory, noop_deploy, synthetic_model
from benchmarks.common import cpu_model, markdown_table, percentile, ratio
from benchmarks.llama_server import deployed_environment, random_prompt
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

    changed = memory.variant_environment("context_tokens=2048 LLAMA_ARG_UBATCH=128")

    assert plain["LLAMA_ARG_CTX_SIZE"] == "16384"
    assert changed == plain | {"LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_ARG_UBATCH": "128"}


def test_a_variant_with_a_wrong_setting_is_refused() -> None:
    with pytest.raises(SandboxError, match="context_tokens"):
        memory.variant_environment("context_tokens=1")


def test_prompts_of_different_seeds_share_no_beginning() -> None:
    beginnings = {random_prompt(1, seed)[0] for seed in range(-20, 20)}

    assert len(beginnings) == 40
    assert random_prompt(5, 1) == random_prompt(5, 1)


def test_synthetic_model_has_the_published_size_within_two_per_cent() -> None:
    kinds = {synthetic_model.Q4_K: 144, synthetic_model.Q6_K: 210}
    weights = sum(
        rows * columns // 256 * kinds[kind] if kind is not None else 4 * columns
        for _, rows, columns, kind in synthetic_model.tensors()
    )
    tokens, merges = synthetic_model.vocabulary()

    assert weights / synthetic_model.PUBLISHED_BYTES == pytest.approx(1, abs=synthetic_model.SIZE_TOLERANCE)
    assert len(tokens) == len(set(tokens)) == 151_936
    assert len(merges) == len(set(merges)) == 151_387


def test_q4_k_m_gives_more_bits_to_the_first_the_last_and_every_third_layer_between() -> None:
    better = [layer for layer in range(28) if synthetic_model.has_more_bits(layer)]

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
