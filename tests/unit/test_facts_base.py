"""An answer among a host's own noise, and what is no answer."""

import importlib
import inspect
import pkgutil
import subprocess
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko.channel import Channel, ChannelFile
from pyinfra.api import FactBase
from pyinfra.api.exceptions import FactProcessError

import facts
from facts.base import BEGIN, END, HostFact, framed, portable, unframed
from facts.packages import InstalledPackages

ROOT = Path(__file__).resolve().parent.parent.parent
LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).filter(lambda line: END not in line)
)
SCRIPT_TEXT = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=60)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)


@given(SCRIPT_TEXT)
def test_a_script_in_one_line_is_the_script(text: str) -> None:
    command = portable(f"cat <<'THE END'\nx{text}x\nTHE END\n")
    assert shell(command).stdout == f"x{text}x\n"


@given(SCRIPT_TEXT)
def test_no_login_shell_reads_anything_into_it(text: str) -> None:
    command = portable(text)
    assert "\n" not in command  # a csh's quotes end with the line
    assert "!" not in command  # its history, also in quotes
    assert not {"\\\\", "\\'"} & {command[at : at + 2] for at in range(len(command))}  # a fish's only escapes in quotes


@given(LINES, LINES, LINES)
def test_noise_before_and_after_is_no_part_of_the_answer(
    before: list[str], answer: list[str], after: list[str]
) -> None:
    before = [line for line in before if not line.endswith(BEGIN)]
    answer = [line for line in answer if not line.endswith(BEGIN)]
    after = [line for line in after if not line.endswith(BEGIN)]
    assert unframed([*before, BEGIN, *answer, END, *after]) == answer
    assert unframed([*before, f"no end of a line{BEGIN}", *answer, END]) == answer


@given(LINES, st.integers(min_value=0))
def test_a_part_of_an_answer_is_none(answer: list[str], cut: int) -> None:
    whole = [BEGIN, *answer, END]
    with pytest.raises(ValueError, match=r"begins with|ends in the middle"):
        unframed(whole[: cut % len(whole)])


def test_an_answer_is_what_the_command_prints_and_its_status_stays() -> None:
    done = shell(framed("printf 'one\\ntwo'; exit 0"))
    assert (unframed(done.stdout.splitlines()), done.returncode) == (["one", "two"], 0)
    assert shell(framed("exit 3")).returncode == 3


def test_what_makes_no_sense_fails_the_host_and_not_the_run() -> None:
    for output in (["Welcome"], [BEGIN, "three words here", END], [BEGIN], []):
        with pytest.raises(FactProcessError):
            InstalledPackages().process(output)


def every_fact() -> list[type[FactBase[object]]]:
    modules = [importlib.import_module(f"facts.{found.name}") for found in pkgutil.iter_modules(facts.__path__)]
    members = [member for module in modules for member in vars(module).values() if inspect.isclass(member)]
    return [member for member in members if issubclass(member, FactBase) and member not in (FactBase, HostFact)]


@pytest.mark.parametrize("fact", every_fact(), ids=lambda fact: str(fact.__name__))
def test_every_fact_stands_on_the_same_ground(fact: type[FactBase[object]]) -> None:
    assert issubclass(fact, HostFact)
    assert "framed(" in inspect.getsource(fact.command)
    assert not {"process", "default", "requires_command"} & vars(fact).keys()


def test_no_fact_is_read_past_it() -> None:
    files = [file for folder in ("operations", "tasks") for file in (ROOT / folder).glob("*.py")]
    assert files
    assert not [file.name for file in files if "get_fact" in file.read_text()]


@given(st.binary(), st.binary())
def test_bytes_that_are_no_text_are_read_as_noise(before: bytes, after: bytes) -> None:
    wire = BytesIO(before + f"\n{BEGIN}\nfound\n{END}\n".encode() + after)
    channel = cast(Channel, SimpleNamespace(recv=wire.read))
    assert unframed([line.rstrip("\n") for line in ChannelFile(channel)]) == ["found"]
