"""What leaves for a terminal, a pipe or a page: one edge, behind which nothing can command a terminal.

Texts come from a model, a cloud, a log, git and whoever listens on a port. Only what can be seen goes out: no control
character (C0, DEL, C1), none that turns the direction of writing or has no width, no line separator, no half of a
surrogate pair. Imports little, because the health check runs all day (see `probe`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_INVISIBLE = (
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Letters and marks to Unicode, and still not seen (Default_Ignorable_Code_Point)."""
_COLOURS = {"PASS": "\033[32m", "WARN": "\033[33m", "FAIL": "\033[31m", "unknown": "\033[33m"}
_RESET = "\033[0m"
_VERDICT = r"(?m)^  (PASS|WARN|FAIL|unknown)(?= )"


def printable(text: str, keep: str = "") -> str:
    """One line of what can be seen, and the characters to keep; a blank stands for anything else."""
    if text.isascii() and text.isprintable():
        return text
    seen = (char if char.isprintable() or char in keep else " " for char in text)
    return re.sub(_INVISIBLE, " ", "".join(seen))


def printable_lines(text: str) -> str:
    """The same with line breaks and tabs, for what may have several lines."""
    return printable(text, keep="\n\t")


def as_json(data: Any, indent: int | None = None) -> str:
    """JSON for a program, in ASCII: what cannot be seen is escaped."""
    separators = (",", ":") if indent is None else None
    # The one control character that JSON leaves as it is.
    return json.dumps(data, indent=indent, separators=separators).replace("\x7f", "\\u007f")


@contextmanager
def edge() -> Iterator[None]:
    """Everything that is printed meanwhile goes through `printable_lines`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Edge(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def show(text: str, colour: bool) -> None:
    """Print a table, on a terminal with the verdicts that begin its lines in colour."""
    if colour and isinstance(sys.stdout, _Edge):
        sys.stdout.paint(text)
    else:
        print(text)


class _Edge:
    """A stream that lets through what can be seen."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # A terminal of another encoding shows a question mark for what it does not have.
        with suppress(AttributeError):
            cast("Any", stream).reconfigure(errors="replace")

    def write(self, text: str) -> int:
        self._stream.write(printable_lines(text))
        return len(text)

    def paint(self, text: str) -> None:
        """Write a text and a line break; the colours are the only commands to a terminal, and ours."""
        lines = printable_lines(text)
        self._stream.write(re.sub(_VERDICT, lambda found: f"  {_COLOURS[found[1]]}{found[1]}{_RESET}", lines) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
