"""Every operation by cases that are data: what facts find goes in, and the commands come out.

The cases of `operations.systemd.service` are in operations/systemd/service.toml, beside this file, and so on:

    [args]                          # the operation's arguments
    unit = "a.service"
    stamp = "new"

    [asked]                         # by which arguments it asks for facts
    "systemd.Unit" = { unit = "a.service" }

    [shared]                        # what several cases need: "$restart" stands for it, wherever a value may be
    restart = '''
    #!/bin/sh -eu
    systemctl reset-failed a.service 2>/dev/null || true
    systemctl restart a.service
    '''

    [[case]]
    name = "as wanted"              # what is so on this host, or is asked for
    found."systemd.Unit" = { active = true, enabled = true, stamp = "new" }
    noop = "a.service runs with LOCAL_LLM_STAMP=new"

    [[case]]
    name = "it does not start at boot, and its process has another stamp"
    found."systemd.Unit" = { active = true, stamp = "old" }
    commands = ["systemctl enable --quiet a.service", "$restart"]

To add a case, add a block, and run this module. Where the commands are others than the block says, the failure shows
them as they would stand there: read them before you take them over.

- `found`: what each fact finds, by its module and class in facts/. A fact that is asked for and not stated is an error,
  and so is one that is stated and not asked for. Values are made by the fact's types: a table is a dataclass, whose
  fields may be left out where they have a default; "$none" is None; a text in the place of an exception is its message.
- `args`, `asked`: in a case, they replace those of the file, name by name.
- `commands`: all that would run, in order and letter by letter, up to the first that fails. What goes through
  `operations.remote.script` begins with `#!/bin/sh -eu`, and each --property= is shown on a line of its own. One of

      "rm -f /etc/a"                              pyinfra is given it to run
      { command = "$write", stdin = "content" }   the same, with standard input
      { run = "$state", prints = ["x=1"] }        a function of the operation runs it, and reads what it prints;
                                                  `fails = true` and `loses_connection = true` are answers as well

- `said`: the lines that a person is told, rows of tables included. `noop`: why there is nothing to do. `fails = true`:
  a function of the operation has failed. None of that is so where it is left out.
- `diff = true`: with pyinfra's --diff. `stage = "Prepare"`: before anything runs. `before`: operations that run first,
  by name, with their arguments. `hosts`: all hosts of the run, in order; "host" is this one.

A new operation needs a file with two cases, one of them on a host that is as wanted: nothing is done there, and `noop`
says why. Whether a script does what it is for, no case can tell: other tests here and in tests/container run them.
"""

from __future__ import annotations

import difflib
import inspect
import re
import subprocess
import tomllib
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pyinfra import host as current_host
from pyinfra.api import StringCommand
from pyinfra.api.state import StateStage

from facts.base import HostFact, framed
from operations import jobs, lock, reports, verification
from operations.remote import script
from tests.unit.fake_host import FakeHost, all_operations, code_of, peeled, run_operation, type_of

FILES = {
    f"operations.{path.parent.name}.{path.stem}": path
    for path in sorted(Path(__file__).with_name("operations").glob("*/*"))
}
AT_LEAST = {
    "files": 10,
    "llama_cpp": 10,
    "model": 10,
    "openclaw": 10,
    "packages": 10,
    "swap": 10,
    "systemd.service": 10,
    "ufw": 10,
}
"""Cases of a module, or of one operation."""
SHELL = "#!/bin/sh -eu\n"


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Command(Data):
    """What pyinfra is given to run."""

    command: str
    stdin: str | None = None

    def __str__(self) -> str:
        return self.command + (f"<<< {self.stdin!r}" if self.stdin is not None else "")


class Run(Data):
    """What a function of an operation runs, and what it gets back."""

    run: str
    prints: list[str] = []
    fails: bool = False
    loses_connection: bool = False

    def __str__(self) -> str:
        return f"run: {self.run}"


class Case(Data):
    name: str
    args: dict[str, Any] = {}
    asked: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    commands: list[Command | Run | str] = []
    said: list[str] = []
    noop: str | None = None
    fails: bool = False
    diff: bool = False
    stage: str = "Execute"
    before: dict[str, dict[str, Any]] = {}
    hosts: list[str] = ["host"]


class Cases(Data):
    """A file of cases."""

    args: dict[str, Any] = {}
    asked: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    case: list[Case]


@cache
def cases_of(operation: str) -> Cases:
    data = tomllib.loads(FILES[operation].read_text())
    shared = data.get("shared", {})
    cases = Cases.model_validate(_with_shared(data, shared))
    for case in cases.case:
        case.args = cases.args | case.args
        case.asked = cases.asked | case.asked
    return cases


def _with_shared(data: Any, shared: Mapping[str, Any]) -> Any:
    match data:
        case dict():
            return {name: _with_shared(value, shared) for name, value in data.items()}
        case list():
            return [_with_shared(value, shared) for value in data]
        case "$none":
            return None
        case str() if data.startswith("$") and data[1:] in shared:
            return _with_shared(shared[data[1:]], shared)
        case _:
            return data


def typed(hint: Any, data: Any) -> Any:
    """Data of a case as a value of this type."""
    for error in typing.get_args(hint):
        if isinstance(data, str) and inspect.isclass(error) and issubclass(error, Exception):
            return error(data)
    return vars(_model(hint).model_validate({"value": data}))["value"]


@cache
def _model(hint: Any) -> type[BaseModel]:
    return create_model(
        "Stated", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), value=(hint, ...)
    )


def arguments(operation: str, data: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(all_operations()[operation], include_extras=True)
    return {name: typed(hints[name], value) for name, value in data.items()}


def readable(command: str) -> str:
    """A command as a case has it: no two commands look alike."""
    if script(text := code_of(command)) == command:
        command = f"{SHELL}{text}\n"
    return re.sub(r" (?='?--property=)", "\n    ", command)


class StatedHost(FakeHost):
    """A host as a case states it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.left = dict(case.found)
        self.wanted = [str(each) for each in case.commands]
        self.done: list[str] = []

    def find(self, fact: type[HostFact[Any]], arguments: Mapping[str, Any]) -> Any:
        name = f"{fact.__module__}.{fact.__name__}".removeprefix("facts.")
        assert fact().command(**arguments)
        assert name in self.left, f"{name} is asked for, and not stated"
        assert _plain(arguments) == self.case.asked.get(name, {}), f"{name} is asked for by other arguments"
        return typed(type_of(fact), self.left.pop(name))

    def answer(self, command: str) -> tuple[bool, list[str]]:
        text = peeled(peeled(command) or "") or ""
        assert framed(text) == command, "what others print may be in its answer"
        self.done.append(str(Run(run=readable(text))))
        if self.done != self.wanted[: len(self.done)]:
            pytest.fail(self.difference())
        now = self.case.commands[len(self.done) - 1]
        assert isinstance(now, Run)
        if now.loses_connection:
            raise OSError("connection reset")
        return not now.fails, now.prints

    def take(self, command: StringCommand) -> None:
        data = {"command": readable(command.get_raw_value()), "stdin": command.connector_arguments.get("_stdin")}
        self.done.append(str(Command.model_validate(data)))

    def difference(self) -> str:
        wanted, done = (
            [line for each in side for line in [*each.splitlines(), ""]] for side in (self.wanted, self.done)
        )
        return "\n".join(
            ["other commands:", *difflib.unified_diff(wanted, done, "case", "operation", n=50, lineterm="")]
        )


def _plain(value: Any) -> Any:
    """As TOML has it."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What operations see of this machine is the same everywhere."""
    monkeypatch.chdir(tmp_path)
    clock = Clock()
    monkeypatch.setattr(jobs, "time", clock)
    monkeypatch.setattr(jobs, "gevent", clock)
    monkeypatch.setattr(lock.getpass, "getuser", lambda: "me")
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(lock.uuid, "uuid4", lambda: SimpleNamespace(hex="0badc0de"))
    monkeypatch.setattr(reports, "_collected", {})
    monkeypatch.setattr(reports, "show", show)
    monkeypatch.setattr(verification, "show", show)


def show(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Tables are said like all else."""
    for row in [(title,), columns, *rows]:
        current_host.log(" | ".join(row))


def check(operation: str, case: Case) -> None:
    """Run an operation on the host of a case: all that comes of it is as the case states."""
    host = StatedHost(case)
    hosts = [host if name == host.name else SimpleNamespace(name=name) for name in case.hosts]
    state = SimpleNamespace(
        config=SimpleNamespace(DIFF=case.diff),
        current_stage=StateStage[case.stage],
        inventory=hosts,
        active_hosts=hosts,
        activated_hosts=hosts,
        is_host_in_limit=lambda _: True,
    )
    for name, data in case.before.items():
        run_operation(all_operations()[f"operations.{name}"], arguments(f"operations.{name}", data), host, state)
    host.said.clear()
    host.noops.clear()
    succeeded = run_operation(all_operations()[operation], arguments(operation, case.args), host, state)
    if host.done != host.wanted:
        pytest.fail(host.difference())
    assert not host.left, "stated, and not asked for"
    assert host.said == case.said
    assert host.noops == ([case.noop] if case.noop else [])
    assert succeeded is not case.fails


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(
    ("operation", "case"),
    [
        pytest.param(name, case, id=f"{name.removeprefix('operations.')}: {case.name}")
        for name in FILES
        for case in cases_of(name).case
    ],
)
def test_case(operation: str, case: Case) -> None:
    check(operation, case)


UNIT = {"active": True, "enabled": True, "stamp": "new"}


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(
    "wrong",
    [
        {"found": {}},
        {"found": {"systemd.Unit": UNIT, "files.FileDigests": {}}},
        {"found": {"systemd.Unit": {**UNIT, "activ": True}}},
        {"asked": {"systemd.Unit": {"unit": "b.service"}}},
        {"commands": ["systemctl daemon-reload"]},
        {"commands": [Run(run="systemctl daemon-reload")]},
        {"said": ["something"]},
        {"noop": None},
        {"noop": "another reason"},
        {"fails": True},
    ],
)
def test_a_case_that_states_anything_else_fails(wrong: dict[str, Any]) -> None:
    operation = "operations.systemd.service"
    case = next(case for case in cases_of(operation).case if case.name == "as wanted")
    check(operation, case)
    with pytest.raises((AssertionError, ValidationError, pytest.fail.Exception)):
        check(operation, case.model_copy(update=wrong))


def test_every_operation_has_cases() -> None:
    assert set(FILES) == set(all_operations())


@pytest.mark.parametrize("name", AT_LEAST)
def test_a_module_has_as_many_cases_as_are_stated(name: str) -> None:
    count = sum(len(cases_of(each).case) for each in FILES if f"{each}.".startswith(f"operations.{name}."))
    assert count >= AT_LEAST[name]


@pytest.mark.parametrize("operation", FILES)
def test_one_case_is_a_host_that_is_as_wanted(operation: str) -> None:
    cases = cases_of(operation).case
    assert len({case.name for case in cases}) == len(cases) > 1
    good = [case for case in cases if case.noop and not case.fails]
    assert good
    assert all(isinstance(each, Run) for case in good for each in case.commands)


@pytest.mark.parametrize("operation", FILES)
def test_all_of_a_file_is_used_and_scripts_are_shell(operation: str) -> None:
    cases, text = cases_of(operation), FILES[operation].read_text()
    assert {name for name in cases.shared if f'"${name}"' not in text} == set()
    assert set(cases.asked) == {name for case in cases.case for name in case.found if name in cases.asked}
    scripts = [each for each in cases.shared.values() if isinstance(each, str) and each.startswith(SHELL)]
    subprocess.run(["/bin/sh", "-n"], input="\n".join(scripts), text=True, check=True)
