"""Models that are pinned, and the word for any other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A GGUF file that can be served.

    `kv_bytes_per_token` is what one token of context costs in an f16 KV cache: 2 (keys and values) × layers ×
    KV heads × head size × 2 bytes, from the model's own configuration.
    """

    name: str
    url: str
    sha256: str
    size_bytes: int
    kv_bytes_per_token: int
    licence: str


def _hugging_face(repository: str, revision: str, file: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


CATALOGUE: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="qwen2.5-1.5b-instruct",
            url=_hugging_face(
                "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
                "91cad51170dc346986eccefdc2dd33a9da36ead9",
                "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            ),
            sha256="6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e",
            size_bytes=1_117_320_736,
            kv_bytes_per_token=2 * 28 * 2 * 128 * 2,
            licence="Apache-2.0",
        ),
        Model(
            name="qwen2.5-3b-instruct",
            url=_hugging_face(
                "Qwen/Qwen2.5-3B-Instruct-GGUF",
                "7dabda4d13d513e3e842b20f0d435c732f172cbe",
                "qwen2.5-3b-instruct-q4_k_m.gguf",
            ),
            sha256="626b4a6678b86442240e33df819e00132d3ba7dddfe1cdc4fbb18e0a9615c62d",
            size_bytes=2_104_932_768,
            kv_bytes_per_token=2 * 36 * 2 * 128 * 2,
            licence="Qwen Research (non-commercial use only)",
        ),
    )
}

CUSTOM = "custom"
