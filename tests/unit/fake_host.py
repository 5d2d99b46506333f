"""A host that is none: what facts and operations would run on one, and what they say."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import gevent
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.context import ctx_host, ctx_state

import facts
import operations
from facts.base import BEGIN, END, HostFact


def all_facts() -> dict[str, type[HostFact[Any]]]:
    """By module and class, such as `facts.files.FileContents`."""
    found = (thing for module in _modules(facts) for thing in vars(module).values() if inspect.isclass(thing))
    return {
        f"{thing.__module__}.{thing.__name__}": thing
        for thing in found
        if issubclass(thing, HostFact)
        and thing is not HostFact
        and thing.__module__.startswith("facts.")
        and "command" in vars(thing)
    }


def all_operations() -> dict[str, Callable[..., Any]]:
    """The generators, by module and name, such as `operations.files.managed`."""
    return {
        f"{module.__name__}.{name}": thing._inner
        for module in _modules(operations)
        for name, thing in vars(module).items()
        if hasattr(thing, "_inner") and thing.__module__ == module.__name__
    }


def _modules(package: types.ModuleType) -> Iterator[types.ModuleType]:
    for each in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{each.name}")


def type_of(fact: type[HostFact[Any]]) -> Any:
    """What the fact finds."""
    base = next(each for each in vars(fact)["__orig_bases__"] if typing.get_args(each))
    return typing.get_args(base)[0]


class FakeHost:
    """Stands in for pyinfra's host. A subclass says what facts find and commands answer, and keeps the others."""

    name = "host"
    current_op_global_arguments: Mapping[str, Any] = {"_sudo": True}

    def __init__(self) -> None:
        self.said: list[str] = []
        self.noops: list[str] = []

    def find(self, fact: type[HostFact[Any]], arguments: Mapping[str, Any]) -> Any:
        """What a fact finds."""
        raise NotImplementedError

    def answer(self, command: str) -> tuple[bool, list[str]]:
        """Whether a command that an operation runs itself succeeds, and what it prints."""
        raise NotImplementedError

    def take(self, command: StringCommand) -> None:
        """A command that an operation hands to pyinfra."""
        raise NotImplementedError

    def get_fact(self, fact: type[HostFact[Any]], **arguments: Any) -> Any:
        return self.find(fact, arguments)

    def run_shell_command(self, command: StringCommand, **arguments: Any) -> tuple[bool, SimpleNamespace]:
        assert arguments.get("_sudo"), f"not as the operation's other commands are run: {command}"
        if not isinstance(gevent.getcurrent(), gevent.Greenlet):
            gevent.sleep(0)  # what runs beside this begins
        succeeded, lines = self.answer(command.get_raw_value())
        return succeeded, SimpleNamespace(stdout_lines=[BEGIN, *lines, END], stderr_lines=[])

    def log(self, message: str, **_: Any) -> None:
        self.said.append(message)

    log_styled = log

    def noop(self, description: str) -> None:
        self.noops.append(description)


def run_operation(
    operation: Callable[..., Any], arguments: Mapping[str, Any], host: FakeHost, state: Any, *, to_the_end: bool = False
) -> bool:
    """Run it as pyinfra does, up to a command that fails, or to the end; returns whether all succeeded."""
    succeeded = True
    with ctx_host.use(host), ctx_state.use(state):
        for command in operation(**arguments):
            if not isinstance(command, FunctionCommand):
                host.take(StringCommand(command) if isinstance(command, str) else command)
            elif not typing.cast(Any, command.function)(state=state, host=host):
                succeeded = False
                if not to_the_end:
                    break
    return succeeded


def code_of(command: str) -> str:
    """The script that a command runs in the end: out of its shell, its line and its frame."""
    while (inner := peeled(command)) is not None:
        command = inner
    return command


def peeled(command: str) -> str | None:
    """A command out of the outermost of these; None where it is in none."""
    if command.startswith("/bin/sh -euc "):
        return shlex.split(command)[2].removeprefix("umask 022; ")
    if line := re.fullmatch(r"""eval "\$\(printf %b '(.*)'\)\"""", command):
        return re.sub(r"\\(0\d\d\d|n)", lambda each: "\n" if each[1] == "n" else chr(int(each[1], 8)), line[1])
    if command.startswith(f"umask 022\necho '{BEGIN}'\n(\n"):
        return command.split("\n(\n", 1)[1].rsplit("\n)\nstatus=", 1)[0]
    return None
