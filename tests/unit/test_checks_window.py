"""What the journal tells of the time since the last run: which of the gateway's lines count, and as what."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import window
from checks.host import Command
from checks.samples import Histogram
from checks.window import Window, parse_line
from tests.unit.checks_support import GATEWAY, SERVICE, FakeHost, entry, journalled, killed, make_config

KILL, GATEWAY_KILL = killed(SERVICE), killed(GATEWAY)


def line(**changes: object) -> str:
    values: dict[str, object] = {
        "client": "127.0.0.1:54310",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "reason": "short-prompt",
        "backend": "local",
        "request_bytes": 322,
        "response_bytes": 2834,
        "queue_ms": 16,
        "first_byte_ms": 120,
        "total_ms": 1500,
        "end": "--",
    }
    return " ".join(f"{key}={value}" for key, value in {**values, **changes}.items())


def read(tmp_path: Path, *lines: str, cursor: str | None = "s=1") -> Window:
    host = FakeHost(tmp_path)
    host.commands["journalctl"] = journalled(*lines, cursor="s=2")
    return window.read(make_config(tmp_path), host, cursor)


def test_an_answer_counts_once_everywhere(tmp_path: Path) -> None:
    assert read(tmp_path, line()) == Window(
        cursor="s=2",
        requests={"local/short-prompt/2xx": 1},
        responses={"local": Histogram.of([1.5])},
        first_bytes={"local": Histogram.of([0.12])},
        queue_seconds_max=0.016,
        local_answers=1,
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"status": 404, "reason": "-", "end": "LR", "backend": "gateway", "path": "/"}, "gateway/not-routed/4xx"),
        ({"status": 503, "end": "LR", "backend": "gateway"}, "gateway/short-prompt/5xx"),
        ({"status": 504, "end": "sH"}, "local/short-prompt/5xx"),
        ({"status": -1, "end": "CQ", "backend": "-", "total_ms": 900}, "gateway/short-prompt/aborted"),
        ({"end": "CD"}, "local/short-prompt/aborted"),
        ({"end": "cD"}, "local/short-prompt/aborted"),
        ({"end": "SD"}, "local/short-prompt/broken"),
        ({"end": "sD"}, "local/short-prompt/broken"),
    ],
)
def test_what_is_no_whole_answer_has_no_duration(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    found = read(tmp_path, line(**changes))
    assert found.requests == {key: 1}
    assert (found.responses, found.first_bytes, found.local_answers) == ({}, {}, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/health", "method": "GET", "reason": "-"},
        {"path": "/v1/models", "method": "GET", "reason": "-", "backend": "gateway", "end": "LR"},
        {"path": "/health", "method": "GET", "reason": "-", "backend": "gateway", "status": 503},
        {"reason": "probe", "path": "/v1/completions"},
        {"backend": "gateway", "end": "LR"},  # X-LLM-Explain
    ],
)
def test_questions_about_the_model_are_no_requests(tmp_path: Path, changes: dict[str, object]) -> None:
    assert read(tmp_path, line(**changes)) == Window(cursor="s=2")


def test_counting_tokens_is_a_request_without_a_duration(tmp_path: Path) -> None:
    found = read(tmp_path, line(path="/tokenize", reason="local-endpoint"))
    assert found.requests == {"local/local-endpoint/2xx": 1}
    assert (found.responses, found.local_answers) == ({}, 0)


def test_the_cloud_s_answers_do_not_prove_the_local_model(tmp_path: Path) -> None:
    found = read(tmp_path, line(backend="cloud", queue_ms="-"), line(queue_ms=7), line(queue_ms=2100))
    assert set(found.responses) == {"local", "cloud"}
    assert (found.local_answers, found.queue_seconds_max) == (2, 2.1)


def test_kills_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, line(), KILL, GATEWAY_KILL, KILL)
    assert (found.oom_kills, found.gateway_oom_kills) == (2, 1)


def test_refusals_of_the_cloud_are_counted_by_status(tmp_path: Path) -> None:
    """Whether a fallback hides them (503) or not; its failures are no refusals."""
    said = [(503, "401"), (401, "401"), (503, "402"), (503, "403"), (503, "429"), (500, "500"), (504, "-")]
    lines = [f"cloud status={status} provider_status={by} first_byte_ms=1 total_ms=2 end=--" for status, by in said]
    assert read(tmp_path, *lines, line()).cloud_refusals == {"401": 2, "402": 1, "403": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cloud status=503 provider_status=401 first_byte_ms=1 total_ms=2 end=--",
        "[WARNING] (1) : Server llm/llama is DOWN, reason: Layer4 timeout",
        "client=127.0.0.1:1 method=GET path=/ status=200",
    ],
)
def test_other_lines_are_none(text: str) -> None:
    assert parse_line(text) is None


@given(st.text(), st.text(string.printable))
def test_no_line_upsets_the_reader(anything: str, value: str) -> None:
    for text in (anything, f"client={anything}", line(path=value), line(status=value, end=value), line(total_ms=value)):
        found = parse_line(text)
        assert found is None or found.status


def test_the_journal_is_asked_for_the_gateway_and_the_kills(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.commands["journalctl"] = Command(0, "-- cursor: s=2\n", "")
    window.read(make_config(tmp_path), host, "s=1")
    assert host.ran == [
        "journalctl --no-pager --quiet --output=json --output-fields=MESSAGE,UNIT,_PID,_SYSTEMD_UNIT --show-cursor "
        f"--after-cursor=s=1 _SYSTEMD_UNIT={GATEWAY} + _PID=1 MESSAGE_ID=fe6faa94e7774663a0da52717891d8ef "
        f"UNIT={SERVICE} UNIT={GATEWAY}"
    ]


def test_the_first_window_is_empty_and_begins_at_the_end(tmp_path: Path) -> None:
    assert read(tmp_path, cursor=None) == Window(cursor="s=2")


def test_a_cursor_that_is_not_understood_is_begun_anew(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    begun = "journalctl --no-pager --quiet --output=json --output-fields=MESSAGE,UNIT,_PID,_SYSTEMD_UNIT --show-cursor"
    host.commands[f"{begun} --after-cursor"] = Command(1, "", "Failed to seek to cursor: Invalid argument")
    host.commands[f"{begun} --lines=0"] = Command(0, "-- cursor: s=3\n", "")
    assert window.read(make_config(tmp_path), host, "nonsense") == Window(cursor="s=3")


def test_without_new_lines_the_cursor_stays(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.commands["journalctl"] = Command(0, "", "")
    assert window.read(make_config(tmp_path), host, "s=1") == Window(cursor="s=1")


def test_a_journal_that_may_not_be_read(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.commands["journalctl"] = Command(1, "", "No journal files were opened due to insufficient permissions.")
    with pytest.raises(OSError, match="insufficient permissions"):
        window.read(make_config(tmp_path), host, None)


def test_what_others_say_in_the_gateway_s_words_is_nothing(tmp_path: Path) -> None:
    """A message counts by the unit of the process that sent it, a kill only in systemd's own words."""
    forged = [
        entry(line(), "init.scope", 1, UNIT="mallory.service"),
        entry(line(), "user@1000.service"),
        entry(line(), ""),
        entry(json.loads(KILL)["MESSAGE"], UNIT=SERVICE, MESSAGE_ID="fe6faa94e7774663a0da52717891d8ef"),
    ]
    assert read(tmp_path, *forged) == Window(cursor="s=2")


@pytest.mark.parametrize("name", ["backend", "reason", "status"])
def test_a_word_of_no_list_is_other(tmp_path: Path, name: str) -> None:
    said = {"backend": "local", "reason": "default", "status": "200"}
    found = read(tmp_path, *(line(**{**said, name: f"evil{number}"}) for number in range(50)))
    key = {"backend": "other/default/2xx", "reason": "local/other/2xx", "status": "local/default/other"}[name]
    assert found.requests == {key: 50}
    assert set(found.responses) <= {"local"}


def test_a_path_that_is_no_text_counts(tmp_path: Path) -> None:
    """What is no UTF-8 comes as its bytes, what is too long for the journal's JSON as nothing."""
    raw = list(line(path="/v1/chat/completions?\xff").encode("latin-1"))
    assert read(tmp_path, entry(raw), entry(None), entry(["a", "b"])).requests == {"local/short-prompt/2xx": 1}


def test_another_line_separator_in_a_path_splits_no_line(tmp_path: Path) -> None:
    said = json.dumps(json.loads(entry(line(path="/v1/completions?\u2028\x85"))), ensure_ascii=False)
    assert read(tmp_path, said).requests == {"local/short-prompt/2xx": 1}


def test_what_is_too_much_is_counted_on_by_the_next_run(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    text = "".join(f"{entry(line(), __CURSOR=f's=1;i={number}')}\n" for number in range(3))
    host.commands["journalctl"] = Command(0, text, "", cut=True)
    found = window.read(make_config(tmp_path), host, "s=1")
    assert (found.cut, found.cursor, found.requests) == (True, "s=1;i=2", {"local/short-prompt/2xx": 3})
    # Nobody knows whether it answers now.
    assert found.local_answers == 0
