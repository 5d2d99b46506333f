"""The deploy, end to end: a bare machine becomes a verified local LLM, and stays one whatever goes wrong later."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time

import pytest

from checks.contract.paths import HEALTH_LOCK
from operations.lock import EARLIER_LOCK_FILE, LOCK_FILE
from sandbox.servers.hub import Fault
from tests.container.conftest import OTHER_ANSWER, SSH_SECOND_PORT, with_settings
from tests.container.machine import Machine, eventually, finished


def test_first_deploy_ends_verified(deployed: Machine) -> None:
    assert deployed.first_deploy is not None
    output = deployed.first_deploy.output
    assert "Build llama.cpp" in output
    assert "FAIL" not in output
    assert deployed.answers()


def test_second_run_changes_nothing(deployed: Machine) -> None:
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0
    assert run.seconds < 60  # minutes would mean that something is built, hashed or installed again


def test_checks_pass_and_show_a_table(deployed: Machine) -> None:
    run = deployed.deploy("checks.py")
    assert run.succeeded, run.output
    assert run.changed == 0
    assert "PASS" in run.output
    assert "FAIL" not in run.output


def test_a_failing_check_fails_with_what_to_do(deployed: Machine) -> None:
    deployed.sh("chmod 0666 /etc/local-llm/haproxy.cfg")
    run = deployed.deploy("checks.py")
    assert run.status == 1
    assert "haproxy.cfg" in run.output
    repaired = deployed.deploy()
    assert repaired.succeeded
    assert repaired.changed == 1
    assert deployed.sh("stat -c %a /etc/local-llm/haproxy.cfg") == "644"


def test_the_packages_own_services_do_not_run(deployed: Machine) -> None:
    assert deployed.show("haproxy.service", "ActiveState") == "inactive"
    assert deployed.show("haproxy.service", "UnitFileState") == "masked"


def test_nothing_listens_beyond_loopback_but_ssh(deployed: Machine) -> None:
    lines = deployed.sh("ss -Hltn").splitlines()
    open_to_all = {line.split()[3] for line in lines if not re.match(r"(127\.|\[::1\])", line.split()[3])}
    assert {address.rsplit(":", 1)[1] for address in open_to_all} == {"22"}


def test_the_model_has_no_network_and_little_else(deployed: Machine) -> None:
    pid = deployed.main_pid()
    assert deployed.sh(f"nsenter -t {pid} -n ip -o addr | grep -v ': lo '", check=False) == ""
    assert deployed.sh(f"ps -o user= -p {pid}") == "local-llm"
    assert "CapEff:\t0000000000000000" in deployed.sh(f"cat /proc/{pid}/status")
    assert float(re.findall(r": (\S+) ", deployed.sh("systemd-analyze security local-llm | tail -n 1"))[0]) <= 0.3
    gateway = deployed.sh("systemd-analyze security local-llm-gateway | tail -n 1")
    assert float(re.findall(r": (\S+) ", gateway)[0]) <= 1.5


def test_a_changed_setting_restarts_once_and_only_what_it_concerns(deployed: Machine) -> None:
    model, gateway, pid = deployed.starts(), deployed.starts("local-llm-gateway"), deployed.main_pid()
    assert with_settings(deployed, context_tokens=2048).deploy().succeeded
    assert deployed.starts() == model + 1
    assert deployed.main_pid() != pid
    assert deployed.starts("local-llm-gateway") == gateway

    run = with_settings(deployed, context_tokens=2048, queue_length=3).deploy()
    assert run.succeeded, run.output
    assert deployed.starts() == model + 1
    assert deployed.starts("local-llm-gateway") == gateway
    assert "ge 4" in deployed.sh("cat /etc/local-llm/haproxy.cfg")

    assert deployed.deploy().succeeded
    assert deployed.starts() == model + 2
    assert deployed.answers()


def test_a_restart_that_an_interrupted_deploy_left_out_is_made_up_for(deployed: Machine) -> None:
    # What a deploy that died between writing and restarting leaves: new files, and a process that knows the old.
    changed = with_settings(deployed, context_tokens=4096, parallel=2)  # its own checks ask for the context
    assert changed.deploy().succeeded
    deployed.sh("cp -a /etc/local-llm/llama-server.env /tmp/env.changed")
    assert deployed.deploy().succeeded
    starts = deployed.starts()
    deployed.sh("mv /tmp/env.changed /etc/local-llm/llama-server.env")
    assert changed.deploy().succeeded
    assert deployed.starts() == starts + 1
    assert "LLAMA_ARG_CTX_SIZE=8192" in deployed.sh(f"tr '\\0' '\\n' < /proc/{deployed.main_pid()}/environ")
    assert deployed.deploy().succeeded


def test_cron_writes_the_health_log_by_itself(deployed: Machine) -> None:
    deployed.sh("rm -f /var/log/llm-health.log")
    eventually(lambda: "OK" in deployed.sh("cat /var/log/llm-health.log 2>/dev/null || true"), 90, "a line of health")
    [line] = deployed.sh("cat /var/log/llm-health.log").splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ OK service=active gateway=active api=ok ", line)


def test_two_health_checks_never_run_at_once(deployed: Machine) -> None:
    deployed.sh(f"systemd-run --quiet --unit=hold flock {HEALTH_LOCK} sleep 10; sleep 0.5")
    before = deployed.sh("wc -l < /var/log/llm-health.log")
    assert deployed.sh("local-llm health --log 2>&1; echo $?") == "0"
    assert deployed.sh("wc -l < /var/log/llm-health.log") == before
    deployed.sh("systemctl stop hold")


def test_logrotate_rotates_compresses_and_loses_nothing(deployed: Machine) -> None:
    deployed.sh("local-llm health --log; logrotate --force /etc/logrotate.d/local-llm; local-llm health --log")
    assert " OK " in deployed.sh("cat /var/log/llm-health.log.1")
    assert " OK " in deployed.sh("cat /var/log/llm-health.log")
    for _ in range(8):
        deployed.sh("local-llm health --log; logrotate --force /etc/logrotate.d/local-llm")
    kept = deployed.sh("ls /var/log/llm-health.log.*").splitlines()
    assert sorted(name.rpartition(".")[2] for name in kept) == ["1", *["gz"] * 6]
    deployed.sh("local-llm health --log")


def test_a_killed_server_comes_back(deployed: Machine) -> None:
    pid = deployed.main_pid()
    deployed.sh(f"kill -9 {pid}")
    eventually(deployed.answers, 30, "an answer after kill -9")
    assert deployed.main_pid() != pid


def test_it_comes_back_however_often_it_is_killed(deployed: Machine) -> None:
    for _ in range(6):
        eventually(lambda: deployed.main_pid() > 0, 15, "a process to kill")
        deployed.sh(f"kill -9 {deployed.main_pid()}", check=False)
        time.sleep(0.3)
    eventually(deployed.answers, 60, "an answer after six kills in a row")
    deployed.sh("systemctl restart local-llm")
    eventually(deployed.answers, 30, "an answer")


def test_too_much_memory_kills_only_the_service_which_comes_back(deployed: Machine) -> None:
    pid, gateway, kills = deployed.main_pid(), deployed.main_pid("local-llm-gateway"), deployed.starts()
    # Memory is taken inside the service's own cgroup, up to beyond its limit; the kernel is told whom to kill first.
    deployed.sh(
        f"echo 1000 > /proc/{pid}/oom_score_adj; "
        f"group=$(grep -E '^[0-9]+:memory:|^0::' /proc/{pid}/cgroup | head -n 1 | cut -d : -f 3); "
        "for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ -d $root$group ] && break; done; "
        "python3 -c \"open('$root$group/cgroup.procs', 'w').write('0'); b = bytearray(900 * 2**20)\" || true"
    )
    eventually(lambda: deployed.main_pid() not in (0, pid), 30, "another process")
    eventually(deployed.answers, 30, "an answer after the kill")
    assert deployed.starts() == kills + 1
    assert deployed.main_pid("local-llm-gateway") == gateway
    deployed.sh("systemctl restart local-llm")
    eventually(deployed.answers, 30, "an answer")


def test_a_reboot_brings_everything_back(deployed: Machine) -> None:
    deployed.host.restart()
    eventually(deployed.answers, 60, "an answer after the reboot")
    assert "Status: active" in deployed.sh("ufw status")
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def test_a_download_that_is_cut_resumes_and_the_model_is_changed(deployed: Machine) -> None:
    half = deployed.source.models["other"].size_bytes // 2
    deployed.source.hub.set_fault("other", Fault(cut_after_bytes=half, times=1))
    run = with_settings(deployed, **deployed.source.settings("other")).deploy()
    assert run.succeeded, run.output
    assert deployed.chat() == OTHER_ANSWER
    ranges = [request.range for request in deployed.source.hub.requests_for("other")]
    assert ranges[0] is None
    assert ranges[1] == f"bytes={half}-"
    # The old one was kept, so going back downloads nothing.
    deployed.source.hub.clear()
    assert deployed.deploy().succeeded
    assert deployed.answers()
    assert deployed.source.hub.requests_for("tiny") == []


def test_a_stalled_download_is_dropped_and_resumed(deployed: Machine) -> None:
    deployed.sh("rm -f /opt/local-llm/models/tiny-*.stamp; systemctl stop local-llm-download 2>/dev/null || true")
    other = deployed.source.models["other"]
    deployed.sh(f"rm -f /opt/local-llm/models/*{other.sha256[:16]}*")
    deployed.source.hub.set_fault("other", Fault(stall_after_bytes=1_000_000, stall_seconds=150, times=1))
    settings = {**deployed.source.settings("other"), "download_stall_seconds": 3}
    run = with_settings(deployed, **settings).deploy()
    assert run.succeeded, run.output
    assert run.seconds < 140  # it did not sit the stall out
    assert deployed.chat() == OTHER_ANSWER
    assert deployed.deploy().succeeded


def test_a_wrong_file_never_becomes_the_model(deployed: Machine) -> None:
    other = deployed.source.models["other"]
    deployed.sh(f"rm -f /opt/local-llm/models/*{other.sha256[:16]}*")
    before = deployed.sh("ls /opt/local-llm/models/*.gguf")
    pid = deployed.main_pid()
    deployed.source.hub.set_fault("other", Fault(wrong_content=True))
    run = with_settings(deployed, **deployed.source.settings("other")).deploy()
    assert run.status == 1
    assert "never became the model" in run.output
    assert deployed.sh("ls /opt/local-llm/models/*.gguf") == before
    assert deployed.sh("ls /opt/local-llm/models/incoming") == ""
    assert deployed.main_pid() == pid
    assert deployed.answers()


def test_a_model_whose_stamp_was_lost_is_proven_without_a_download(deployed: Machine) -> None:
    deployed.sh("rm -f /opt/local-llm/models/*.stamp")
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert run.changed == 1
    assert deployed.source.hub.requests_for("tiny") == []


def test_a_failed_build_keeps_the_old_one_serving(deployed: Machine, broken_commit: str) -> None:
    current, pid = deployed.sh("readlink /opt/local-llm/current"), deployed.main_pid()
    run = with_settings(deployed, llama_cpp_commit=broken_commit).deploy()
    assert run.status == 1
    assert "error: " in run.output  # the compiler's own words
    assert "this is not C" in run.output
    assert "/var/log/local-llm/local-llm-build.log" in run.output
    assert deployed.sh("readlink /opt/local-llm/current") == current
    assert deployed.main_pid() == pid
    assert deployed.answers()
    assert deployed.sh("ls -A /var/cache/local-llm") == "ccache"  # neither its source nor its objects
    assert {broken_commit, deployed.source.commit} <= set(deployed.sh("ls /var/cache/local-llm/ccache").split())
    assert deployed.deploy().changed == 0


def test_a_deploy_that_is_killed_goes_on_where_it_was(deployed: Machine) -> None:
    other = deployed.source.models["other"]
    deployed.sh(f"rm -f /opt/local-llm/models/*{other.sha256[:16]}*")
    deployed.source.hub.set_fault("other", Fault(stall_after_bytes=2_000_000, stall_seconds=8, times=1))
    changed = with_settings(deployed, **deployed.source.settings("other"))
    process = changed.start()
    eventually(lambda: deployed.show("local-llm-download", "SubState") == "running", 60, "a running download")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = changed.deploy()
    assert run.succeeded, run.output
    assert deployed.chat() == OTHER_ANSWER
    assert deployed.deploy().succeeded
    assert deployed.answers()


def test_a_second_deploy_at_the_same_time_is_refused(deployed: Machine) -> None:
    other = deployed.source.models["other"]
    deployed.sh(f"rm -f /opt/local-llm/models/*{other.sha256[:16]}*")
    deployed.source.hub.set_fault("other", Fault(stall_after_bytes=2_000_000, stall_seconds=25, times=1))
    changed = with_settings(deployed, **deployed.source.settings("other"), download_stall_seconds=60)
    # As health checks of an earlier version leave it, and look there for a deploy.
    deployed.sh(f"rm -f {EARLIER_LOCK_FILE}; install -m 0600 /dev/null {EARLIER_LOCK_FILE}")
    first = changed.start()
    eventually(lambda: deployed.show("local-llm-download", "SubState") == "running", 60, "a running download")
    assert deployed.sh(f"stat -c '%a %U' {LOCK_FILE}") == "600 root"
    assert deployed.sh(f"flock -n {EARLIER_LOCK_FILE} echo free", check=False) == ""
    second = deployed.deploy()
    assert second.status == 1
    assert "Another deploy runs on this host" in second.output
    out, err = first.communicate(timeout=300)
    run = finished(first, out, err)
    assert run.succeeded, run.output
    assert deployed.chat() == OTHER_ANSWER


def test_a_deploy_of_an_earlier_version_is_seen(deployed: Machine) -> None:
    deployed.sh(f"systemd-run --quiet --unit=earlier flock {EARLIER_LOCK_FILE} sleep 60")
    eventually(lambda: deployed.sh(f"flock -n {EARLIER_LOCK_FILE} echo free", check=False) == "", 10, "its lock")
    run = deployed.deploy()
    deployed.sh(f"systemctl stop earlier; rm -f {EARLIER_LOCK_FILE}")
    assert run.status == 1
    assert "Another deploy runs on this host" in run.output


@pytest.mark.distribution(0)
@pytest.mark.parametrize(
    "make",
    [
        "ln -s /root/test-target {}",
        "ln -s /etc/hostname {}",
        "mkfifo {}",
        "touch {}; setsid flock {} sleep 60 >/dev/null 2>&1 &",
    ],
)
def test_nothing_that_another_user_puts_in_a_locks_place_is_followed_or_waited_for(
    deployed: Machine, make: str
) -> None:
    before = deployed.sh("cat /etc/hostname")
    for place in (LOCK_FILE, HEALTH_LOCK, EARLIER_LOCK_FILE, "/run/lock/local-llm-health.lock"):
        deployed.sh(f"rm -f {place}; runuser -u nobody -- sh -c {shlex.quote(make.replace('{}', place))}", check=False)
    assert deployed.deploy().succeeded
    assert deployed.sh("local-llm health --log >/dev/null 2>&1; echo $?") == "0"
    assert deployed.sh("cat /etc/hostname; ls /root/test-target 2>/dev/null", check=False) == before
    assert deployed.sh(f"stat -c '%F %U' {LOCK_FILE} {HEALTH_LOCK}").splitlines() == [
        "regular file root",
        "regular empty file root",
    ]
    deployed.sh(f"pkill -u nobody flock; rm -f {EARLIER_LOCK_FILE} /root/test-target", check=False)


def test_nobody_can_be_the_services_user(deployed: Machine) -> None:
    run = with_settings(deployed, service_user="nobody", service_group="nogroup").deploy()
    assert run.succeeded, run.output
    assert deployed.sh(f"ps -o user=,group= -p {deployed.main_pid()}").split() == ["nobody", "nogroup"]
    assert deployed.sh("stat -c %U:%G /run/local-llm-sockets/llama.sock") == "nobody:nogroup"
    assert deployed.answers()
    assert deployed.deploy().succeeded


def test_ssh_on_another_port_survives_the_firewall_and_a_users_rules_stay(deployed: Machine) -> None:
    deployed.sh("ufw --force disable && yes | ufw --force reset && ufw allow 5432/tcp")
    deployed.sh(f"echo 'Port {SSH_SECOND_PORT}' > /etc/ssh/sshd_config.d/port.conf; systemctl restart ssh")
    moved = with_settings(deployed, firewall_allowed_ports=["443/tcp"])
    moved.ssh_port = deployed.host.host_port(SSH_SECOND_PORT)
    try:
        run = moved.deploy()
        assert run.succeeded, run.output
        added = deployed.sh("ufw show added")
        for rule in (f"allow {SSH_SECOND_PORT}/tcp", "allow 5432/tcp", "allow 443/tcp", "deny 8765/tcp"):
            assert f"ufw {rule}" in added
        assert f"{SSH_SECOND_PORT}/tcp (v6)" in deployed.sh("ufw status")
        assert "deny (incoming)" in deployed.sh("ufw status verbose")
        closed = with_settings(moved, firewall_allowed_ports=[])
        run = closed.deploy()  # the way in is still open
        assert run.succeeded, run.output
        assert "443" not in deployed.sh("ufw show added")
        assert "allow 5432/tcp" in deployed.sh("ufw show added")
    finally:
        deployed.sh("rm /etc/ssh/sshd_config.d/port.conf; systemctl restart ssh; ufw allow 22/tcp comment local-llm")
    run = deployed.deploy()
    assert run.succeeded, run.output


@pytest.mark.parametrize("command", ["status", "health", "test", "version", "ask 'What are you?'"])
def test_the_command_on_the_host(deployed: Machine, command: str) -> None:
    answer = deployed.host.ssh(f"sudo local-llm {command}")
    assert answer.returncode == 0
    assert answer.stdout.strip()


def test_the_report_is_json(deployed: Machine) -> None:
    report = json.loads(deployed.sh("local-llm test --json"))
    assert len(report["results"]) >= 20
    assert {result["status"] for result in report["results"]} <= {"PASS", "WARN"}
