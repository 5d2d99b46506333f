"""The cloud provider's key: from the operator's file or environment to one line that systemd reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from settings import Settings
from tasks.secret_files import SecretError, operators_file

KEY_VARIABLE = "LOCAL_LLM_CLOUD_KEY"
"""Where the key is read on the computer that deploys, and where the gateway's process finds it."""

_KEY = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,4096}")


def operators_key(settings: Settings, environment: Mapping[str, str]) -> str | None:
    """The key that this deploy was given; None where it was given none, or needs none.

    Raises SecretError.
    """
    if settings.cloud_url is None:
        return None
    if settings.cloud_key_file is None:
        key, source = environment.get(KEY_VARIABLE), f"the environment variable {KEY_VARIABLE}"
        return None if key is None else _usable(key, source)
    source = f"cloud_key_file = {settings.cloud_key_file!r}"
    return _usable(operators_file(settings.cloud_key_file, source), source)


def _usable(text: str, source: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key):
        raise SecretError(f"{source}: allowed: one key of letters, digits and . _ ~ + / = : @ -")
    return key


def environment_file(key: str) -> str:
    """The key as systemd's EnvironmentFile= reads it; its characters need no quoting."""
    return f"{KEY_VARIABLE}={key}\n"
