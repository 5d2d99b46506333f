"""What cloud providers speak, a row each: all that the gateway's configuration needs to know of an API."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True)
class CloudApi:
    """An API: the paths by which it is asked for answers, and how it is told the key.

    `key_header` is a header's name and its value around the key; `headers` are sent where the client sends none of
    that name.
    """

    paths: tuple[str, ...]
    key_header: tuple[str, str]
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def makes_embeddings(self) -> bool:
        return EMBEDDINGS in self.paths


CLOUD_APIS = {
    "openai": CloudApi(
        paths=("/v1/chat/completions", "/v1/completions", EMBEDDINGS),
        key_header=("authorization", "Bearer {}"),
    ),
    "anthropic": CloudApi(
        paths=("/v1/messages",),
        key_header=("x-api-key", "{}"),
        # The version that every client of the API sends.
        headers=(("anthropic-version", "2023-06-01"),),
    ),
}
"""By the word of the setting `cloud_api`."""
