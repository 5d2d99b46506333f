"""A tiny GGUF model whose answer is known: a real qwen2 model with the smallest weights that make a bigram
table.

All attention and feed-forward weights are zero, so what reaches the output is the last token's embedding.
That embedding is a one-hot vector naming the token to come next, and the output matrix turns it into that
token's logit, far above all others: sampling at any usual temperature gives the same text as greedy decoding.
A token outside the answer leads to the answer's first.

`qwen2.5.jinja` is the chat template of Qwen2.5 (Apache-2.0), as the default model carries it.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from sandbox.common import file_sha256

# No token may occur twice in an answer: the next token depends on the last one alone.
ANSWER = "The local model on this machine works: private, fast and locked down."
OTHER_ANSWER = "A second model answers now: the switch worked, nothing else changed."

LOOP_PROMPT = " tick"
"""Prompt for /v1/completions whose answer is itself until max_tokens: a generation as long as wanted."""

CONTEXT_TOKENS = 32768
EMBEDDING_LENGTH = 128
HEAD_COUNT = 2
FEED_FORWARD_LENGTH = 64
LOGIT_SCALE = 8.0

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
CHAT_TEMPLATE = Path(__file__).with_name("qwen2.5.jinja")

Matrix = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TinyModel:
    """A written model file and the facts a deploy is given about it."""

    path: Path
    answer: str
    sha256: str
    size_bytes: int


def write_tiny_model(path: Path, *, answer: str = ANSWER, pad_mib: int = 0) -> TinyModel:
    """Write the model to `path`; the same arguments give the same bytes.

    `answer` is what it says to everything: words separated by single spaces, none of them and no punctuation
    mark twice. `pad_mib` adds that many MiB of metadata that llama.cpp reads past, for tests that need a
    larger download. Raises ValueError when a part of the answer occurs twice.
    """
    answer_words = split_words(answer)
    if len(set(answer_words)) != len(answer_words):
        raise ValueError(f"a word or punctuation mark occurs twice in the answer {answer!r}")
    words = [*answer_words, LOOP_PROMPT]
    merges = merges_for(words)
    tokens = _tokens(merges)

    # Whole at once: a hub may be serving the file.
    temporary = path.with_suffix(".part")
    writer = gguf.GGUFWriter(temporary, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(EMBEDDING_LENGTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD_LENGTH)
    writer.add_head_count(HEAD_COUNT)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, tokens, merges)
    if pad_mib:
        # Random, so that a piece written at the wrong offset changes the checksum.
        noise = random.Random(0)  # noqa: S311
        writer.add_string("local_llm.padding", noise.randbytes(pad_mib * 1024 * 1024 // 2).hex())
    _add_tensors(writer, *bigram_weights(tokens, answer_words))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)

    return TinyModel(path, answer, file_sha256(path), path.stat().st_size)


def split_words(text: str) -> list[str]:
    """Split as qwen2's pre-tokeniser does: words with the space before them, punctuation by itself."""
    words: list[str] = []
    for word in text.split(" "):
        prefix = " " if words else ""
        stem = word.rstrip(".,:;!?")
        words.append(prefix + stem)
        words.extend(word[len(stem) :])
    return words


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def as_symbols(text: str) -> str:
    """Text as the vocabulary spells it: a space is `Ġ`, a newline `Ċ`."""
    symbols = byte_symbols()
    return "".join(symbols[byte] for byte in text.encode())


def merges_for(words: Iterable[str]) -> list[str]:
    """BPE merges that join each word's symbols from left to right into one token."""
    merges: dict[str, None] = {}
    for word in words:
        symbols = as_symbols(word)
        for end in range(1, len(symbols)):
            merges[f"{symbols[:end]} {symbols[end]}"] = None
    return list(merges)


def _tokens(merges: Iterable[str]) -> list[str]:
    merged = [merge.replace(" ", "") for merge in merges]
    return [*byte_symbols(), *merged, END_OF_TEXT, MESSAGE_START, MESSAGE_END]


def bigram_weights(tokens: list[str], answer_words: list[str]) -> tuple[Matrix, Matrix]:
    """The embedding and the output matrix, each vocabulary x EMBEDDING_LENGTH."""
    index = {token: i for i, token in enumerate(tokens)}
    answer_ids = [index[as_symbols(word)] for word in answer_words]
    loop_id = index[as_symbols(LOOP_PROMPT)]
    start = answer_ids[0]
    successors = [*answer_ids, index[MESSAGE_END], loop_id]
    if len(successors) > EMBEDDING_LENGTH:
        raise ValueError(f"the answer has more than {EMBEDDING_LENGTH - 2} tokens")
    next_token = dict(zip(answer_ids, [*answer_ids[1:], index[MESSAGE_END]], strict=True)) | {loop_id: loop_id}

    embedding = np.zeros((len(tokens), EMBEDDING_LENGTH), dtype=np.float16)
    output = np.zeros_like(embedding)
    for dimension, token_id in enumerate(successors):
        output[token_id, dimension] = LOGIT_SCALE
    for token_id in range(len(tokens)):
        embedding[token_id, successors.index(next_token.get(token_id, start))] = 1.0
    return embedding, output


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str], merges: list[str]) -> None:
    special = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(MESSAGE_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text(encoding="utf-8"))


def _add_tensors(writer: gguf.GGUFWriter, embedding: Matrix, output: Matrix) -> None:
    width, head = EMBEDDING_LENGTH, EMBEDDING_LENGTH // HEAD_COUNT
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
    for name, rows in (("attn_q", width), ("attn_k", head), ("attn_v", head)):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((rows, width), dtype=np.float16))
        writer.add_tensor(f"blk.0.{name}.bias", np.zeros(rows, dtype=np.float32))
    writer.add_tensor("blk.0.attn_output.weight", np.zeros((width, width), dtype=np.float16))
    for name, rows, columns in (
        ("ffn_gate", FEED_FORWARD_LENGTH, width),
        ("ffn_up", FEED_FORWARD_LENGTH, width),
        ("ffn_down", width, FEED_FORWARD_LENGTH),
    ):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((rows, columns), dtype=np.float16))
