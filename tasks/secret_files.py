"""Secrets in files of the operator, on the computer that deploys."""

from __future__ import annotations

from pathlib import Path


class SecretError(Exception):
    """A secret cannot be read or used; the message is one line, names its setting and does not contain it."""


def operators_file(path: str, source: str) -> str:
    """The content of a file that a setting names.

    + path: the file, `~` for the operator's home
    + source: the setting with its value, for the message

    Raises SecretError.
    """
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SecretError(f"{source}: cannot be read: {reason}") from None
