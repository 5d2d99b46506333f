"""GGUF files of the shape and size of the catalogue's models, Qwen2.5-Instruct Q4_K_M, with random weights.

Memory and speed do not depend on the weights' values, so it measures like the published files without their download.
The types of the tensors are those that llama.cpp's quantizer gives them (src/llama-quant.cpp, Q4_K_M), with an output
matrix of its own, as the published files have it.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.common import cache_folder
from sandbox.tiny_model import CHAT_TEMPLATE, END_OF_TEXT, MESSAGE_END, MESSAGE_START, byte_symbols
from settings import CATALOGUE

SIZE_TOLERANCE = 0.02

KV_HEADS = 2
CONTEXT_TOKENS = 32_768
VOCABULARY = 151_936
MERGES = 151_387

Q4_K = gguf.GGMLQuantizationType.Q4_K
Q6_K = gguf.GGMLQuantizationType.Q6_K
BLOCK_WEIGHTS = 256
Q4_K_BYTES = 144
Q6_K_BYTES = 210


@dataclass(frozen=True)
class Shape:
    """A model of the catalogue, by the numbers of its published configuration (config.json)."""

    model: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int

    @property
    def published_bytes(self) -> int:
        """Size of the file that a deploy downloads."""
        return CATALOGUE[self.model].size_bytes

    def has_more_bits(self, layer: int) -> bool:
        """Whether Q4_K_M gives attn_v and ffn_down of this layer Q6_K: `use_more_bits` of llama.cpp's quantizer."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


SHAPES = {
    shape.model: shape
    for shape in (
        Shape("qwen2.5-1.5b-instruct", layers=28, embedding=1_536, feed_forward=8_960, heads=12),
        Shape("qwen2.5-3b-instruct", layers=36, embedding=2_048, feed_forward=11_008, heads=16),
    )
}
DEFAULT = SHAPES["qwen2.5-1.5b-instruct"]

Bytes = npt.NDArray[np.uint8]


def ensure_model(shape: Shape = DEFAULT) -> Path:
    """The model's file in the cache folder, made on first use; whole at once.

    Raises ValueError when its size is not the published one's.
    """
    path = cache_folder() / f"{shape.model}-q4_k_m-synthetic.gguf"
    if path.exists():
        return path
    temporary = path.with_suffix(".part")
    _write(temporary, shape)
    size = temporary.stat().st_size
    if abs(size / shape.published_bytes - 1) > SIZE_TOLERANCE:
        raise ValueError(f"the synthetic model has {size} bytes, the published one {shape.published_bytes}")
    temporary.replace(path)
    return path


def vocabulary() -> tuple[list[str], list[str]]:
    """Distinct tokens and the merges that make them: bytes, then words of two, three and four letters.

    The published vocabulary has as many of each kind: bytes, merged tokens, special tokens.
    """
    letters = string.ascii_lowercase
    words = ["".join(word) for length in (2, 3, 4) for word in itertools.product(letters, repeat=length)][:MERGES]
    special = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
    unused = [f"[PAD{i}]" for i in range(VOCABULARY - 256 - MERGES - len(special))]
    return [*byte_symbols(), *words, *special, *unused], [f"{word[:-1]} {word[-1]}" for word in words]


def tensors(shape: Shape) -> list[tuple[str, int, int, gguf.GGMLQuantizationType | None]]:
    """Name, rows (0: a vector), columns and type (None: f32) of every tensor."""
    kv_width = shape.embedding // shape.heads * KV_HEADS
    found: list[tuple[str, int, int, gguf.GGMLQuantizationType | None]] = [
        ("token_embd.weight", VOCABULARY, shape.embedding, Q4_K),
        ("output.weight", VOCABULARY, shape.embedding, Q6_K),
        ("output_norm.weight", 0, shape.embedding, None),
    ]
    for layer in range(shape.layers):
        mixed = Q6_K if shape.has_more_bits(layer) else Q4_K
        found += [
            (f"blk.{layer}.{name}", rows, columns, kind)
            for name, rows, columns, kind in (
                ("attn_norm.weight", 0, shape.embedding, None),
                ("attn_q.weight", shape.embedding, shape.embedding, Q4_K),
                ("attn_q.bias", 0, shape.embedding, None),
                ("attn_k.weight", kv_width, shape.embedding, Q4_K),
                ("attn_k.bias", 0, kv_width, None),
                ("attn_v.weight", kv_width, shape.embedding, mixed),
                ("attn_v.bias", 0, kv_width, None),
                ("attn_output.weight", shape.embedding, shape.embedding, Q4_K),
                ("ffn_norm.weight", 0, shape.embedding, None),
                ("ffn_gate.weight", shape.feed_forward, shape.embedding, Q4_K),
                ("ffn_up.weight", shape.feed_forward, shape.embedding, Q4_K),
                ("ffn_down.weight", shape.embedding, shape.feed_forward, mixed),
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


def _write(path: Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name(f"Synthetic {shape.model}")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    _add_tokenizer(writer)
    for name, rows, columns, kind in tensors(shape):
        if kind is None:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), 4 * columns)
        else:
            width = columns // BLOCK_WEIGHTS * (Q4_K_BYTES if kind is Q4_K else Q6_K_BYTES)
            writer.add_tensor_info(name, (rows, width), np.dtype(np.uint8), rows * width, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, rows, columns, kind in tensors(shape):
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
