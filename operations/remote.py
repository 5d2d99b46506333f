"""Running commands on a host outside pyinfra's own command list: for jobs that are followed while they run."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from pyinfra import logger
from pyinfra.api import FunctionCommand, Host, State, StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS

from checks.output import printable, printable_lines
from facts.base import framed, portable, unframed

_COLOUR = re.compile(r"(\033\[[0-9;]*m)")


def connector_arguments(host: Host) -> dict[str, Any]:
    """How the operation under way runs its commands (sudo and the like). Call it inside an operation."""
    arguments: Mapping[str, Any] = host.current_op_global_arguments or {}
    return {key: arguments[key] for key in CONNECTOR_ARGUMENT_KEYS if key in arguments}


def run(host: Host, command: str, arguments: Mapping[str, Any]) -> tuple[bool, str]:
    """Run one command quietly; returns whether it succeeded, and what it printed: its errors last."""
    succeeded, output = host.run_shell_command(
        StringCommand(framed(command)), print_output=False, print_input=False, **arguments
    )
    try:
        lines = unframed(output.stdout_lines)
    except ValueError:
        succeeded, lines = False, output.stdout_lines
    return succeeded, "\n".join([*lines, *output.stderr_lines])


def call(function: Callable[[State, Host], bool]) -> FunctionCommand:
    """A command that runs `function(state, host)`; the operation fails where it returns False."""

    # pyinfra passes state and host by their names, and runs such a function without a traceback of its own.
    def function_with_context(state: State, host: Host) -> bool:
        return function(state, host)

    return FunctionCommand(function_with_context, (), {})


def told(command: str, arguments: Mapping[str, Any]) -> FunctionCommand:
    """A command whose output is for a person: shown once it has ended; the operation fails where it does."""

    def run_and_tell(_state: State, host: Host) -> bool:
        succeeded, output = run(host, command, arguments)
        if not succeeded:
            return fail(host, output)
        say(host, output)
        return True

    return call(run_and_tell)


def script(text: str) -> str:
    """A command that runs a POSIX shell script up to its first error, whatever login shell and umask are."""
    return f"/bin/sh -euc {shlex.quote(f'umask 022; {portable(text)}')}"


def say(host: Host, message: str, **style: Any) -> None:
    """Print what may hold words of a host, one prefixed line each, as far as it can be seen."""
    for line in message.splitlines():
        if style:
            host.log_styled(printable(line), **style)
        else:
            host.log(printable(line))


def fail(host: Host, message: str) -> bool:
    """Print why the operation fails, and return False for it."""
    say(host, message, fg="red")
    return False


class _Seen(logging.Filter):
    """What pyinfra itself says, which quotes a command that failed: as far as it can be seen, and its own colours."""

    def filter(self, record: logging.LogRecord) -> bool:
        parts = _COLOUR.split(record.getMessage())
        record.msg = "".join(part if index % 2 else printable_lines(part) for index, part in enumerate(parts))
        record.args = ()
        return True


logger.addFilter(_Seen())
