"""The cloud: a provider, its models, and how long it is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import StringConstraints

from settings.section import OperatorsFile, Section, in_words, setting

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
ModelNames = Annotated[
    tuple[ModelName, ...], in_words("a list of model names, such as gpt-5-mini or openai/gpt-5-mini")
]
_HOST = r"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
"""A name, not an address: certificates are checked by name."""


class CloudSettings(Section, title="Cloud"):
    """A provider that answers what is too large for the host; without `cloud_url` nothing leaves the host."""

    cloud_url: str | None = setting(
        None,
        "Base address of a cloud provider, with its version prefix, such as `https://api.example.com/v1`. Unset: "
        "everything is answered on the host.",
        allowed="an https:// address with a host name and without query, or http:// to 127.0.0.1 or localhost",
        pattern=rf"^(https://{_HOST}|http://(127\.0\.0\.1|localhost))(:[0-9]{{1,5}})?(/[A-Za-z0-9._~-]+)*/?$",
    )
    cloud_api: Literal["openai", "anthropic"] = setting(
        "openai",
        "What the provider speaks: `openai` (/chat/completions, /completions, /embeddings) or `anthropic` (/messages). "
        "Requests of the other kind stay on the host.",
    )
    cloud_models: ModelNames = setting(
        (),
        "The provider's models, by its own names: listed by /v1/models and offered to OpenClaw.",
    )
    cloud_model_aliases: ModelNames = setting(
        (),
        "Further names by which programs may ask the provider for a model, sent as they are and not listed. A request "
        "for any other name never leaves the host.",
    )
    cloud_key_file: OperatorsFile | None = setting(
        None,
        "File with the provider's key, on the computer that deploys. Unset: the environment variable "
        "LOCAL_LLM_CLOUD_KEY; where that is unset too, the key that is on the host stays.",
    )
    cloud_check_path: str = setting(
        "/models",
        "Path below `cloud_url` that is asked, with the key, whether the provider is up. It should cost nothing.",
        allowed="a path, such as /models",
        pattern=r"^(/[A-Za-z0-9._~-]+)+$",
    )
    cloud_check_seconds: int = setting(
        30, "Time between two such questions while it is up; while it is down, 5 s at most.", unit="s", ge=1, le=3_600
    )
    cloud_first_byte_seconds: int = setting(
        20,
        "Silence of the provider, before the first byte of a streamed answer, after which the request is answered by "
        "the other side.",
        unit="s",
        ge=1,
        le=600,
    )
    cloud_silence_seconds: int = setting(
        300,
        "The same for requests that are not streamed, and silence within a stream after which it ends. HAProxy before "
        "3.0 knows one limit for both: there a stream is held to `cloud_first_byte_seconds` throughout, and one that "
        "asks for reasoning to this.",
        unit="s",
        ge=1,
        le=3_600,
    )
    cloud_requests_per_minute: int | None = setting(
        None,
        "Requests a minute to the provider; above it the host answers what it can. Unset: no limit.",
        ge=1,
        le=100_000,
    )
    fallback_prompt_tokens: int | None = setting(
        None,
        "Estimated prompts from this length on are not taken over by the host when the cloud fails. Unset: what fits "
        "its context. The host reads 45 tokens a second.",
        unit="tokens",
        ge=1,
        le=1_000_000,
    )
    outage_status: Literal[404, 503] = setting(
        404,
        "Answer to a request that is too long for the host while the provider does not serve it. 404 with the code "
        "model_not_found makes OpenClaw try its next model at once; so does 503, sent with a Retry-After of more "
        "than 60 seconds: OpenClaw would wait out a shorter one.",
    )

    def problems(self) -> Iterator[str]:
        if self.cloud_url is None:
            for name in ("cloud_models", "cloud_model_aliases", "cloud_key_file"):
                if value := getattr(self, name):
                    yield f"{name} = {value!r}: only with cloud_url"
        else:
            if not self.cloud_models:
                yield "cloud_models is missing: cloud_url needs at least one of the provider's models"
            if not _has_usable_port(self.cloud_url):
                yield f"cloud_url = {self.cloud_url!r}: allowed: ports from 1 to 65535"
        if self.cloud_silence_seconds < self.cloud_first_byte_seconds:
            limit = f"cloud_first_byte_seconds ({self.cloud_first_byte_seconds})"
            yield f"cloud_silence_seconds = {self.cloud_silence_seconds}: allowed: from {limit} up"


def _has_usable_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
