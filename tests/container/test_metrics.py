"""Samples, logs and the text file on a real machine: what counts, and what survives kills, full disks and clocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from checks.contract.paths import GATEWAY_API_SOCKET, HEALTH_LOCK
from tests.container.machine import Machine, eventually

pytestmark = pytest.mark.distribution(0)

HEALTH_LOG = "/var/log/llm-health.log"
STATE = "/var/lib/local-llm"
TEXTFILE = f"{STATE}/metrics/local_llm.prom"
LONG_ANSWER = '{"prompt": " tick", "max_tokens": 8000, "stream": true}'


@pytest.fixture
def quiet(deployed: Machine) -> Iterator[Machine]:
    """The machine without cron, so that only the test's own runs store something."""
    deployed.sh(f"systemctl stop cron; flock {HEALTH_LOCK} true")
    # The first run sets the mark from which the next one counts.
    run(deployed)
    yield deployed
    deployed.sh("systemctl start cron")


def python(machine: Machine, code: str) -> str:
    """What a program prints that runs as root with the checks at hand."""
    return machine.host.exec("python3", "-I", "-c", f"import sys; sys.path.insert(0, '/opt/local-llm')\n{code}").strip()


def samples(machine: Machine, kind: str = "health") -> list[dict[str, Any]]:
    """What is stored, in the order of writing."""
    code = (
        f"import sqlite3; rows = sqlite3.connect('{STATE}/samples.db').execute("
        f"\"SELECT data FROM samples WHERE kind = '{kind}' ORDER BY id\"); print(*(row[0] for row in rows), sep='\\n')"
    )
    return [json.loads(line) for line in python(machine, code).splitlines()]


def run(machine: Machine) -> dict[str, Any]:
    """A health run that finds all well, after the journal has what was logged before; its sample."""
    machine.sh("journalctl --sync; local-llm health --log")
    return samples(machine)[-1]


def intact(machine: Machine) -> bool:
    code = f"import sqlite3; print(*sqlite3.connect('{STATE}/samples.db').execute('PRAGMA integrity_check').fetchone())"
    return python(machine, code) == "ok"


def metric(machine: Machine, name: str) -> float:
    """A value of the text file, by its name and labels; 0 where it is missing."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", machine.sh(f"cat {TEXTFILE}"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_cron_accumulates_samples(deployed: Machine) -> None:
    run(deployed)
    began = len(samples(deployed))
    eventually(lambda: len(samples(deployed)) >= began + 2, 200, "two samples by cron")
    latest = samples(deployed)[-1]
    # Cron starts every minute on the minute; a machine that is busy may be late once.
    assert 30 < latest["window_seconds"] < 150
    assert (latest["service"], latest["api"]) == ("active", "ok")
    times = [sample["time"] for sample in samples(deployed)]
    lines = deployed.sh(f"cat {HEALTH_LOG}.1 {HEALTH_LOG} 2>/dev/null", check=False)
    stamp = deployed.sh(f"date -u -d @{times[-1]} +%Y-%m-%dT%H:%M:%SZ")
    assert f"{stamp} OK service=active" in lines


def test_the_hourly_run_as_cron_starts_it(deployed: Machine) -> None:
    [command] = re.findall(r"^1 \* \* \* \* root (.*)$", deployed.sh("cat /etc/cron.d/local-llm"), re.MULTILINE)
    deployed.sh("local-llm metrics --log")
    deployed.chat()
    run(deployed)
    assert deployed.sh(command) == ""
    line = deployed.sh("tail -n 1 /var/log/llm-metrics.log")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ window_s=\d+ cpu_s=[\d.]+ cpu_percent=[\d.]+ rss_mib=\d+ ", line)
    assert int(re.findall(r" local=(\d+) ", line)[0]) >= 1
    hour = samples(deployed, "metrics")[-1]
    assert hour["requests"]["local/no-cloud/2xx"] >= 1
    assert hour["cpu_seconds"] > 0


def test_every_request_counts_once(quiet: Machine) -> None:
    name = 'local_llm_logged_requests_total{backend="local",code="2xx",reason="no-cloud"}'
    before = metric(quiet, name)
    for _ in range(3):
        assert quiet.answers()
    body = '-H "Content-Type: application/json" -d \'{"content": "x", "messages": []}\''
    for request in (
        f"127.0.0.1:8765/tokenize {body}",
        "127.0.0.1:8765/nothing",
        # No requests of users:
        "127.0.0.1:8765/health",
        "127.0.0.1:8765/v1/models",
        f"127.0.0.1:8765/v1/chat/completions -H 'X-LLM-Explain: 1' {body}",
        f"--unix-socket {GATEWAY_API_SOCKET} http://localhost/v1/chat/completions {body}",
    ):
        quiet.http(request)
    sample = run(quiet)
    assert sample["requests"] == {"local/no-cloud/2xx": 4, "gateway/not-routed/4xx": 1}
    assert sample["responses"]["local"]["count"] == 3
    assert sample["probe"] == "skipped-traffic"
    assert sample["tokens_out"] > 0
    assert metric(quiet, name) == before + 4

    idle = run(quiet)
    assert "requests" not in idle
    assert idle["probe"] == "ok"
    assert metric(quiet, name) == before + 4


def test_a_probe_does_not_wait_behind_a_user(quiet: Machine) -> None:
    run(quiet)
    quiet.sh(
        "systemd-run --quiet --collect --unit=long-answer curl -sN -o /dev/null 127.0.0.1:8765/v1/completions "
        f"-H 'Content-Type: application/json' -d '{LONG_ANSWER}'"
    )
    try:
        working = 'haproxy_server_current_sessions{proxy="llm",server="llama"} 1'
        eventually(lambda: working in quiet.http("127.0.0.1:8766/metrics")[2], 20, "a model at work")
        skipped = metric(quiet, 'local_llm_probe_skipped_total{why="busy"}')
        assert run(quiet)["probe"] == "skipped-busy"
        assert metric(quiet, 'local_llm_probe_skipped_total{why="busy"}') == skipped + 1
    finally:
        quiet.sh("systemctl stop long-answer", check=False)


def test_kill_9_at_any_moment_leaves_everything_whole(quiet: Machine) -> None:
    before = len(samples(quiet))
    for step in range(24):
        quiet.sh(f"timeout -s KILL {0.05 + 0.02 * step:.2f} local-llm health --log", check=False)
    assert intact(quiet)
    times = [sample["time"] for sample in samples(quiet)]
    assert len(times) == len(set(times))
    assert before <= len(times) <= before + 24
    for line in quiet.sh(f"tail -n 30 {HEALTH_LOG}").splitlines():
        assert re.match(r"\S+Z (OK|FAIL|ALERT|CLEAR|TEST) .*", line), line
    assert quiet.sh("head -c 1 " + TEXTFILE) == "#"
    assert run(quiet)["ok"]


def test_a_full_disk_is_told_and_passes_by_itself(quiet: Machine) -> None:
    quiet.sh(f"mount -t tmpfs -o size=2m,mode=0750 tmpfs {STATE}")
    try:
        run(quiet)
        assert quiet.answers()
        run(quiet)
        before = samples(quiet)
        quiet.sh(f"dd if=/dev/zero of={STATE}/filler bs=4k 2>/dev/null", check=False)
        assert quiet.answers()
        for log in (HEALTH_LOG, f"{STATE}/full.log"):
            said = quiet.sh(f"local-llm health --log --log-file {log} 2>&1; echo code $?")
            assert "api=ok" in said
            assert "this sample is not stored: no space left on the disk" in said
            assert said.endswith("code 1")
        assert "this line could not be written down" in said.lower()
        assert "no space left on the disk" in quiet.sh(f"grep ' FAIL ' {HEALTH_LOG} | tail -n 1")
        # The past can be read while the disk is full.
        code = f"from checks.samples import Store; print(len(list(Store.open('{STATE}/samples.db').between(0, 2**40))))"
        assert python(quiet, code) == str(len(before))
        quiet.sh(f"rm {STATE}/filler")
        after = run(quiet)
        assert after["ok"]
        assert after["requests"] == {"local/no-cloud/2xx": 1}
        assert after["window_seconds"] > 0
        assert intact(quiet)
        assert len(samples(quiet)) == len(before) + 1
    finally:
        quiet.sh(f"umount {STATE}")


def test_a_clock_that_jumps_loses_and_doubles_nothing(quiet: Machine) -> None:
    """The clock of the process alone is turned: the machine's is that of everything else, too."""
    quiet.sh(f"rm -f {STATE}/samples.db*")
    run(quiet)
    for hours in (-1, 0, 48, 0):
        quiet.answers()
        quiet.sh("journalctl --sync")
        python(
            quiet,
            f"import time; real = time.time; time.time = lambda: real() + {hours} * 3600\n"
            "from checks.cli import main; sys.exit(main(['health', '--log']))",
        )
    _, *new = samples(quiet)
    assert [sample["requests"] for sample in new] == [{"local/no-cloud/2xx": 1}] * 4
    assert all(0 < sample["window_seconds"] < 600 for sample in new)
    assert intact(quiet)
    quiet.sh(f"rm -f {STATE}/samples.db*")


def test_rotation_loses_no_line(deployed: Machine) -> None:
    """Two writers write as the checks do while logrotate runs again and again, and a third is overtaken by it."""
    deployed.sh(
        "mkdir -p /root/rotation && cd /root/rotation && rm -rf * && "
        "sed 's#/var/log/llm-#/root/rotation/llm-#g; s/rotate .*/rotate 1000/' /etc/logrotate.d/local-llm > conf"
    )
    writer = (
        "import sys, time; sys.path.insert(0, '/opt/local-llm'); from checks.health import append\n"
        "for number in range(1500):\n"
        " append('/root/rotation/llm-health.log', sys.argv[1] + ' ' + str(number)); time.sleep(0.002)"
    )
    try:
        deployed.sh(
            f'cd /root/rotation; python3 -I -c "{writer}" a & one=$!; python3 -I -c "{writer}" b & two=$!; '
            "while kill -0 $one || kill -0 $two; do logrotate --force --state state conf; done 2>/dev/null; wait"
        )
        python(
            deployed,
            "import os, subprocess; from checks.health import append; write = os.write\n"
            "append('/root/rotation/llm-health.log', 'late 0')\n"
            "rotate = ['logrotate', '--force', '--state', '/root/rotation/state', '/root/rotation/conf']\n"
            "os.write = lambda *line: (subprocess.run(rotate, check=True), write(*line))[1]\n"
            "append('/root/rotation/llm-health.log', 'late 1')",
        )
        rotated = int(deployed.sh("ls /root/rotation/llm-health.log.* | wc -l"))
        assert rotated >= 5
        assert int(deployed.sh("ls /root/rotation/*.gz | wc -l")) >= rotated - 1
        lines = deployed.sh("zcat -f /root/rotation/llm-health.log*").splitlines()
        assert sorted(lines) == sorted(
            ["late 0", "late 1", *(f"{name} {number}" for name in "ab" for number in range(1500))]
        )
    finally:
        deployed.sh("rm -rf /root/rotation")


def test_promtool_finds_nothing_to_say(deployed: Machine) -> None:
    """The judge is Prometheus' own linter, taken out of its package so that no service comes with it."""
    deployed.sh("local-llm health --log")
    deployed.sh(
        "mkdir -p /root/promtool && cd /root/promtool && apt-get -qq update && "
        # Debian 13 has it in a package of its own.
        "apt-get -qq download prometheus $(apt-cache pkgnames promtool) && "
        "for package in *.deb; do dpkg-deb -x $package .; rm $package; done"
    )
    promtool = "/root/promtool/usr/bin/promtool check metrics 2>&1; echo code $?"
    assert deployed.sh(f"cat {TEXTFILE} | {promtool}") == "code 0"
    assert deployed.sh(f"curl -sS 127.0.0.1:8766/requests | {promtool}") == "code 0"
    assert deployed.sh(f"stat -c '%a %U' {TEXTFILE}") == "644 root"


def test_an_idle_run_is_cheap(quiet: Machine) -> None:
    """CPU time of the process and what it starts; the least of some runs, because others use the machine."""
    code = (
        "import os, subprocess\n"
        "def spent():\n"
        " before = os.times(); subprocess.run(['local-llm', 'health', '--log'], check=True); after = os.times()\n"
        " return after.children_user + after.children_system - before.children_user - before.children_system\n"
        "print(min(spent() for _ in range(5)))"
    )
    assert float(python(quiet, code)) <= 0.5
