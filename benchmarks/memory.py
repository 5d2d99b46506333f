"""Resident memory and speed of llama-server with what the deploy writes, against llama-server's own defaults.

Each variant gets the environment of tasks/service.py, a request of 1,200 tokens and one of 300, 60 generated tokens
each. A variant is a list of NAME=VALUE: names in lower case are settings, names in upper case are variables of
llama-server that are added. An empty list is every default.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import print_report, progress, ratio
from benchmarks.llama_server import (
    Answer,
    Memory,
    Server,
    add_binary_options,
    chosen_binary,
    deployed_environment,
    random_prompt,
    running,
    size_note,
)
from benchmarks.synthetic_model import DEFAULT, SHAPES, Shape, ensure_model
from sandbox.common import SandboxError, fail
from settings import parse

PEER = "llama-server's own defaults"
VARIANTS = ("", "context_tokens=2048")
PROMPTS = (1_200, 300)
GENERATED = 60
FILLING_PROMPT = 1_900
"""Tokens of each prompt that fills the prompt cache: fits a context of 2,048."""
FILLING_PROMPTS_AT_MOST = 20
COLUMNS = (
    "variant",
    "resident, MB",
    "not file, MB",
    "highest, MB",
    "ratio of highest",
    "cache full: resident, MB",
    "cache full: highest, MB",
    "prompt, tokens/s",
    "generation, tokens/s",
)


@dataclass(frozen=True)
class Measured:
    """One variant: after the two requests, the longer one's timings, and with a full prompt cache."""

    name: str
    served: Memory
    answer: Answer
    filled: Memory | None


def main(argv: list[str] | None = None) -> int:
    """Measure the peer and every variant; print the table."""
    options = _parser().parse_args(argv)
    try:
        binary = chosen_binary(options)
        wanted = {PEER: (DEFAULT, dict[str, str]())} if options.peer else {}
        wanted |= {variant or "every default": parse_variant(variant) for variant in options.variants or VARIANTS}
        results = [measure(name, binary, shape, added, fill=options.fill) for name, (shape, added) in wanted.items()]
    except SandboxError as error:
        return fail(error)
    notes = " ".join(size_note(shape) for shape in dict.fromkeys(shape for shape, _ in wanted.values()))
    peer = results[0].served.highest if options.peer else 0
    print_report("Memory", COLUMNS, [_row(result, peer) for result in results], f"{notes} MB are 10^6 bytes.")
    return 0


def parse_variant(variant: str) -> tuple[Shape, dict[str, str]]:
    """The model and the environment of one variant. Raises SandboxError when a setting is wrong."""
    chosen = dict(pair.split("=", 1) for pair in variant.split())
    settings, problems = parse({name: _value(text) for name, text in chosen.items() if name.islower()})
    if settings is None:
        raise SandboxError("; ".join(problems))
    if settings.model not in SHAPES:
        raise SandboxError(f"model = {settings.model!r}: allowed: {', '.join(SHAPES)}")
    return SHAPES[settings.model], deployed_environment(settings) | {
        name: text for name, text in chosen.items() if not name.islower()
    }


def measure(name: str, binary: Path, shape: Shape, environment: Mapping[str, str], *, fill: bool) -> Measured:
    """Start the server, ask it, read its memory, stop it."""
    model = ensure_model(shape)
    progress(f"{name}: starting")
    with (
        tempfile.TemporaryDirectory(prefix="local-llm-") as folder,
        running(binary, model, Path(folder), environment) as server,
    ):
        answers = [server.complete(random_prompt(tokens, seed=tokens), GENERATED) for tokens in PROMPTS]
        served = server.memory()
        progress(f"{name}: {served.resident / 1e6:.0f} MB resident, highest {served.highest / 1e6:.0f} MB")
        # The peer's cache holds 8 GiB: filling it takes hours.
        can_be_filled = environment.get("LLAMA_ARG_CACHE_RAM", "0") != "0"
        return Measured(name, served, answers[0], fill_prompt_cache(server) if fill and can_be_filled else None)


def fill_prompt_cache(server: Server) -> Memory:
    """Send different prompts until the prompt cache drops the oldest; the memory after that."""
    for number in range(FILLING_PROMPTS_AT_MOST):
        server.complete(random_prompt(FILLING_PROMPT, seed=-1 - number), 1)
        progress(f"  prompt {number + 1}: {server.memory().resident / 1e6:.0f} MB resident")
        if server.has_filled_prompt_cache():
            return server.memory()
    raise SandboxError(f"The prompt cache was not full after {FILLING_PROMPTS_AT_MOST} prompts.")


def _row(result: Measured, peer: int) -> list[str]:
    filled = result.filled
    return [
        result.name,
        _mb(result.served.resident),
        _mb(result.served.anonymous),
        _mb(result.served.highest),
        ratio(result.served.highest, peer),
        _mb(filled.resident) if filled else "–",
        _mb(filled.highest) if filled else "–",
        f"{result.answer.prompt_tokens_per_second:.1f}",
        f"{result.answer.generated_tokens_per_second:.1f}",
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _value(text: str) -> Any:
    """`2048` and `True` as their types, all else as text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: --variant '' --variant kv_cache_type=q8_0 --variant 'parallel=2 LLAMA_ARG_UBATCH=128'",
    )
    add_binary_options(parser)
    parser.add_argument(
        "--variant",
        dest="variants",
        action="append",
        metavar="LIST",
        help=f"what to measure, repeatable (default: {', '.join(map(repr, VARIANTS))})",
    )
    parser.add_argument("--fill", action="store_true", help="fill the prompt cache as well: some minutes a variant")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help=f"leave out {PEER}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
