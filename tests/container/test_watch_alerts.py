"""Alerts on a deployed machine, each raised and cleared by causing its cause for real; healing; receivers that hang.

Health checks are started by hand, with cron stopped, so that nothing here depends on when cron comes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.servers.cloud import Cloud, Fault
from tests.container.clouds import forget, start_resolver, trust, with_cloud
from tests.container.conftest import with_settings
from tests.container.machine import Machine, Run, eventually

pytestmark = pytest.mark.distribution(0)

HEALTH = "/usr/local/bin/local-llm health --log"
LOG = "/var/log/llm-health.log"
LOCK = "/run/local-llm-root/deploy.lock"
RECEIVER = "/root/receiver"
WEBHOOK_UNIT = "local-llm-alert-webhook"
RECEIVER_PORT = 18999
CRASHES = 4
HUNG_SECONDS = 30
"""A health run of a service that hangs waits for it: 10 s at the API, some more at other places."""

RECEIVER_PROGRAM = f"""
import http.server, pathlib, time
folder = pathlib.Path("{RECEIVER}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        how = (folder / "how").read_text().strip()
        (folder / "tried").open("a").write(how + "\\n")
        if how == "hang":
            time.sleep(300)
        if how == "200":
            (folder / "got").open("ab").write(body + b"\\n")
        self.send_response(int(how))
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", {RECEIVER_PORT}), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def alerting(deployed: Machine) -> Iterator[Machine]:
    """The machine with a webhook to a receiver on it and without cron; afterwards as it was."""
    machine = with_settings(
        deployed,
        alert_webhook_url=f"http://127.0.0.1:{RECEIVER_PORT}/hook",
        # Cron, which runs while the tests deploy, seldom comes in between.
        health_interval_minutes=30,
        heal_restarts_per_hour=50,
        alert_restarts_per_hour=CRASHES,
    )
    deployed.sh(f"mkdir -p {RECEIVER}; cat > {RECEIVER}/receiver.py <<'END'\n{RECEIVER_PROGRAM}\nEND")
    deployed.sh(f"systemd-run --quiet --collect --unit=test-receiver python3 {RECEIVER}/receiver.py")
    try:
        deploy(machine)
        assert deploy(machine).changed == 0
        yield machine
    finally:
        deployed.sh(
            f"systemctl stop test-receiver {WEBHOOK_UNIT}; systemctl reset-failed 'local-llm-alert-*'; "
            f"rm -rf {RECEIVER} /root/history /run/local-llm-alerts /var/lib/local-llm/outbox; "
            "rm -f /var/lib/local-llm/samples.db* /var/lib/local-llm/drill.json; systemctl start cron",
            check=False,
        )
        assert deployed.deploy().succeeded
    assert deployed.sh("ls /etc/local-llm/secrets") == ""


def deploy(machine: Machine) -> Run:
    """A deploy wants cron to run, and the tests do not."""
    machine.sh("systemctl start cron")
    run = machine.deploy()
    machine.sh("systemctl stop cron")
    assert run.succeeded, run.output
    return run


@pytest.fixture
def watched(alerting: Machine) -> Machine:
    """The machine with everything well, an empty history and nothing told."""
    alerting.sh(
        f"echo 200 > {RECEIVER}/how; systemctl stop {WEBHOOK_UNIT}; systemctl start local-llm local-llm-gateway"
    )
    eventually(alerting.answers, 60, "the model answers")
    alerting.sh(
        f"rm -rf /run/local-llm-alerts /var/lib/local-llm/outbox {RECEIVER}/got {RECEIVER}/tried; "
        f"rm -f /var/lib/local-llm/samples.db* /var/lib/local-llm/drill.json; : > {LOG}"
    )
    check(alerting)
    assert told(alerting) == []
    return alerting


def wait_until_settled(machine: Machine) -> None:
    """A process that has only just started is given time before it counts as hung."""
    for unit in ("local-llm", "local-llm-gateway"):
        started = int(machine.show(unit, "ActiveEnterTimestampMonotonic")) / 1e6
        eventually(lambda since=started: _uptime(machine) - since > 31, 60, f"{unit} is 31 s old")  # type: ignore[misc]


def _uptime(machine: Machine) -> float:
    return float(machine.sh("cut -d ' ' -f 1 /proc/uptime"))


def check(machine: Machine, times: int = 1) -> float:
    """Health checks as cron starts them; returns the seconds of the longest."""
    longest = 0.0
    for _ in range(times):
        began = time.monotonic()
        machine.sh(HEALTH, check=False)
        longest = max(longest, time.monotonic() - began)
    return longest


def told(machine: Machine) -> list[str]:
    """What the log says of alerts, such as "ALERT api-down"."""
    lines = machine.sh(rf"grep -E '^\S+ (ALERT|CLEAR) ' {LOG} | cut -d ' ' -f 2,3", check=False)
    return [line.replace("alert=", "") for line in lines.splitlines()]


def received(machine: Machine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in machine.sh(f"cat {RECEIVER}/got", check=False).splitlines()]


def is_open(machine: Machine) -> set[str]:
    return {alert["alert"] for alert in json.loads(machine.sh("local-llm alerts --json", check=False))}


def told_both_ways(machine: Machine, alert: str) -> None:
    """The alert came and went, once each, in the log, in the journal and at the receiver."""
    assert [line for line in told(machine) if line.endswith(alert)] == [f"ALERT {alert}", f"CLEAR {alert}"]

    def events() -> list[str]:
        return [message["event"] for message in received(machine) if message["alert"] == alert]

    eventually(lambda: events() == ["raised", "cleared"], 30, f"{alert} at the receiver, but: {received(machine)}")
    journal = machine.sh("journalctl -t local-llm-alert -o cat -n 20")
    assert f"ALERT alert={alert} " in journal
    assert f"CLEAR alert={alert} " in journal


# Each alert by its cause


def test_a_stopped_service_is_told_at_the_next_check_and_left_alone(watched: Machine) -> None:
    watched.sh("systemctl stop local-llm")
    check(watched)
    assert is_open(watched) == {"api-down"}
    check(watched)
    assert watched.show("local-llm", "ActiveState") == "inactive"
    watched.sh("systemctl start local-llm")
    eventually(watched.answers, 60, "the model answers")
    check(watched, 2)
    assert is_open(watched) <= {"uptime"}
    told_both_ways(watched, "api-down")


def test_a_stopped_gateway_is_told_at_the_next_check(watched: Machine) -> None:
    watched.sh("systemctl stop local-llm-gateway.socket local-llm-gateway")
    check(watched)
    assert is_open(watched) == {"api-down"}
    watched.sh("systemctl start local-llm-gateway")
    eventually(watched.answers, 60, "the model answers")
    check(watched, 2)
    told_both_ways(watched, "api-down")


@pytest.mark.parametrize("unit", ["local-llm", "local-llm-gateway"])
def test_a_service_that_hangs_is_restarted_at_the_second_check(watched: Machine, unit: str) -> None:
    wait_until_settled(watched)
    before = watched.main_pid(unit)
    # The whole unit: HAProxy's worker hangs as well.
    watched.sh(f"systemctl kill --signal=STOP {unit}")
    assert check(watched) < HUNG_SECONDS
    assert watched.main_pid(unit) == before
    check(watched)
    assert watched.main_pid(unit) == before
    an_interval_later(watched)
    check(watched)
    eventually(lambda: watched.main_pid(unit) not in (0, before), 40, f"another process of {unit}")
    eventually(watched.answers, 60, "the model answers")
    assert f'healed="restarted {unit}.service: it runs, but ' in watched.sh(f"cat {LOG}")
    check(watched, 2)
    told_both_ways(watched, "api-down")
    assert watched.show(unit, "NRestarts") == "0"


def an_interval_later(machine: Machine) -> None:
    """Let the last check have found its failure half an hour earlier: those of a few seconds count as one."""
    path = "/run/local-llm-alerts/healing.json"
    state = json.loads(machine.sh(f"cat {path}"))
    state["time"] -= 1800
    machine.sh(f"cat > {path} <<'END'\n{json.dumps(state)}\nEND")


def test_a_model_that_was_taken_out_by_hand_is_told_and_left_alone(watched: Machine) -> None:
    wait_until_settled(watched)
    before = watched.main_pid()
    check(watched)
    set_model(watched, "maint")
    try:
        # The journal may be late with the last answer, which lets one check skip its own.
        check(watched, 3)
        assert is_open(watched) == {"api-down"}
        assert "the gateway refuses a request for one token: HTTP status 503" in watched.sh(f"cat {LOG}")
        assert "failures" not in watched.sh("cat /run/local-llm-alerts/healing.json", check=False)
    finally:
        set_model(watched, "ready")
    eventually(watched.answers, 60, "the model answers")
    check(watched, 2)
    assert watched.main_pid() == before
    told_both_ways(watched, "api-down")


def set_model(machine: Machine, state: str) -> None:
    code = (
        "import sys; sys.path.insert(0, '/opt/local-llm'); from checks import gateway, host; "
        "from checks.contract import config; "
        f"gateway.set_state(config.load(), host.Host(), gateway.LOCAL, '{state}')"
    )
    machine.sh(f'python3 -I -c "{code}"')


def test_nothing_is_healed_or_told_while_a_deploy_holds_its_lock(watched: Machine) -> None:
    wait_until_settled(watched)
    before = watched.main_pid()
    watched.sh(f"systemd-run --quiet --collect --unit=test-lock flock {LOCK} sleep 600")
    eventually(lambda: not watched.sh(f"flock -n {LOCK} echo free", check=False), 10, "the lock is held")
    watched.sh("systemctl kill --signal=STOP local-llm")
    try:
        check(watched, 3)
        assert watched.main_pid() == before
        assert told(watched) == []
    finally:
        watched.sh("systemctl stop test-lock; systemctl kill --signal=CONT local-llm")
    eventually(watched.answers, 60, "the model answers")


def test_a_kill_for_lack_of_memory_is_told_at_the_next_check(watched: Machine) -> None:
    """The kernel kills a process of the service's own control group, for a limit that is exceeded."""
    pid = watched.main_pid()
    limit = int(watched.show("local-llm", "MemoryMax"))
    watched.sh(
        f"group=$(grep -E '^[0-9]+:memory:|^0::' /proc/{pid}/cgroup | head -n 1 | cut -d : -f 3); "
        "for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ -d $root$group ] && break; done; "
        "python3 -c \"open('/proc/self/oom_score_adj', 'w').write('1000'); "
        f"open('$root$group/cgroup.procs', 'w').write('0'); b = bytearray({limit} + 2**28)\" || true"
    )
    eventually(watched.answers, 60, "the model answers")
    check(watched)
    assert "oom-kill" in is_open(watched)
    an_hour_later(watched)
    watched.sh("systemctl restart local-llm")
    eventually(watched.answers, 60, "the model answers")
    check(watched, 2)
    told_both_ways(watched, "oom-kill")


def an_hour_later(machine: Machine) -> None:
    """Let what is remembered have happened an hour earlier."""
    path = "/run/local-llm-alerts/alerts.json"
    state = json.loads(machine.sh(f"cat {path}"))
    state["events"] = {name: [when - 3601 for when in times] for name, times in state["events"].items()}
    machine.sh(f"cat > {path} <<'END'\n{json.dumps(state)}\nEND")


def test_a_restart_loop_is_told(watched: Machine) -> None:
    """Crashes, without systemd's pause between them."""
    began = int(watched.show("local-llm", "NRestarts"))
    drop_in = "/run/systemd/system/local-llm.service.d"
    watched.sh(
        f"mkdir -p {drop_in}; printf '[Service]\\nRestartSec=0\\n' > {drop_in}/test.conf; systemctl daemon-reload"
    )
    try:
        for number in range(1, CRASHES + 1):
            eventually(lambda: watched.main_pid() > 0, 20, "a process")
            watched.sh(f"kill -9 {watched.main_pid()}", check=False)
            wanted = began + number
            eventually(lambda wanted=wanted: _restarts(watched) >= wanted, 20, "a restart")  # type: ignore[misc]
    finally:
        watched.sh(f"rm -r {drop_in}; systemctl daemon-reload")
    eventually(watched.answers, 60, "the model answers")
    check(watched)
    assert is_open(watched) == {"restart-loop"}
    an_hour_later(watched)
    check(watched, 2)
    told_both_ways(watched, "restart-loop")
    watched.sh("systemctl restart local-llm")
    eventually(watched.answers, 60, "the model answers")


def _restarts(machine: Machine) -> int:
    return int(machine.show("local-llm", "NRestarts"))


def test_a_disk_that_fills_up_is_told_while_it_is_full(watched: Machine) -> None:
    """The history's own file system, down to the last byte: the alert still gets out, and only once."""
    watched.sh(
        "mkdir -p /root/history && cp -a /var/lib/local-llm/. /root/history && "
        "mount -t tmpfs -o size=16m,mode=0750 none /var/lib/local-llm && cp -a /root/history/. /var/lib/local-llm"
    )
    try:
        check(watched)
        watched.sh("cat /dev/zero > /var/lib/local-llm/fill", check=False)
        check(watched, 4)
        assert is_open(watched) == {"disk"}
        eventually(lambda: len(received(watched)) == 1, 30, f"one message, but {received(watched)}")
        watched.sh("rm /var/lib/local-llm/fill")
        check(watched, 3)
        assert is_open(watched) == set()
        told_both_ways(watched, "disk")
    finally:
        watched.sh(f"systemctl stop {WEBHOOK_UNIT}; umount -l /var/lib/local-llm; rm -rf /root/history")


def test_memory_above_the_goal_is_told(watched: Machine) -> None:
    """The goal is put below what the service needs, which is what outgrowing it comes to."""
    with configured(watched, memory_goal_mib=1):
        check(watched, 2)
        assert is_open(watched) == {"memory"}
    check(watched, 2)
    told_both_ways(watched, "memory")


def test_slow_answers_are_told(watched: Machine) -> None:
    """Users' answers, slow because the process gets next to no CPU."""
    watched.sh("systemctl set-property --runtime local-llm CPUQuota=5%")
    try:
        with configured(watched, response_limit_seconds=0.05):
            _be_asked(watched)
            assert is_open(watched) == {"slow-responses"}
    finally:
        watched.sh("systemctl revert local-llm")
    _be_asked(watched)
    told_both_ways(watched, "slow-responses")


def _be_asked(machine: Machine) -> None:
    """Enough questions for two means, even where the last line of a window reaches the journal after the check."""
    for _ in range(2):
        for _ in range(12):
            assert machine.chat()
        check(machine)


def test_downtime_is_told_until_it_is_long_ago(watched: Machine) -> None:
    with configured(watched, uptime_goal_percent=99.99):
        watched.sh("systemctl stop local-llm-gateway.socket local-llm-gateway")
        # A check counts for the time since the one before: more than 0.01 % of a day.
        check(watched)
        time.sleep(10)
        check(watched)
        watched.sh("systemctl start local-llm-gateway")
        eventually(watched.answers, 60, "the model answers")
        check(watched)
        assert is_open(watched) == {"api-down", "uptime"}
    check(watched, 2)
    told_both_ways(watched, "uptime")


@contextmanager
def configured(machine: Machine, **values: object) -> Iterator[None]:
    """The checks with other limits, as a deploy would write them."""
    path = "/etc/local-llm/checks.json"
    before = machine.sh(f"cat {path}")
    changed = {**json.loads(before), **values}
    machine.sh(f"cat > {path} <<'END'\n{json.dumps(changed, indent=2)}\nEND")
    try:
        yield
    finally:
        machine.sh(f"cat > {path} <<'END'\n{before}\nEND")


# The cloud


@pytest.fixture
def clouded(watched: Machine) -> Iterator[tuple[Machine, Cloud]]:
    with Cloud(prefix="/v1") as cloud:
        trust(watched, cloud)
        start_resolver(watched, cloud)
        try:
            machine = with_cloud(watched, cloud)
            deploy(machine)
            _until_the_cloud_is(machine, "up")
            check(machine)
            yield machine, cloud
        finally:
            forget(watched)
            deploy(watched)


def _until_the_cloud_is(machine: Machine, state: str) -> None:
    explain = "curl -s -m 5 -H 'X-LLM-Explain: 1' -H 'Content-Type: application/json' -d '{}' "
    url = "http://127.0.0.1:8765/v1/chat/completions"
    eventually(lambda: f'"cloud":"{state}"' in machine.sh(explain + url, check=False).replace(" ", ""), 40, state)


def test_a_cloud_that_fails_and_one_that_refuses_the_key_are_told_apart(clouded: tuple[Machine, Cloud]) -> None:
    """The gateway's first bad check may still be of a connection that the cloud's change broke: a third is made."""
    machine, cloud = clouded
    cloud.set_fault(Fault(status=500))
    _until_the_cloud_is(machine, "down")
    check(machine, 2)
    assert is_open(machine) == {"cloud-down"}
    cloud.recover()
    _until_the_cloud_is(machine, "up")
    check(machine, 2)
    told_both_ways(machine, "cloud-down")

    cloud.set_fault(Fault(status=401))
    _until_the_cloud_is(machine, "down")
    check(machine, 3)
    assert is_open(machine) == {"cloud-refused"}
    cloud.recover()
    _until_the_cloud_is(machine, "up")
    check(machine, 2)
    told_both_ways(machine, "cloud-refused")

    cloud.use_certificate("expired")
    _until_the_cloud_is(machine, "down")
    check(machine, 3)
    assert is_open(machine) == {"cloud-refused"}
    cloud.use_certificate("good")
    _until_the_cloud_is(machine, "up")


def test_a_drill_that_fails_is_told_until_one_goes_well(clouded: tuple[Machine, Cloud]) -> None:
    machine, cloud = clouded
    cloud.set_fault(Fault(status=500), on="completions")
    machine.sh("local-llm drill", check=False)
    cloud.recover()
    _until_the_cloud_is(machine, "up")
    check(machine)
    assert is_open(machine) == {"drill-failed"}
    machine.sh("local-llm drill")
    check(machine, 2)
    told_both_ways(machine, "drill-failed")
    machine.sh("rm /var/lib/local-llm/drill.json")


# The receiver


@pytest.mark.parametrize("how", ["hang", "500"])
def test_a_receiver_that_fails_holds_up_nothing_and_gets_everything_later(watched: Machine, how: str) -> None:
    usual = check(watched, 3)
    watched.sh(f"echo {how} > {RECEIVER}/how; systemctl stop local-llm")
    try:
        first = check(watched)
        eventually(lambda: how in watched.sh(f"cat {RECEIVER}/tried", check=False), 30, "an attempt")
        second = check(watched)
        # What a stopped service and a busy machine take is the same with and without the receiver.
        assert max(first, second) < usual + 5
        assert is_open(watched) == {"api-down"}
    finally:
        watched.sh("systemctl start local-llm")
    eventually(watched.answers, 60, "the model answers")
    check(watched, 2)
    assert received(watched) == []
    watched.sh(
        f"echo 200 > {RECEIVER}/how; systemctl stop {WEBHOOK_UNIT}; systemctl reset-failed {WEBHOOK_UNIT} || true"
    )
    check(watched)
    told_both_ways(watched, "api-down")
    assert watched.sh("find /var/lib/local-llm/outbox /run/local-llm-alerts -name '*.json' -path '*webhook*'") == ""


def test_a_test_message_arrives_or_is_said_not_to(watched: Machine) -> None:
    assert "webhook          sent" in watched.sh("local-llm alerts test")
    assert received(watched)[-1]["event"] == "test"
    watched.sh(f"echo 403 > {RECEIVER}/how")
    assert "webhook          1 wait: HTTP status 403" in watched.sh("local-llm alerts test", check=False)


def test_the_webhooks_address_is_nowhere_but_in_roots_file(watched: Machine) -> None:
    watched.sh(f"echo 500 > {RECEIVER}/how; local-llm alerts test", check=False)
    where = "grep -rl 18999/hook /etc/local-llm /var/lib/local-llm /var/log/llm-health.log /run/local-llm-alerts"
    assert watched.sh(where, check=False) == "/etc/local-llm/secrets/webhook"
    assert watched.sh("stat -c '%a %U' /etc/local-llm/secrets/webhook") == "600 root"
    assert "18999/hook" not in watched.sh("journalctl -o cat -t local-llm-alert")


def test_a_command_is_run_for_each_alert(watched: Machine) -> None:
    hook = "/root/receiver/hook.sh"
    watched.sh(
        f"printf '#!/bin/sh\\ncat >> {RECEIVER}/hooked; echo >> {RECEIVER}/hooked\\n' > {hook}; chmod 755 {hook}"
    )
    section = json.loads(watched.sh("cat /etc/local-llm/checks.json"))["alerts"]
    with configured(watched, alerts={**section, "command": hook}):
        assert "command          sent" in watched.sh("local-llm alerts test")
        assert json.loads(watched.sh(f"tail -n 1 {RECEIVER}/hooked"))["alert"] == "test"
        watched.sh(f"chmod 777 {hook}")
        assert "not root's alone" in watched.sh("local-llm alerts test", check=False)
