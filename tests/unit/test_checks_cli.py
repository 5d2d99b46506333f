"""The command as a person, cron and the control machine use it: output, exit codes, one clear line on errors."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import __version__, cli, health, report, runner, status
from checks.contract.config import Config
from checks.contract.paths import DRILL_RECORD
from checks.host import Command, Host
from checks.result import Check, Result, Status
from tests.unit.checks_support import (
    GATEWAY,
    MIB,
    PID,
    REFUSED_URL,
    SERVICE,
    Api,
    FakeHost,
    make_config,
    serve,
    show,
    stream_of,
    write_config,
)

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[Api]:
    with serve() as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY), show("cron.service"))
    host.rss[PID] = 1204 * MIB
    host.put(DRILL_RECORD, "{}")
    host.commands["journalctl"] = Command(0, "-- cursor: s=1\n", "")
    monkeypatch.setattr(cli, "Host", lambda: host)
    return host


@pytest.fixture
def options(server: Api, tmp_path: Path) -> list[str]:
    return ["--config", str(write_config(tmp_path, api_url=server.url))]


def passing(_config: Config, _host: Host) -> Iterator[Result]:
    yield Result("good", Status.PASS, "1 ms", "at most 2 ms")


def warning(_config: Config, _host: Host) -> Iterator[Result]:
    yield Result("odd", Status.WARN, "3", "2", "Look: local-llm status")


def failing(_config: Config, _host: Host) -> Iterator[Result]:
    yield Result("bad", Status.FAIL, "3", "2", "Restart: sudo systemctl restart local-llm")


def breaking(_config: Config, _host: Host) -> Iterator[Result]:
    yield Result("before", Status.PASS, "1")
    raise ValueError("two\nlines")


def forbidden(_config: Config, host: Host) -> Iterator[Result]:
    host.require_root("ufw")
    yield Result("never", Status.PASS, "1")


def test_a_check_that_breaks_is_a_failure_and_the_rest_still_runs(tmp_path: Path, host: FakeHost) -> None:
    found, seconds = runner.run(make_config(tmp_path), host, {"a": [breaking, passing], "b": [failing]})
    assert [(result.group, result.name, result.status.value) for result in found] == [
        ("a", "before", "PASS"),
        ("a", "breaking", "FAIL"),
        ("a", "good", "PASS"),
        ("b", "bad", "FAIL"),
    ]
    assert found[1].value == "ValueError: two lines"
    assert seconds >= 0


def test_what_needs_root_is_a_warning_for_others(tmp_path: Path, host: FakeHost) -> None:
    host.root_user = False
    (found,), _ = runner.run(make_config(tmp_path), host, {"a": [forbidden]})
    assert found.status is Status.WARN
    assert "sudo local-llm test" in found.remedy


def test_what_even_root_may_not_read_is_a_failure(tmp_path: Path, host: FakeHost) -> None:
    def locked(_config: Config, _host: Host) -> Iterator[Result]:
        raise PermissionError("sealed")
        yield

    (found,), _ = runner.run(make_config(tmp_path), host, {"a": [locked]})
    assert (found.status, found.value) == (Status.FAIL, "PermissionError: sealed")


def test_every_check_survives_an_empty_host(tmp_path: Path) -> None:
    config = make_config(tmp_path, api_url=REFUSED_URL, metrics_url=REFUSED_URL)
    found, _ = runner.run(config, FakeHost(tmp_path))
    assert Status.PASS not in {result.status for result in found}
    assert {result.group for result in found} == set(runner.GROUPS)
    assert all(result.remedy for result in found)


@pytest.mark.parametrize(
    ("checks", "code"), [([passing], 0), ([passing, warning], 0), ([passing, failing], 1), ([breaking], 1)]
)
@pytest.mark.parametrize("as_json", [True, False])
def test_exit_code_of_test(
    options: list[str],
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    checks: list[Check],
    code: int,
    as_json: bool,
) -> None:
    monkeypatch.setattr(runner.run, "__defaults__", ({"group": checks},))
    assert cli.main(["test", *options, *(["--json"] if as_json else [])]) == code
    assert ("FAIL" in capsys.readouterr().out.replace('"FAIL": 0', "").replace("0 FAIL", "")) is (code == 1)


def test_the_json_has_its_fields(
    options: list[str], host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(runner.run, "__defaults__", ({"g": [passing, failing]},))
    cli.main(["test", "--json", *options])
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {"host", "time", "version", "seconds", "summary", "results"}
    assert data["summary"] == {"PASS": 1, "WARN": 0, "FAIL": 1}
    assert data["results"][1] == {
        "group": "g",
        "name": "bad",
        "status": "FAIL",
        "value": "3",
        "limit": "2",
        "remedy": "Restart: sudo systemctl restart local-llm",
    }


def long_results() -> list[Result]:
    remedy = "The sandbox is weaker than deployed. " + "What opens it: systemd-analyze security x.service; " * 4
    return [
        Result("a name " * 12, Status.FAIL, "some value " * 20, "x" * 200, remedy, "security"),
        Result("port 8765", Status.PASS, "127.0.0.1:8765", "loopback only", "", "security"),
        Result("response time", Status.PASS, "0.4 s", "at most 5 s", "", "api"),
    ]


def test_the_table_fits_its_width() -> None:
    table = report.as_table(long_results(), 2.0)
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "  PASS  port 8765                               127.0.0.1:8765\n" in table
    assert "0.4 s (at most 5 s)" in table
    assert table.endswith("2 PASS, 0 WARN, 1 FAIL in 2.0 s")


def test_health_prints_its_line(options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["health", *options, "--lock-file", str(tmp_path / "lock")]) == 0
    out, err = capsys.readouterr()
    assert " OK service=active" in out
    assert (out.count("\n"), err) == (1, "")


def test_health_logs_in_silence(options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture) -> None:
    log = tmp_path / "health.log"
    where = ["--log", "--log-file", str(log), "--lock-file", str(tmp_path / "lock")]
    assert cli.main(["health", *options, *where]) == 0
    assert capsys.readouterr() == ("", "")
    assert health.parse_line(log.read_text()) is not None


def test_health_tells_cron_of_a_failure(options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture) -> None:
    host.put_units(show(SERVICE, ActiveState="failed"), show(GATEWAY))
    log = tmp_path / "health.log"
    where = ["--log", "--log-file", str(log), "--lock-file", str(tmp_path / "lock")]
    assert cli.main(["health", *options, *where]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(log.read_text().partition("\n")[0] + "\n")
    assert 'reason="local-llm.service is failed"' in err
    assert "sudo local-llm test" in err


@pytest.mark.parametrize("log", [True, False])
def test_a_second_health_check_steps_back(
    options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture, log: bool
) -> None:
    where = ["--log-file", str(tmp_path / "log"), "--lock-file", str(tmp_path / "lock")]
    with health.lock(str(tmp_path / "lock")):
        assert cli.main(["health", *options, *where, *(["--log"] if log else [])]) == 0
    out, err = capsys.readouterr()
    assert ("Another health check is running" in out) is not log
    assert err == ""
    assert not (tmp_path / "log").exists()


def test_a_log_that_cannot_be_written(options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture) -> None:
    where = ["--log", "--log-file", str(tmp_path), "--lock-file", str(tmp_path / "lock")]
    assert cli.main(["health", *options, *where]) == 1
    assert "could not be written" in capsys.readouterr().err


def test_metrics_prints_the_hour_and_logs_it_in_silence(
    options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture
) -> None:
    log = tmp_path / "metrics.log"
    where = ["--log-file", str(log), "--lock-file", str(tmp_path / "lock")]
    assert cli.main(["metrics", *options, *where]) == 0
    out, err = capsys.readouterr()
    assert " rss_mib=1204 " in out
    assert (out.count("\n"), err, log.exists()) == (1, "", False)
    assert cli.main(["metrics", *options, *where, "--log"]) == 0
    assert capsys.readouterr() == ("", "")
    assert " rss_mib=1204 " in log.read_text()


def test_metrics_tells_cron_of_a_full_disk(
    options: list[str], host: FakeHost, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(health, "append", no_space)
    where = ["--log", "--log-file", str(tmp_path / "log"), "--lock-file", str(tmp_path / "lock")]
    assert cli.main(["metrics", *options, *where]) == 1
    err = capsys.readouterr().err
    assert " rss_mib=1204 " in err
    assert "could not be written down: [Errno 28] No space left on device" in err


@pytest.mark.parametrize("command", [["status"], ["health"], ["metrics"], ["test"], ["version"], ["ask", "x"]])
def test_a_missing_configuration_is_one_line(tmp_path: Path, capsys: Capture, command: list[str]) -> None:
    assert cli.main([*command, "--config", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "none is missing" in err


@pytest.mark.parametrize("words", [[], ["dance"], ["ask"], ["ask", "x", "--max-tokens", "0"], ["test", "--yaml"]])
def test_wrong_usage(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: local-llm" in capsys.readouterr().err


def test_help_shows_examples(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "sudo local-llm test --json" in capsys.readouterr().out


def test_version(options: list[str], host: FakeHost, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out
    host.put("/opt/local-llm/current/release.json", '{"release": "r1", "commit": "c1"}')
    host.put("/opt/local-llm/current/bin/llama-server", "")
    assert cli.main(["version", "--json", *options]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert (versions["release"], versions["llama_cpp_commit"]) == ("r1", "c1")
    assert versions["llama_server"] is None
    assert cli.main(["version", *options]) == 0
    assert "c1" in capsys.readouterr().out


def test_status_is_one_screen(options: list[str], host: FakeHost, capsys: Capture) -> None:
    host.put("/opt/local-llm/current/release.json", '{"release": "r1", "commit": "c1"}')
    host.put("/opt/local-llm/models/tiny.gguf", "GGUF")
    host.put("/var/log/llm-health.log", "2026-11-22T10:05:00Z FAIL service=failed reason=odd\n")
    assert cli.main(["status", *options]) == 0
    out = capsys.readouterr().out
    for text in ("active, up 1 h 6 min", "1204 MiB resident", "limit 3072 MiB", "tiny,", "r1", "FAIL", ": odd"):
        assert text in out
    assert out.count("\n") < 24
    assert "missing" not in out


def test_status_without_root_says_what_is_missing(
    options: list[str], tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    host.root_user = False

    def closed(path: str) -> str:
        raise PermissionError(path)

    monkeypatch.setattr(host, "read", closed)
    assert cli.main(["status", *options]) == 0
    out = capsys.readouterr().out
    assert "the log needs sudo" in out
    assert "sudo local-llm status" in out


def test_status_of_a_broken_deployment(tmp_path: Path, host: FakeHost) -> None:
    host.put_units(show(SERVICE, ActiveState="failed", SubState="failed", Result="oom-kill", MainPID="0"))
    config = make_config(tmp_path, api_url=REFUSED_URL)
    screen = "\n".join(status.lines(config, host))
    assert "failed (failed, oom-kill): sudo journalctl -u local-llm.service" in screen
    assert "not running (limit 3072 MiB)" in screen
    assert "none installed" in screen
    assert "nothing listens there" in screen


def test_ask_prints_the_answer(server: Api, options: list[str], capsys: Capture) -> None:
    assert cli.main(["ask", "What", "now?", "--max-tokens", "9", *options]) == 0
    assert capsys.readouterr() == ("The local model\n", "")
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": "What now?"}]
    assert (request["max_tokens"], request["model"], request["stream"]) == (9, "tiny", True)


def test_ask_reads_standard_input(
    server: Api, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("the diff")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.main(["ask", "Review:", "-", *options]) == 0
    assert server.requests[0]["messages"][0]["content"] == "Review: the diff"


def test_ask_says_what_it_replaced(
    server: Api, options: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "diff").write_bytes(b"-gr\xfc\xdfe\n+ok \xc2\xa0")
    with (tmp_path / "diff").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.main(["ask", "Review:", "-", *options]) == 0
    (asked,) = server.requests
    assert asked["messages"][0]["content"] == "Review: -gr��e\n+ok"
    assert "UTF-8" in capsys.readouterr().err


def test_ask_with_an_address_needs_no_configuration(server: Api) -> None:
    assert cli.main(["ask", "x", "--url", server.url + "/", "--config", "/none"]) == 0
    assert cli.main(["ask", "x", "--url", "localhost"]) == 2


def test_ask_says_that_an_answer_was_cut(server: Api, options: list[str], capsys: Capture) -> None:
    server.stream = stream_of("a", reason="length")
    assert cli.main(["ask", "x", "--max-tokens", "1", *options]) == 0
    assert "--max-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status_code", "body", "words"),
    [
        (503, b'{"error":{"message":"2 requests wait already"}}', ["busy", "wait already", "in 7 s"]),
        (413, b"", ["413", "less text"]),
        (429, b"", ["Too many", "in 7 s"]),
        (504, b"", ["no answer", "local-llm status"]),
        (400, b'{"error":{"message":"exceeds the available context size"}}', ["does not fit", "less text"]),
        (500, b'{"error":{"message":"boom"}}', ["boom", "journalctl"]),
    ],
)
def test_ask_explains_refusals(
    server: Api, options: list[str], capsys: Capture, status_code: int, body: bytes, words: list[str]
) -> None:
    server.completion, server.headers = (status_code, body), {"Retry-After": "7"}
    assert cli.main(["ask", "x", *options]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, b'{"error":{"message":"Loading model"}}'), "still being loaded"),
        ((503, b""), "sudo systemctl restart local-llm"),
    ],
)
def test_ask_tells_a_dead_model_from_a_busy_one(
    server: Api, options: list[str], capsys: Capture, answer: tuple[int, bytes], words: str
) -> None:
    server.completion, server.health = (503, b""), answer
    assert cli.main(["ask", "x", *options]) == 1
    assert words in capsys.readouterr().err


def test_ask_without_a_gateway(capsys: Capture) -> None:
    assert cli.main(["ask", "x", "--url", REFUSED_URL]) == 1
    err = capsys.readouterr().err
    assert "sudo systemctl start local-llm local-llm-gateway" in err
    assert err.count("\n") == 1


def test_ask_keeps_what_came_before_the_break(server: Api, options: list[str], capsys: Capture) -> None:
    server.stream, server.stream_cut = stream_of("half", " an", done=False), True
    assert cli.main(["ask", "x", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "half an\n"
    assert "broke off" in err


def test_an_empty_question(options: list[str]) -> None:
    assert cli.main(["ask", " ", *options]) == 2


def test_ctrl_c_is_quiet(options: list[str], host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert cli.main(["test", *options]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_quiet(options: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "checks.cli", "version", *options],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_health_imports_neither_requests_nor_the_full_test() -> None:
    """They cost more CPU than all the rest of a run, every five minutes."""
    code = (
        "import sys, checks.cli, checks.health, checks.host, psutil;"
        "print([name for name in ('requests', 'urllib3', 'checks.runner', 'checks.api') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_health_at_the_same_time_writes_each_line_whole(options: list[str], host: FakeHost, tmp_path: Path) -> None:
    log = tmp_path / "log"
    where = [*options, "--log", "--log-file", str(log)]
    threads = [
        threading.Thread(target=cli.main, args=(["health", *where, "--lock-file", str(tmp_path / f"lock{number}")],))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    assert all(health.parse_line(line) for line in lines)
