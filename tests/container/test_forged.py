"""What other users of the machine say: forged journal entries, a program on the API's port, a shutdown on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.container.machine import Machine, eventually
from tests.container.test_metrics import HEALTH_LOG, STATE, TEXTFILE, python, quiet, run, samples

pytestmark = pytest.mark.distribution(0)

__all__ = ["quiet"]

FORGE = Path(__file__).with_name("forge.py").read_text()
NOBODY = "setpriv --reuid nobody --regid nogroup --clear-groups"
SIGKILLS = "from checks.journal import *; from checks.host import Host; print(len(times(Host(), {}, 7)))"
COST = """
import os, resource, subprocess
def spent():
    pid = subprocess.Popen(["local-llm", "health", "--log"]).pid
    _, status, used = os.wait4(pid, 0)
    assert status == 0, status
    return used.ru_utime + used.ru_stime, used.ru_maxrss
runs = [spent() for _ in range(3)]
print(min(cpu for cpu, _ in runs), max(kib for _, kib in runs))
"""
HOSTILE = r"""
import http.server, json
BAD = "seen \x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u200b\u2028\ufeff\x7f"
WORDS = dict.fromkeys(("rule", "route", "would_use", "cloud", "local"), BAD)
EXPLAINED = json.dumps({**WORDS, "estimated_prompt_tokens": 1, "max_tokens": None, "fits_local": True, "more": BAD})
STREAMED = "data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [{"delta": {"content": BAD}, "finish_reason": BAD}]})
class Hostile(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = EXPLAINED if "X-LLM-Explain" in self.headers else STREAMED if self.command == "POST" else BAD
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said.encode())
    do_GET = do_POST = answer
    log_message = lambda *_: None
http.server.HTTPServer(("127.0.0.1", 8765), Hostile).serve_forever()
"""
UNSEEN = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"


def sigkills(machine: Machine) -> int:
    return int(python(machine, SIGKILLS.format("sigkills('local-llm.service')")))


def size(machine: Machine, path: str) -> int:
    return int(machine.sh(f"stat -c %s {path}"))


def open_alerts(machine: Machine) -> set[str]:
    return {alert["alert"] for alert in json.loads(machine.sh("local-llm alerts --json", check=False))}


def test_what_any_user_writes_into_the_journal_counts_for_nothing(quiet: Machine) -> None:
    before, kills, counted = run(quiet), sigkills(quiet), size(quiet, TEXTFILE)
    stored, alerts = size(quiet, f"{STATE}/samples.db"), open_alerts(quiet)
    cpu, kib = map(float, python(quiet, COST).split())

    quiet.host.exec("sh", "-c", f"{NOBODY} python3 - 5000 <<'END'\n{FORGE}\nEND")
    line = "client=127.0.0.1:1 method=POST path=/v1/completions status=200 reason=evil backend=evil end=-- total_ms=1"
    quiet.sh(
        f'for n in $(seq 20); do {NOBODY} logger -t local-llm-gateway "{line}"; '
        f'echo "{line}" | {NOBODY} systemd-cat -t haproxy; done; journalctl --sync'
    )
    assert int(quiet.sh("journalctl -o cat --since -5min _UID=65534 | wc -l")) > 4000

    forged_cpu, forged_kib = map(float, python(quiet, COST).split())
    print(
        f"a health run: {cpu:.3f} s, {kib:.0f} KiB; behind the forged entries: {forged_cpu:.3f} s, {forged_kib:.0f} KiB"
    )
    after = samples(quiet)[-1]
    assert {sample.get("oom_kills") for sample in samples(quiet)[-4:]} == {before["oom_kills"]}
    assert all(sample["ok"] and "requests" not in sample for sample in samples(quiet)[-4:])
    assert not after.get("cloud_refusals")
    assert sigkills(quiet) == kills
    assert "evil" not in quiet.sh(f"cat {TEXTFILE}")
    assert size(quiet, TEXTFILE) < counted + 1000
    assert size(quiet, f"{STATE}/samples.db") < stored + 256 * 1024
    assert open_alerts(quiet) == alerts
    # Others use the machine; the flood cost 17 s and 300 MiB.
    assert forged_cpu < 2 * cpu + 0.2
    assert forged_kib < kib + 16 * 1024

    # What is true among all that still counts, once.
    assert quiet.answers()
    assert run(quiet)["requests"] == {"local/no-cloud/2xx": 1}
    quiet.sh("systemctl kill --signal=KILL --kill-whom=main local-llm")
    eventually(quiet.answers, 60, "llama-server after a kill")
    quiet.sh("journalctl --sync")
    assert sigkills(quiet) == kills + 1
    quiet.sh("systemctl restart local-llm")
    eventually(quiet.answers, 60, "llama-server after a restart")


def test_a_history_that_forged_names_had_blown_up_mends_itself(quiet: Machine) -> None:
    python(
        quiet,
        "import json, sqlite3\n"
        f"db = sqlite3.connect('{STATE}/samples.db')\n"
        "forged = {f'evil{n}/evil{n}/2xx': 1 for n in range(60000)}\n"
        'row = db.execute("SELECT id, data FROM samples ORDER BY id DESC LIMIT 1").fetchone()\n'
        "large = json.dumps({**json.loads(row[1]), 'requests': forged})\n"
        "db.execute('UPDATE samples SET data = ? WHERE id = ?', (large, row[0]))\n"
        "totals = json.loads(db.execute(\"SELECT value FROM state WHERE key = 'totals'\").fetchone()[0])\n"
        "totals['requests'].update(forged)\n"
        "db.execute(\"UPDATE state SET value = ? WHERE key = 'totals'\", (json.dumps(totals),))\n"
        "db.execute('PRAGMA user_version = 0'); db.commit(); db.close()",
    )
    assert size(quiet, f"{STATE}/samples.db") > 2**20
    run(quiet)
    run(quiet)
    text = quiet.sh(f"cat {TEXTFILE}")
    assert "evil" not in text
    assert 'local_llm_logged_requests_total{backend="other",code="2xx",reason="other"}' in text
    largest = f"from checks.samples import Store; db = Store.open('{STATE}/samples.db')._db; print(db.execute("
    assert int(python(quiet, largest + "'SELECT max(length(data)) FROM samples').fetchone()[0])")) < 64 * 1024
    assert int(python(quiet, largest + "'SELECT max(length(value)) FROM state').fetchone()[0])")) < 64 * 1024


def test_a_program_on_the_port_commands_no_terminal(quiet: Machine) -> None:
    """Over SSH into a pipe, as `ssh HOST local-llm ask` has it."""
    quiet.sh("systemctl stop local-llm-gateway.socket local-llm-gateway")
    try:
        quiet.host.exec("systemd-run", "--quiet", "--collect", "--unit=hostile", "python3", "-c", HOSTILE)
        eventually(lambda: "owned" in quiet.sh("curl -s 127.0.0.1:8765/health", check=False), 20, "the program")
        quiet.sh("echo '{}' >/tmp/request.json")
        for command in ("ask hello", "route /tmp/request.json", "route --json /tmp/request.json", "status", "health"):
            said = quiet.host.ssh(f"local-llm {command} 2>&1", check=False).stdout
            assert said.strip(), command
            assert not re.search(UNSEEN, said), command
            if command == "ask hello":
                assert said.startswith("seen ")
            if "--json" in command:
                assert set(json.loads(said).values()) == {"other", 1, None}
    finally:
        quiet.sh("systemctl stop hostile; rm -f /tmp/request.json", check=False)
        quiet.sh("systemctl start local-llm-gateway.socket local-llm-gateway")
    eventually(quiet.answers, 60, "the gateway")


def test_an_orderly_reboot_is_no_down_time(quiet: Machine) -> None:
    """A check at the worst moment: the service is stopped for the shutdown already. The machine's next one is good."""
    quiet.host.exec(
        "sh",
        "-c",
        "cat >/etc/systemd/system/late-check.service <<'END'\n"
        "[Unit]\nBefore=local-llm.service local-llm-gateway.service\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nTimeoutStopSec=50\n"
        "ExecStop=/bin/sh -c 'systemctl is-active local-llm >/root/late; "
        "local-llm health --log; echo code $? >>/root/late'\n"
        "END\n"
        "systemctl daemon-reload; systemctl start late-check",
    )
    run(quiet)
    down = downtime(quiet)
    began, lines = len(samples(quiet)), quiet.sh(f"cat {HEALTH_LOG}").count("\n")
    try:
        # The test's own check only: cron's first one may meet services that are on their way up.
        quiet.sh("systemctl disable cron")
        quiet.host.restart()
        # Active no more, and the check content to say nothing.
        assert quiet.sh("cat /root/late").splitlines() == ["inactive", "code 0"]
        eventually(quiet.answers, 60, "the service after the reboot")
        run(quiet)
        assert len(samples(quiet)) == began + 1
        assert quiet.sh(f"cat {HEALTH_LOG}").count("\n") == lines + 1
        assert downtime(quiet) == down
    finally:
        quiet.sh(
            "systemctl enable cron; rm -f /etc/systemd/system/late-check.service /root/late; systemctl daemon-reload"
        )


def downtime(machine: Machine) -> int:
    """Checks of the last day that found it down, as the report has it."""
    whole = json.loads(machine.sh("local-llm report --json --days 1", check=False))["history"]["whole"]
    return int(whole["known"]) - int(whole["up"])
