"""The model: one of the catalogue, or a file of the operator's choice."""

from __future__ import annotations

from collections.abc import Iterator

from settings.catalogue import CATALOGUE, CUSTOM, Model
from settings.section import Section, setting


class ModelSettings(Section, title="Model"):
    """The file that is served, and how it is downloaded."""

    model: str = setting(
        "qwen2.5-1.5b-instruct",
        f"A model of the catalogue, or `{CUSTOM}` with the four below.",
        allowed=", ".join([*CATALOGUE, CUSTOM]),
    )
    model_name: str | None = setting(
        None,
        f"With `{CUSTOM}`: the name the API serves it under.",
        allowed="up to 64 lower-case letters, digits, dots, dashes",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
    )
    model_url: str | None = setting(
        None,
        f"With `{CUSTOM}`: the address of a GGUF file.",
        allowed="an https:// address, without user or password",
        pattern=r"^https?://[^\s'\"]+$",
    )
    model_sha256: str | None = setting(
        None,
        f"With `{CUSTOM}`: the file's SHA-256, in hexadecimal.",
        allowed="64 hexadecimal digits",
        pattern=r"^[0-9a-f]{64}$",
    )
    model_size_bytes: int | None = setting(
        None, f"With `{CUSTOM}`: the file's exact size.", unit="bytes", ge=24, le=64 * 1024**3
    )
    model_kv_bytes_per_token: int = setting(
        32_768,
        f"With `{CUSTOM}`: KV cache per token of context at f16, for the memory estimate "
        "(2 × layers × KV heads × head size × 2).",
        unit="bytes",
        ge=0,
        le=4 * 1024**2,
    )
    keep_models: int = setting(
        1,
        "Model files kept besides the current one, for going back without a download.",
        unit="files",
        ge=0,
        le=20,
    )
    download_attempts: int = setting(
        8, "How often a broken or stalled download is resumed before the deploy fails.", ge=1, le=100
    )
    download_stall_seconds: int = setting(
        30, "A download below 1 KiB/s for this long is dropped and resumed.", unit="s", ge=2, le=600
    )
    allow_insecure_downloads: bool = setting(
        False,
        "Allow `http://` and `git://` addresses: for a mirror in your own network, never for the internet.",
    )

    @property
    def selected_model(self) -> Model:
        """The model that `model` names, with the custom settings filled in."""
        if self.model != CUSTOM:
            return CATALOGUE[self.model]
        assert self.model_name is not None
        assert self.model_url is not None
        assert self.model_sha256 is not None
        assert self.model_size_bytes is not None
        return Model(
            name=self.model_name,
            url=self.model_url,
            sha256=self.model_sha256,
            size_bytes=self.model_size_bytes,
            kv_bytes_per_token=self.model_kv_bytes_per_token,
            licence="as its publisher says",
        )

    def problems(self) -> Iterator[str]:
        custom = {name: getattr(self, name) for name in ("model_name", "model_url", "model_sha256", "model_size_bytes")}
        if self.model == CUSTOM:
            for name in (name for name, value in custom.items() if value is None):
                yield f'{name} is missing: model = "{CUSTOM}" needs it'
        elif self.model not in CATALOGUE:
            yield f"model = {self.model!r}: allowed: {', '.join([*CATALOGUE, CUSTOM])}"
        else:
            for name, value in custom.items():
                if value is not None:
                    yield f'{name} = {value!r}: only with model = "{CUSTOM}"'
