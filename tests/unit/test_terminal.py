"""What the control machine's terminal gets of a host: nothing but what is seen, in tables, failures and logs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyinfra import logger

from operations.remote import fail, say
from tasks.tables import show
from tests.unit.test_checks_output import HOSTILE, anything, is_seen

ANY_NUMBER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)


@given(st.lists(st.tuples(*[anything] * 5), min_size=1, max_size=3), anything)
@ANY_NUMBER
def test_no_cell_of_a_table_commands_the_terminal(
    capsys: pytest.CaptureFixture[str], rows: list[tuple[str, ...]], title: str
) -> None:
    capsys.readouterr()
    show(title, ("check", "status", "measured", "limit", "what to do"), rows)
    assert all(char == "\n" or is_seen(char) for char in capsys.readouterr().err)


@given(anything)
@ANY_NUMBER
def test_no_failure_commands_the_terminal(text: str) -> None:
    said: list[str] = []
    host: Any = SimpleNamespace(log=said.append, log_styled=lambda line, **_: said.append(line))
    fail(host, text)
    say(host, text)
    assert all(map(is_seen, "".join(said)))


def test_what_pyinfra_quotes_of_a_command_keeps_pyinfra_s_colours_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", logger="pyinfra"):
        logger.error("\033[31m%s\033[0m", f"fatal: {HOSTILE}")
    [record] = caplog.records
    said = record.getMessage()
    assert said.startswith("\033[31mfatal: ")
    assert said.endswith("\033[0m")
    assert all(map(is_seen, said.removeprefix("\033[31m").removesuffix("\033[0m")))
