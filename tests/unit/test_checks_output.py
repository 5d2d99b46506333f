"""The edge: whatever a model, a cloud, a log or a stranger on a port says, a terminal gets only what is seen."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks import cli, output, report
from checks.output import printable, printable_lines
from checks.result import Result, Status
from checks.route import RouteError, explain
from checks.samples import Sample
from tests.unit.checks_support import serve, write_config

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u200f\u061c\u200b\u2028\ufeff\x7f\ud800\ufe0f\u3164"
anything = st.text(st.characters(codec=None) | st.sampled_from(HOSTILE))
Capture = pytest.CaptureFixture[str]


def is_seen(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@given(anything)
def test_only_what_is_seen_goes_out(text: str) -> None:
    assert all(map(is_seen, printable(text)))
    assert all(char in "\n\t" or is_seen(char) for char in printable_lines(text))
    printable_lines(text).encode()
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("char", HOSTILE.translate(dict.fromkeys(map(ord, "]0;owned[2Jgnp31m"))))
def test_each_of_them_is_a_blank(char: str) -> None:
    assert printable(f"a{char}b") == "a b"


def test_what_people_write_stays() -> None:
    text = "Grüße, 世界 → ½ é 🙂 “…”"
    assert printable(text) == text
    assert printable_lines("a\n\tb\r\n") == "a\n\tb \n"


@given(anything)
def test_json_stays_json(text: str) -> None:
    for indent in (None, 2):
        said = output.as_json({text: [text]}, indent)
        assert said == printable_lines(said)
        assert json.loads(said) == {text: [text]}


@given(
    st.lists(st.builds(Result, *([anything] * 0), name=anything, status=st.sampled_from(Status), value=anything,
                       limit=anything, remedy=anything, group=anything), max_size=4)
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_field_of_a_result_commands_the_terminal(capsys: Capture, results: list[Result]) -> None:
    with output.edge():
        output.show(report.as_table(results, 1.0), colour=False)
        print(output.as_json(report.as_json(results, 1.0, 0.0), indent=2))
    said = capsys.readouterr().out
    assert all(char in "\n\t" or is_seen(char) for char in said)


def test_a_terminal_shows_verdicts_in_colour_and_no_other_command(capsys: Capture) -> None:
    results = [Result("\x1b[31mname", Status.FAIL, "  PASS  \x1b[32m", "", "  FAIL  x")]
    with output.edge():
        output.show(report.as_table(results, 1.0), colour=True)
    said = capsys.readouterr().out
    assert said.count("\x1b[31mFAIL\x1b[0m") == 1
    assert said.count("\x1b") == 2


def test_the_streams_are_what_they_were(capsys: Capture) -> None:
    before = sys.stdout, sys.stderr
    with output.edge():
        print("\x1b[1m", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000, b"1" * 60_000, b"\xff\xfe", b"NaN"])
def test_no_answer_of_a_hostile_program_breaks_the_commands(body: bytes, tmp_path: Path, capsys: Capture) -> None:
    with serve() as api:
        api.respond = lambda _path, _headers, _sent: (200, {"X-LLM-Backend": "x"}, body)
        with pytest.raises(RouteError, match="did not explain"):
            explain(api.url, b"{}")
        request = tmp_path / "request.json"
        request.write_text("{}")
        config = ["--config", str(write_config(tmp_path, api_url=api.url))]
        assert cli.main(["route", str(request), "--json", *config]) == 1
        assert cli.main(["ask", "hello", *config]) == 1
    said = capsys.readouterr()
    assert all(char in "\n\t" or is_seen(char) for char in said.out + said.err)


def test_an_answer_that_is_piped_is_cleaned_as_well(tmp_path: Path, capsys: Capture) -> None:
    from tests.unit.checks_support import stream_of

    with serve() as api:
        api.stream = stream_of("The\n", HOSTILE, "\tend")
        assert cli.main(["ask", "hello", "--url", api.url]) == 0
    said = capsys.readouterr().out
    assert said.startswith("The\n")
    assert said.endswith("\tend\n")
    assert all(char in "\n\t" or is_seen(char) for char in said)


@given(anything, anything)
def test_a_line_of_the_log_is_seen(reason: str, healed: str) -> None:
    from checks.health import format_line

    line = format_line(Sample(time=0, ok=False, reasons=(reason,), healed=healed))
    assert all(map(is_seen, line))
