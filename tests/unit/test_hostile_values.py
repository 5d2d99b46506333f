"""Every fact and every operation, given values that a shell would take for code: nothing but words may come of them.

The commands that they produce are run by a real shell as a user without rights, in a scratch directory, with stand-ins
for all programs that write down which arguments arrive. Facts and operations are found by themselves, and their values
are made from their types: a text that is meant as code is annotated as `Shell`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import json
import os
import shlex
import signal
import subprocess
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import StringCommand

from facts.base import HostFact
from operations.shell import Shell, word
from tests.unit.fake_host import FakeHost, all_facts, all_operations, code_of, run_operation, type_of

HOSTILE = (
    "CANARY;id>PWNED;",
    "CANARY $(id>PWNED) *",
    "CANARY';id>PWNED;'",
    'CANARY";id>PWNED;"`id>PWNED` é',
    "CANARY\nid>PWNED\n",
    "*CANARY?",
    "-CANARY",
)
PLAIN = "plain"
OWN_WORDS = {
    "facts.packages.InstalledPackages": "names of packages are this project's own words",
    "facts.packages.Plan": "the same",
    "facts.removal.Removable": "patterns of paths are this project's own words",
    "facts.removal.Sizes": "the same",
    "facts.removal.UnitsLeft": "so are names of units",
    "operations.removal.removed": "the same patterns",
    "operations.removal.schedule_removed": "the file and the locks are this project's own",
    "operations.removal.units_removed": "units, as the fact has them",
    "operations.packages.installed": "so are units and the record",
    "operations.packages.removed": "the same",
    "operations.ufw.restored": "rules as UFW itself lists them, and a record of root's",
    "operations.layout.accounts_removed": "descriptions of accounts are this project's own words",
    "facts.layout.MadeAccounts": "the same",
    "operations.ufw.firewall": "a rule is several words; settings.firewall.FirewallPort says of which characters",
}
"""What gets no text from a host or a setting. It is run with plain words."""

STAND_IN = """#!/bin/sh
name=${0##*/}
log() { printf '%s\\0' "$@" >>"$CALLS"; }
log "$name"
case $name in
    systemd-run | runuser)  # what they run is run
        while [ "$#" -gt 0 ] && [ "$1" != -- ]; do log "$1"; shift; done
        printf '\\1\\0' >>"$CALLS"
        [ "$#" -lt 2 ] || ! command -v "$2" >/dev/null || { shift; exec "$@"; } ;;
    *)
        [ "$#" = 0 ] || log "$@"
        printf '\\1\\0' >>"$CALLS" ;;
esac
"""


def made(hint: Any, text: str) -> Any:
    """A value of a type, with this text wherever there is one."""
    if hint == Shell:
        return "true"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return made(arguments[0], text)
    if origin in (typing.Union, types.UnionType):
        return made(arguments[0], text)
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return (
            (made(arguments[0], text),) * 2 if Ellipsis in arguments else tuple(made(each, text) for each in arguments)
        )
    if origin in (Sequence, list):
        return [made(arguments[0], text)]
    if origin in (set, frozenset, AbstractSet):
        return origin({made(arguments[0], text)})
    if origin in (Mapping, dict):
        return {made(arguments[0], name): made(arguments[1], text) for name in (text, "HOME")}
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return next(iter(hint))
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        return typing.cast(Any, hint)(
            **{each.name: made(hints[each.name], _as(each.name, text)) for each in dataclasses.fields(hint)}
        )
    plain = {str: text, Any: text, object: text, int: 1, float: 1.0, bool: True, bytes: text.encode(), type(None): None}
    assert hint in plain, f"say how a value of {hint} is made"
    return plain[hint]


def arguments_of(function: Callable[..., Any], text: str) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: made(hints[name], _as(name, text)) for name in inspect.signature(function).parameters}


def _as(name: str, text: str) -> str:
    """A path has a folder and a name, so has an address."""
    return f"{text}/{text}" if name in ("path", "url") else text


class Recorder(FakeHost):
    """Keeps every command that is to run; facts find this text everywhere, or nothing (None), as on a bare host."""

    def __init__(self, text: str | None, job: str) -> None:
        super().__init__()
        self.text, self.job = text, job
        self.commands: list[str] = []

    def find(self, fact: type[HostFact[Any]], arguments: Mapping[str, Any]) -> Any:
        self.commands.append(str(fact().command(**arguments)))
        return fact().parse([]) if self.text is None else made(type_of(fact), self.text)

    def answer(self, command: str) -> tuple[bool, list[str]]:
        self.commands.append(command)
        return True, [f"ActiveState={self.job}", "SubState=exited" if self.job == "active" else "SubState=failed"]

    def take(self, command: StringCommand) -> None:
        self.commands.append(command.get_raw_value())


def commands_of(operation: Callable[..., Any], text: str, found: str | None, job: str) -> list[str]:
    """All that an operation would run, where facts find nothing (`found` is None) or that text everywhere."""
    host, state = Recorder(found, job), SimpleNamespace(config=SimpleNamespace(DIFF=True), current_stage=None)
    run_operation(operation, arguments_of(operation, text), host, state, to_the_end=True)
    return host.commands


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[Path]:
    """A directory with a stand-in for every program of this machine, and for those of a host."""
    with tempfile.TemporaryDirectory(prefix="stand-ins-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        stand_in = path / "stand-in"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        names = {each for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") for each in os.listdir(place)}  # noqa: PTH208
        for name in names | {
            "systemctl",
            "systemd-run",
            "runuser",
            "ufw",
            "apt-get",
            "haproxy",
            "curl",
            "git",
            "cmake",
        }:
            with contextlib.suppress(FileExistsError):
                (path / name).symlink_to(stand_in)
        yield path


def run(command: str, text: str, stand_ins: Path) -> list[list[str]]:
    """Run it as a user without rights, to its end whatever fails; returns the calls of programs."""
    code = command.replace("/bin/sh -euc", "/bin/sh -uc").replace("exit 1", ":")
    nobody: dict[str, Any] = {} if os.geteuid() else {"user": 65534, "group": 65534, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o777)
        (scratch / "xCANARYx").touch()
        (scratch / text).mkdir(mode=0o777)
        calls = scratch / "calls"
        calls.touch(mode=0o666)
        calls.chmod(0o666)
        process = subprocess.Popen(
            ["/bin/sh", "-c", code], cwd=scratch, start_new_session=True,
            env={"PATH": str(stand_ins), "CALLS": str(calls), "OPENCLAW": "openclaw"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            **nobody,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=2)[1]
        except subprocess.TimeoutExpired:  # it waits for something that no stand-in does
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[1]
        assert not list(scratch.rglob("PWNED")), f"it ran: {command}"
        assert not [line for line in said.splitlines() if "CANARY" in line and "not found" in line], (said, command)
        words = calls.read_text(errors="replace").split("\0")
    found: list[list[str]] = [[]]
    for each in words[:-1]:
        if each == "\1":
            found.append([])
        else:
            found[-1].append(each)
    return found


def assert_only_words(commands: Sequence[str], text: str, stand_ins: Path) -> None:
    for command in dict.fromkeys(commands):
        subprocess.run(["/bin/sh", "-n", "-c", code_of(command)], check=True)
        if "CANARY" not in command:
            continue
        for call in run(command, text, stand_ins):
            for each in call:
                # In JSON, or the beginning of a commit: a release is named by that.
                whole = text in each or json.dumps(text)[1:-1] in each or text[:12] in each
                assert "CANARY" not in each or whole, f"{text!r} arrived as {call} by {command}"
                assert not each.startswith("-CANARY"), f"an option of {call} by {command}"


def refused_as_an_option(text: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(ValueError) if text.startswith("-") else contextlib.nullcontext()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", [name for name in all_facts() if name not in OWN_WORDS])
def test_a_fact_makes_words_of_its_arguments(name: str, text: str, stand_ins: Path) -> None:
    fact = all_facts()[name]()
    with refused_as_an_option(text):
        assert_only_words([str(fact.command(**arguments_of(fact.command, text)))], text, stand_ins)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", [name for name in all_operations() if name not in OWN_WORDS])
def test_an_operation_makes_words_of_values_and_of_what_a_host_says(name: str, text: str, stand_ins: Path) -> None:
    operation = all_operations()[name]
    for found, job in ((None, "active"), (text, "active"), (text, "failed")):
        with refused_as_an_option(text):
            assert_only_words(commands_of(operation, text, found, job), text, stand_ins)
    with refused_as_an_option(text):  # what a host says, where the settings are as they should be
        assert_only_words(commands_of(operation, PLAIN, text, "active"), text, stand_ins)


@pytest.mark.parametrize("name", [name for name in OWN_WORDS if name in all_operations()])
def test_own_words_are_shell(name: str, stand_ins: Path) -> None:
    assert_only_words(commands_of(all_operations()[name], PLAIN, None, "active"), PLAIN, stand_ins)


def test_the_stand_ins_see_what_is_not_quoted(stand_ins: Path) -> None:
    for text in HOSTILE:
        with pytest.raises((AssertionError, subprocess.CalledProcessError)):
            assert_only_words([f"rm -f {text}"], text, stand_ins)
    assert_only_words([f"rm -f {word(HOSTILE[0])}"], HOSTILE[0], stand_ins)


@pytest.mark.parametrize("value", ["-x", "--", "a\0b"])
def test_a_word_is_never_an_option(value: str) -> None:
    with pytest.raises(ValueError, match="not usable as an argument"):
        word(value)


@pytest.mark.parametrize("name", all_operations())
def test_nothing_is_renamed_before_it_is_on_the_disk(name: str) -> None:
    """Every `mv` is the second of three lines: what is renamed is synced before it, and the directory after."""
    for found in (None, PLAIN):
        for job in ("active", "failed"):
            for command in commands_of(all_operations()[name], PLAIN, found, job):
                lines = [line.strip() for line in code_of(command).splitlines()]
                for number, line in enumerate(lines):
                    if line.startswith("mv ") and ".taken" not in line.split()[-1]:
                        new, final = shlex.split(line)[-2:]
                        assert lines[number - 1] == f"find {new} ! -type l -exec sync -- {{}} +", command
                        assert lines[number + 1] == f"sync -- {Path(final).parent}", command
                    else:
                        assert " mv " not in line, command
