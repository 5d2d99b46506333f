"""What one question costs the local model, by the way that a real OpenClaw asks it.

The prompts are OpenClaw's own, counted by llama-server with Qwen2.5's vocabulary and chat template; a second
llama-server, with a model of the published size, then reads and answers prompts of exactly these lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import cache_folder, print_report, progress
from benchmarks.llama_server import Server, deployed_environment, newest_binary, random_prompt, running, size_note
from benchmarks.synthetic_model import DEFAULT, ensure_model
from benchmarks.token_estimate import ensure_vocabulary_model
from sandbox.common import SandboxError, cache_dir, fail
from sandbox.openclaw import OPENCLAW, PROGRAMS, openclaw_tree
from settings import Settings
from tasks import openclaw

QUESTION = "Write a regular expression for a date like 2026-11-22."
ANSWER_TOKENS = 60
TURN_SECONDS = 300
COUNTED_CONTEXT = 32_768
SETTINGS = Settings()
MODEL = openclaw.model_reference(SETTINGS)

AGENT = ("agent", "--local", "--agent", "main", "--session-id", "one", "--message", QUESTION, "--json")
ASKED = {
    "agent turn": (AGENT, False),
    "agent turn with `openclaw_slim`": (AGENT, True),
    "completion: `infer model run`, utility tasks": (
        ("infer", "model", "run", "--local", "--model", MODEL, "--prompt", QUESTION, "--json"),
        False,
    ),
}


def prompt_tokens(server: Server) -> int:
    """Tokens of all prompts that the server has read, by its own counter."""
    with closing(server.connection(10)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("llamacpp:prompt_tokens_total "))


def configuration(port: int, plugin: Path | None) -> dict[str, Any]:
    """OpenClaw's configuration as the deploy writes it, with the local model as the agent's own."""
    settings = SETTINGS.model_copy(update={"api_port": port, "openclaw_slim": plugin is not None})
    config = openclaw.patch(settings, {})
    config["agents"]["defaults"]["model"] = {"primary": MODEL}
    if plugin is not None:
        config["plugins"]["load"] = {"paths": [str(plugin)]}
    return config


def write_plugin(folder: Path) -> Path:
    """The plugin's files as the deploy writes them."""
    folder.mkdir()
    for file in openclaw.plugin_files(SETTINGS.model_copy(update={"openclaw_slim": True})):
        (folder / Path(file.path).name).write_text(file.content)
    return folder


def ask(tree: Path, home: Path, port: int, arguments: tuple[str, ...], *, slim: bool) -> None:
    """One command of a fresh OpenClaw. Raises SandboxError with its words when it fails."""
    state = home / ".openclaw"
    state.mkdir(mode=0o700)
    file = state / "openclaw.json"
    file.write_text(json.dumps(configuration(port, write_plugin(home / "slim") if slim else None)))
    file.chmod(0o600)
    done = subprocess.run(
        ["openclaw", *arguments],
        env={"PATH": os.pathsep.join([str(tree / PROGRAMS), os.environ["PATH"]]), "HOME": str(home), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TURN_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SandboxError(f"openclaw {arguments[0]} failed: {(done.stderr or done.stdout)[-500:]}")


def counted(tree: Path, binary: Path, arguments: tuple[str, ...], *, slim: bool) -> int:
    """Prompt tokens of one command, all its requests together."""
    vocabulary = ensure_vocabulary_model(cache_folder() / "qwen2-vocabulary.gguf")
    options = (
        "--ctx-size",
        str(COUNTED_CONTEXT),
        "--metrics",
        "--no-cache-prompt",
        "--n-predict",
        "8",
        "--parallel",
        "1",
    )
    with (
        tempfile.TemporaryDirectory(prefix="local-llm-") as folder,
        running(binary, vocabulary, Path(folder), {}, (*options, "--alias", SETTINGS.selected_model.name)) as server,
    ):
        home = Path(folder) / "home"
        home.mkdir()
        ask(tree, home, server.port, arguments, slim=slim)
        return prompt_tokens(server)


@contextmanager
def deployed(binary: Path, model: Path) -> Iterator[Server]:
    """llama-server as the deploy runs it."""
    with (
        tempfile.TemporaryDirectory(prefix="local-llm-") as folder,
        running(binary, model, Path(folder), deployed_environment(SETTINGS)) as server,
    ):
        yield server


def answer_seconds(server: Server, tokens: int, seed: int) -> float:
    """Wall time of reading a prompt that the server has not seen, and writing an answer."""
    began = time.monotonic()
    server.complete(random_prompt(tokens, seed), ANSWER_TOKENS)
    return time.monotonic() - began


def times_less(value: float, peer: float) -> str:
    """How many times the peer's value holds this one."""
    return f"{peer / value:.0f}"


def main(argv: list[str] | None = None) -> int:
    """`python -m benchmarks.openclaw_turn`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openclaw_turn", description=__doc__)
    parser.add_argument("--binary", type=Path, help="llama-server (default: the newest below the sandbox's cache)")
    parser.add_argument("--tokens-only", action="store_true", help="count, and leave out the minutes of computing")
    options = parser.parse_args(argv)
    try:
        tree = openclaw_tree()
        binary = options.binary or newest_binary(cache_dir())
        tokens: dict[str, int] = {}
        for name, (arguments, slim) in ASKED.items():
            progress(f"counting: {name}")
            tokens[name] = counted(tree, binary, arguments, slim=slim)
        seconds: dict[str, float] = {}
        model = ensure_model()
        if not options.tokens_only:
            with deployed(binary, model) as server:
                for seed, (name, count) in enumerate(tokens.items()):
                    progress(f"computing: {name}, {count} tokens")
                    seconds[name] = answer_seconds(server, count, seed)
    except SandboxError as error:
        return fail(error)
    peer, *_ = tokens
    rows = [
        (
            name,
            f"{count:,}",
            times_less(count, tokens[peer]),
            *((f"{seconds[name]:.1f}", times_less(seconds[name], seconds[peer])) if seconds else ("–", "–")),
        )
        for name, count in tokens.items()
    ]
    print_report(
        "One question through OpenClaw, answered by the local model",
        ("way", "prompt tokens", "times less", f"seconds with {ANSWER_TOKENS} answer tokens", "times less"),
        rows,
        f"OpenClaw {OPENCLAW}, a fresh installation, “{QUESTION}”. Nothing was cached.",
        size_note(DEFAULT),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
