"""Bytes of a request's body that make one prompt token: what the gateway's estimate (`bytes_per_token`) rests on.

A real llama-server with Qwen2's vocabulary and Qwen2.5's chat template counts the prompt tokens of whole chat bodies
that are built of real texts: those of llama.cpp's source at the pinned commit, and others that are named. The body is
what the gateway sees; the tokens are what the model reads.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.common import cache_folder, print_report
from benchmarks.llama_server import Server, add_binary_options, chosen_binary, deployed_environment, running
from sandbox.common import SandboxError, cache_dir, fail, run
from sandbox.source import llama_cpp_repository
from sandbox.tiny_model import CHAT_TEMPLATE, END_OF_TEXT, MESSAGE_END
from settings import Settings

VOCABULARY_FILE = "models/ggml-vocab-qwen2.gguf"
CONTEXT_TOKENS = 32_768
WIDTH = 32
CHUNK_TOKENS = (500, 2_000)
CHUNKS = 12
TURN_BYTES = 600
REQUEST_SECONDS = 300

SOURCE_TEXTS: dict[str, tuple[str, ...]] = {
    "English documentation (Markdown)": (
        "docs/autoparser.md",
        "docs/speculative.md",
        "docs/function-calling.md",
        "tools/server/README-dev.md",
        "skills/code-review/SKILL.md",
    ),
    "Python": ("conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/gguf_writer.py", "gguf-py/gguf/vocab.py"),
    "C++": ("common/chat.cpp", "src/llama-vocab.cpp"),
    "JavaScript and TypeScript": (
        "tools/ui/src/lib/services/chat.service.ts",
        "tools/ui/src/lib/stores/mcp/index.svelte.ts",
        "tools/ui/src/lib/vendors/decimal.js/decimal.js",
    ),
    "JSON": ("tools/ui/package-lock.json",),
    "log of numbers": ("benches/dgx-spark/run-aime-120b-t8-x8-high.log",),
}
"""Kinds of text and the files of llama.cpp's source that they are read from."""

SYSTEM_PROMPT = "You review small changes. Answer in a few short sentences; say so when nothing is wrong."
TURNS = "conversation of several turns"
TOOLS = "agent with tool schemas"
AGENT_TOOLS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("read", "Read the contents of a file. Supports text files and images. Output is truncated to 2000 lines or "
     "50KB; use offset and limit for large files.", {"path": "Path to the file to read (relative or absolute)",
     "offset": "Line number to start reading from (1-indexed)", "limit": "Maximum number of lines to read"}),
    ("edit", "Edit a file by replacing exact text. The old text must match exactly, including whitespace.",
     {"path": "Path to the file to edit", "oldText": "Exact text to find and replace",
      "newText": "New text to replace the old text with"}),
    ("write", "Write content to a file. Creates the file if it does not exist, overwrites it if it does.",
     {"path": "Path to the file to write", "content": "Content to write to the file"}),
    ("exec", "Run a shell command with background continuation. Use yieldMs to continue later through the process "
     "tool. Use a pty for commands that need a terminal.", {"command": "Shell command to execute",
     "workdir": "Working directory (defaults to the current one)", "yieldMs": "Milliseconds to wait before going to "
     "the background", "timeout": "Timeout in seconds (optional, kills the process when it expires)"}),
    ("web_fetch", "Fetch and extract readable content from a URL (HTML to markdown or text). Use for light page "
     "access without browser automation.", {"url": "HTTP or HTTPS URL to fetch.", "extractMode": "Extraction mode "
     "(markdown or text).", "maxChars": "Maximum characters to return (truncated when exceeded)."}),
    ("memory_search", "Search the memory files for prior work, decisions, dates, people, preferences or to-dos; "
     "returns the top snippets with path and lines.", {"query": "What to look for", "maxResults": "How many snippets",
     "minScore": "Lowest score that counts"}),
    ("message", "Send a message to a channel, or act on one: react, edit, delete, pin.",
     {"action": "What to do", "channel": "Name of the channel plugin", "target": "Recipient or thread",
      "message": "The text", "replyTo": "Identifier of the message that is answered"}),
    ("cron", "Manage scheduled jobs: list, add, update, remove, run. Reminders are jobs with a system event.",
     {"action": "What to do", "job": "The job as an object with schedule, payload and session target",
      "jobId": "Identifier of the job", "includeDisabled": "List disabled jobs as well"}),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One request: bytes of its body, tokens of its prompt after the chat template."""

    body_bytes: int
    prompt_tokens: int

    @property
    def bytes_per_token(self) -> float:
        return self.body_bytes / self.prompt_tokens

    def error(self, bytes_per_token: float) -> float:
        """How far the estimate is off, as a share of the real number."""
        return self.body_bytes / bytes_per_token / self.prompt_tokens - 1


def main(argv: list[str] | None = None) -> int:
    """Measure every kind of text, print the table and the constant that fits them best."""
    options = _parser().parse_args(argv)
    try:
        texts = source_texts() | {name: read_text(path) for name, path in options.texts}
        bodies = {name: read_text(path).encode() for name, path in options.bodies}
        binary = chosen_binary(options)
        model = ensure_vocabulary_model(cache_folder() / "qwen2-vocabulary.gguf")
        with serving(binary, model) as server:
            plain = {name: Sample(len(text.encode()), tokens_of_text(server, text)) for name, text in texts.items()}
            measured = {
                (name, tokens): [measure(server, body) for body in bodies_of(texts, plain, name, tokens)]
                for name in (*texts, TURNS, TOOLS)
                for tokens in CHUNK_TOKENS
            }
            recorded = {name: measure(server, body) for name, body in bodies.items()}
            escaped = {name: measure(server, chat_body(text, escape=True)) for name, text in heads(texts)}
    except SandboxError as error:
        return fail(error)
    best = best_constant(measured.values())
    constant = options.constant or best
    print_report(
        f"Token estimate with {constant:.1f} bytes a token",
        ("body of", "text alone", "tokens", "bytes a token: min", "median", "max", "estimate off by, %: min", "median",
         "max"),
        [_row(name, plain.get(name), tokens, samples, constant) for (name, tokens), samples in measured.items()],
        f"{CHUNKS} requests a row at most. Constant that fits best: {best:.1f}.",
    )  # fmt: skip
    if recorded:
        print()
        print_report(
            "Recorded requests",
            ("request", "body, bytes", "prompt tokens", "bytes a token", "estimate off by, %"),
            [[name, *_single(sample, constant)] for name, sample in recorded.items()],
        )
    print()
    print_report(
        "The same texts with every other character than ASCII as `\\uXXXX` (Python's json by default)",
        ("request", "body, bytes", "prompt tokens", "bytes a token", "estimate off by, %"),
        [[name, *_single(sample, constant)] for name, sample in escaped.items()],
    )
    return 0


def best_constant(groups: Iterable[Sequence[Sample]]) -> float:
    """The constant, to one decimal, that puts the fewest requests near a threshold on its wrong side.

    It is the median over the kinds of text: an error counts by its ratio (twice is as wrong as half), and every kind
    counts once.
    """
    return round(statistics.median(statistics.median(each.bytes_per_token for each in group) for group in groups), 1)


def chat_body(
    text: str, *, turns: bool = False, tools: Sequence[Mapping[str, Any]] = (), escape: bool = False
) -> bytes:
    """A chat request as OpenAI's clients send it, compact JSON; with `turns` the text is a whole conversation."""
    pieces = [text[at : at + TURN_BYTES] for at in range(0, len(text), TURN_BYTES)] if turns else [text]
    roles = ["assistant" if (len(pieces) - at) % 2 == 0 else "user" for at in range(len(pieces))]
    body: dict[str, Any] = {
        "model": "qwen2.5-1.5b-instruct",
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            *({"role": role, "content": piece} for role, piece in zip(roles, pieces, strict=True)),
        ],
        "max_tokens": 240,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if tools:
        body["tools"] = list(tools)
    return json.dumps(body, ensure_ascii=escape, separators=(",", ":")).encode()


def agent_tools() -> list[dict[str, Any]]:
    """Function schemas of the kind that an agent sends with each turn."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "required": [next(iter(arguments))],
                    "properties": {each: {"type": "string", "description": what} for each, what in arguments.items()},
                },
                "strict": False,
            },
        }
        for name, description, arguments in AGENT_TOOLS
    ]


def bodies_of(texts: Mapping[str, str], plain: Mapping[str, Sample], name: str, tokens: int) -> list[bytes]:
    """Requests of about so many tokens each, of one kind of text or of all kinds in turns."""
    if name in texts:
        return [chat_body(piece) for piece in chunks(texts[name], plain[name].bytes_per_token * tokens)]
    bodies = []
    for each, text in texts.items():
        pieces = chunks(text, plain[each].bytes_per_token * tokens)
        # The schemas alone are about 1,000 tokens: the short ones are mostly schema, as an agent's first turn is.
        bodies += [chat_body(piece, turns=True, tools=agent_tools() if name == TOOLS else ()) for piece in pieces[:2]]
    return bodies


def chunks(text: str, size_bytes: float) -> list[str]:
    """Pieces of about that size from all over the text, at most CHUNKS. Raises SandboxError when it is shorter."""
    size = max(1, round(size_bytes * len(text) / len(text.encode())))
    whole = [text[at : at + size] for at in range(0, len(text) - size + 1, size)]
    if not whole:
        raise SandboxError(f"A text of {len(text)} characters is too short: {size} are wanted at least.")
    return whole[:: math.ceil(len(whole) / CHUNKS)]


def heads(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """The beginning of every text, as much as fits the context in any language."""
    return [(name, text[:6_000]) for name, text in texts.items()]


def source_texts() -> dict[str, str]:
    """The kinds of text that llama.cpp's source holds."""
    repository, commit = llama_cpp_repository(cache_dir())
    show = ["git", f"--git-dir={repository}", "show"]
    return {
        kind: "\n".join(run([*show, f"{commit}:{path}"]).stdout for path in files)
        for kind, files in SOURCE_TEXTS.items()
    }


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SandboxError(f"{path} cannot be read as UTF-8: {error}") from error


def tokens_of_text(server: Server, text: str) -> int:
    """Tokens of a text by itself, as llama-server's /tokenize counts them."""
    return len(_ask(server, "/tokenize", {"content": text})["tokens"])


def measure(server: Server, body: bytes) -> Sample:
    """Send the body as it is, apart from the length of the answer, and read how many prompt tokens it had."""
    request = json.loads(body) | {"max_tokens": 1, "stream": False}
    request.pop("stream_options", None)
    return Sample(len(body), _ask(server, "/v1/chat/completions", request)["usage"]["prompt_tokens"])


def _ask(server: Server, path: str, body: Mapping[str, Any]) -> Any:
    with contextlib.closing(server.connection(REQUEST_SECONDS)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    if response.status != http.client.OK:
        raise SandboxError(f"llama-server answered {response.status} to {path}: {text[:300]}")
    return json.loads(text)


@contextlib.contextmanager
def serving(binary: Path, model: Path) -> Iterator[Server]:
    """The deployed llama-server with that model and a context that holds every request."""
    environment = deployed_environment(Settings(context_tokens=CONTEXT_TOKENS))
    with (
        tempfile.TemporaryDirectory(prefix="local-llm-") as folder,
        running(binary, model, Path(folder), environment) as server,
    ):
        yield server


def ensure_vocabulary_model(path: Path) -> Path:
    """A model with the real vocabulary and merges, Qwen2.5's chat template and next to no weights.

    Qwen2.5's vocabulary is Qwen2's with 19 more special tokens, `<tool_call>` among them, which plain text never holds.
    """
    if path.exists():
        return path
    repository, commit = llama_cpp_repository(cache_dir())
    vocabulary = path.with_suffix(".vocabulary")
    with vocabulary.open("wb") as file:
        git = ["git", f"--git-dir={repository}", "cat-file", "blob", f"{commit}:{VOCABULARY_FILE}"]
        subprocess.run(git, stdin=subprocess.DEVNULL, stdout=file, check=True)
    temporary = path.with_suffix(".part")
    _write_model(gguf.GGUFReader(vocabulary), temporary)
    vocabulary.unlink()
    temporary.replace(path)
    return path


def _write_model(vocabulary: gguf.GGUFReader, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Qwen2 vocabulary")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = _field(vocabulary, "tokens")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(_field(vocabulary, "token_type"))
    writer.add_token_merges(_field(vocabulary, "merges"))
    writer.add_eos_token_id(tokens.index(MESSAGE_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text(encoding="utf-8"))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), WIDTH), dtype=np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), dtype=np.float16))
    for name in ("attn_q", "attn_k", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.bias", np.zeros(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _field(vocabulary: gguf.GGUFReader, name: str) -> list[Any]:
    field = vocabulary.get_field(f"tokenizer.ggml.{name}")
    if field is None:
        raise SandboxError(f"{VOCABULARY_FILE} has no {name}.")
    return list(field.contents())


def _row(name: str, plain: Sample | None, tokens: int, samples: Sequence[Sample], constant: float) -> list[str]:
    return [
        name,
        f"{plain.bytes_per_token:.2f}" if plain else "–",
        f"{tokens:,}",
        *(f"{value:.2f}" for value in spread([sample.bytes_per_token for sample in samples])),
        *(f"{100 * value:+.0f}" for value in spread([sample.error(constant) for sample in samples])),
    ]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Smallest, median and largest."""
    return min(values), statistics.median(values), max(values)


def _single(sample: Sample, constant: float) -> list[str]:
    return [
        f"{sample.body_bytes:,}",
        f"{sample.prompt_tokens:,}",
        f"{sample.bytes_per_token:.2f}",
        f"{100 * sample.error(constant):+.0f}",
    ]


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_estimate", description=__doc__)
    add_binary_options(parser)
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        type=_named_file,
        default=[],
        metavar="NAME=FILE",
        help="a further kind of text, repeatable: some 30 kB of UTF-8",
    )
    parser.add_argument(
        "--body",
        dest="bodies",
        action="append",
        type=_named_file,
        default=[],
        metavar="NAME=FILE",
        help="a recorded chat request, repeatable",
    )
    parser.add_argument("--constant", type=float, metavar="BYTES", help="show errors with this (default: the best)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
