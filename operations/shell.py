"""What our shell scripts are made of: values as single words, and files that take their place whole."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Annotated

Shell = Annotated[str, "shell code"]
"""Code for a shell, written by us. Every other text is a value: it becomes code by `word` alone."""


def word(value: str) -> Shell:
    """A value as one word of a script, whatever it is made of.

    Raises ValueError where a command would take it for an option, and for NUL, which no argument can hold.
    """
    if value.startswith("-") or "\0" in value:
        raise ValueError(f"not usable as an argument of a command: {value!r}")
    return shlex.quote(value)


def moved_into_place(new: str, final: str) -> Shell:
    """Lines of a script that rename a file, a tree or a link, so that a power cut leaves the old or the new one, whole.

    A file system may write the new name to the disk long before the content (ext4: half a minute): so the content is
    synced first. The directory is synced last, so that what comes after it can rely on the name.
    """
    return (
        f"find {word(new)} ! -type l -exec sync -- {{}} +\n"
        f"mv -fT -- {word(new)} {word(final)}\n"
        f"sync -- {word(str(PurePosixPath(final).parent))}"
    )
