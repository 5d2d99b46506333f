"""What sections are made of: their base, their fields, and the types that several of them use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Section(BaseModel):
    """Settings of one concern; its title and this sentence head its table in docs/SETTINGS.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def problems(self) -> Iterator[str]:
        """What its settings, each right by itself, demand of each other: `name = value: what is allowed`."""
        yield from ()


def setting(default: Any, why: str, *, unit: str = "", allowed: str = "", **bounds: Any) -> Any:
    """A field with its reason, unit and, where its type does not say it, what is allowed in words."""
    words = {"allowed": allowed} if allowed else {}
    return Field(default, description=why, json_schema_extra={"unit": unit, **words}, **bounds)


def in_words(allowed: str) -> Any:
    """What a type allows, for its `Annotated`; a field's own words win."""
    return Field(json_schema_extra={"allowed": allowed})


Port = Annotated[int, Field(ge=1024, le=65535)]
UserName = Annotated[
    str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,30}$"), in_words("a user or group name in lower case")
]
AbsolutePath = Annotated[
    str, StringConstraints(pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$"), in_words("an absolute path")
]
OperatorsFile = Annotated[str, StringConstraints(min_length=1), in_words("the path of a file")]
"""A file on the computer that deploys."""

OTHER_ACCOUNTS = ("local-llm-gateway", "local-llm-build")
"""Accounts of a deploy's own that have other tasks than llama-server."""
