"""What all facts share: a host's own noise is no part of an answer, and nonsense ends the run of that host alone.

A greeting in a shell's start file, a line of sudo's or of a locale's may come before and after what a command prints.
So each fact's command prints a line of its own before and after, the end only once the command is through.
"""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import gevent
import paramiko.file
from pyinfra import host, state
from pyinfra.api import FactBase, Host
from pyinfra.api.exceptions import FactProcessError, PyinfraError
from pyinfra.context import ctx_host

T = TypeVar("T")


def _text(line: bytes | str) -> str:
    return line if isinstance(line, str) else line.decode(errors="replace")


# What a host prints is in whatever encoding it likes; paramiko would end the run over a letter of Latin-1.
paramiko.file.u = _text  # type: ignore[attr-defined]

BEGIN = "--- local-llm: begin"
END = "--- local-llm: end"
REMEDY = (
    "The login shell has to run commands (`ssh HOST 'echo it works'`); its start files may neither end it nor wait."
)
_QUOTED_CHARACTERS = 100


class _NoAnswer:
    """The default of every fact: nothing was understood."""


NO_ANSWER = _NoAnswer()


class HostFact(FactBase[T], Generic[T]):
    """A fact whose `command` is `framed` and whose `parse` reads the lines between; `read` gets it."""

    @staticmethod
    def default() -> Any:
        return NO_ANSWER

    def process(self, output: list[str]) -> T:
        try:
            return self.parse(unframed(output))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise FactProcessError(f"the host's answer makes no sense ({_quoted(error)})") from error

    @abstractmethod
    def parse(self, output: list[str]) -> T:
        """What the lines of a whole answer say; any error in it means that they make no sense."""


def read(fact: type[HostFact[T]], **arguments: Any) -> T:
    """The fact of the current host. Where it cannot be had, the run ends for this host, and goes on for the others."""
    try:
        found = host.get_fact(fact, **arguments)
    except PyinfraError:
        if _this_host() in state.failed_hosts:  # and it was the last one
            host.log_styled(REMEDY, fg="red")
        raise
    if found is NO_ANSWER:
        give_up(f"Could not read {fact.name}. {REMEDY}")
    answer: T = found
    return answer


def give_up(message: str) -> None:
    """End the run for the current host, with one line; other hosts go on."""
    host.log_styled(message, fg="red")
    state.fail_hosts({_this_host()})  # type: ignore[no-untyped-call]
    _end()


def _this_host() -> Host:
    """Not what stands for whichever host is current."""
    this: Host = ctx_host.get()  # type: ignore[no-untyped-call]
    return this


def _end() -> None:
    # Each host has a greenlet. Where hosts come one after the other they share one, and pyinfra catches its own error.
    if isinstance(gevent.getcurrent(), gevent.Greenlet):
        raise gevent.GreenletExit
    raise PyinfraError("the run ends for this host")


def framed(command: str) -> str:
    """The command, with a line before its output and, once it is through, one after it; its status stays.

    Whatever it writes, such as what Python keeps of the modules that it has read, is for every user to read.
    """
    begin, end = shlex.quote(BEGIN), shlex.quote(END)
    return portable(f"umask 022\necho {begin}\n(\n{command}\n)\nstatus=$?\necho {end}\nexit $status")


def unframed(output: Sequence[str]) -> list[str]:
    """The lines of a `framed` command's own; raises ValueError where they are not whole."""
    lines = [line.rstrip("\r") for line in output]
    begins = [number for number, line in enumerate(lines) if line.endswith(BEGIN)]
    if not begins:
        raise ValueError(f"it begins with {' '.join(lines)[:_QUOTED_CHARACTERS]!r}")
    answer = lines[begins[-1] + 1 :]
    for number, line in enumerate(answer):
        if line.endswith(END):  # after an output that does not end its last line
            return answer[:number] + [rest for rest in [line.removesuffix(END)] if rest]
    raise ValueError("it ends in the middle")


def portable(script: str) -> str:
    """A script in one line that any login shell hands on as it is, for `sh -c` to run.

    A csh takes no line break in quotes, and an exclamation mark there for a command of its history; a fish takes two
    backslashes for one.
    """
    escaped = {"\\": r"\0134", "\n": r"\n", "!": r"\0041", "'": r"\0047"}
    text = "".join(escaped.get(character, character) for character in script.strip())
    return f"eval \"$(printf %b '{text}')\""


def _quoted(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[: 2 * _QUOTED_CHARACTERS]
