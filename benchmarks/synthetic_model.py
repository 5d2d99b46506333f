"""A GGUF file of the shape and size of Qwen2.5-1.5B-Instruct Q4_K_M, with random weights.

Memory and speed do not depend on the weights' values, so it measures like the published file without its download.
The types of the tensors are those that llama.cpp's quantizer gives them (src/llama-quant.cpp, Q4_K_M), with an output
matrix of its own, as the published file has it.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from sandbox.tiny_model import CHAT_TEMPLATE, END_OF_TEXT, MESSAGE_END, MESSAGE_START, byte_symbols
from settings import CATALOGUE

PUBLISHED_BYTES = CATALOGUE["qwen2.5-1.5b-instruct"].size_bytes
SIZE_TOLERANCE = 0.02

LAYERS = 28
EMBEDDING = 1536
FEED_FORWARD = 8960
HEADS = 12
KV_HEADS = 2
CONTEXT_TOKENS = 32_768
VOCABULARY = 151_936
MERGES = 151_387

Q4_K = gguf.GGMLQuantizationType.Q4_K
Q6_K = gguf.GGMLQuantizationType.Q6_K
BLOCK_WEIGHTS = 256
Q4_K_BYTES = 144
Q6_K_BYTES = 210

Bytes = npt.NDArray[np.uint8]


def ensure_model(path: Path) -> Path:
    """Write the model unless it is there; whole at once. Raises ValueError when its size is not the published one's."""
    if path.exists():
        return path
    temporary = path.with_suffix(".part")
    _write(temporary)
    size = temporary.stat().st_size
    if abs(size / PUBLISHED_BYTES - 1) > SIZE_TOLERANCE:
        raise ValueError(f"the synthetic model has {size} bytes, the published one {PUBLISHED_BYTES}")
    temporary.replace(path)
    return path


def has_more_bits(layer: int) -> bool:
    """Whether Q4_K_M gives attn_v and ffn_down of this layer Q6_K: `use_more_bits` of llama.cpp's quantizer."""
    return layer < LAYERS // 8 or layer >= 7 * LAYERS // 8 or (layer - LAYERS // 8) % 3 == 2


def vocabulary() -> tuple[list[str], list[str]]:
    """Distinct tokens and the merges that make them: bytes, then words of two, three and four letters.

    The published vocabulary has as many of each kind: bytes, merged tokens, special tokens.
    """
    letters = string.ascii_lowercase
    words = ["".join(word) for length in (2, 3, 4) for word in itertools.product(letters, repeat=length)][:MERGES]
    special = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
    unused = [f"[PAD{i}]" for i in range(VOCABULARY - 256 - MERGES - len(special))]
    return [*byte_symbols(), *words, *special, *unused], [f"{word[:-1]} {word[-1]}" for word in words]


def tensors() -> list[tuple[str, int, int, gguf.GGMLQuantizationType | None]]:
    """Name, rows (0: a vector), columns and type (None: f32) of every tensor."""
    kv_width = EMBEDDING // HEADS * KV_HEADS
    found: list[tuple[str, int, int, gguf.GGMLQuantizationType | None]] = [
        ("token_embd.weight", VOCABULARY, EMBEDDING, Q4_K),
        ("output.weight", VOCABULARY, EMBEDDING, Q6_K),
        ("output_norm.weight", 0, EMBEDDING, None),
    ]
    for layer in range(LAYERS):
        mixed = Q6_K if has_more_bits(layer) else Q4_K
        found += [
            (f"blk.{layer}.{name}", rows, columns, kind)
            for name, rows, columns, kind in (
                ("attn_norm.weight", 0, EMBEDDING, None),
                ("attn_q.weight", EMBEDDING, EMBEDDING, Q4_K),
                ("attn_q.bias", 0, EMBEDDING, None),
                ("attn_k.weight", kv_width, EMBEDDING, Q4_K),
                ("attn_k.bias", 0, kv_width, None),
                ("attn_v.weight", kv_width, EMBEDDING, mixed),
                ("attn_v.bias", 0, kv_width, None),
                ("attn_output.weight", EMBEDDING, EMBEDDING, Q4_K),
                ("ffn_norm.weight", 0, EMBEDDING, None),
                ("ffn_gate.weight", FEED_FORWARD, EMBEDDING, Q4_K),
                ("ffn_up.weight", FEED_FORWARD, EMBEDDING, Q4_K),
                ("ffn_down.weight", EMBEDDING, FEED_FORWARD, mixed),
            )
        ]
    return found


def random_blocks(random: np.random.Generator, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> Bytes:
    """Quantised weights of about the size that trained ones have: random bits under scales that keep them finite.

    The layout of a block is ggml's (ggml-common.h, block_q4_K and block_q6_K).
    """
    blocks = rows * columns // BLOCK_WEIGHTS
    data = random.integers(0, 256, (blocks, Q4_K_BYTES if kind is Q4_K else Q6_K_BYTES), dtype=np.uint8)
    if kind is Q4_K:
        # weight = d × scale (0..63) × quant (0..15) − dmin × minimum (0..63), about 0 on average
        data[:, 0:4] = np.array([1e-4, 7.5e-4], dtype=np.float16).view(np.uint8)
    else:
        # weight = d × scale (−128..127) × (quant − 32)
        data[:, 208:210] = np.array([1.5e-5], dtype=np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def _write(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Synthetic Qwen2.5 1.5B")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    _add_tokenizer(writer)
    for name, rows, columns, kind in tensors():
        if kind is None:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), 4 * columns)
        else:
            width = columns // BLOCK_WEIGHTS * (Q4_K_BYTES if kind is Q4_K else Q6_K_BYTES)
            writer.add_tensor_info(name, (rows, width), np.dtype(np.uint8), rows * width, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, rows, columns, kind in tensors():
        if kind is not None:
            writer.write_tensor_data(random_blocks(random, rows, columns, kind))
        else:
            fill = np.zeros if name.endswith(".bias") else np.ones
            writer.write_tensor_data(fill(columns, dtype=np.float32))
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens, merges = vocabulary()
    special = {END_OF_TEXT, MESSAGE_START, MESSAGE_END}
    kinds = [gguf.TokenType.NORMAL] * (256 + MERGES)
    kinds += [gguf.TokenType.CONTROL if t in special else gguf.TokenType.UNUSED for t in tokens[256 + MERGES :]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(MESSAGE_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text(encoding="utf-8"))
