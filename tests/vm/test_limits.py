"""What the kernel enforces, and how the service comes back from it."""

from __future__ import annotations

import re
import time

from tests.container.machine import Machine, eventually
from tests.vm.conftest import CGROUP, Deployed

HOG = """
import sys
open("/proc/self/oom_score_adj", "w").write("-500")
open("{group}/cgroup.procs", "w").write("0")
kept = [bytearray(b"x" * 2**20) for _ in range(900)]
"""
"""Takes more than the service's limit in its group; the kernel prefers llama-server as the one to kill."""


def health(machine: Machine) -> dict[str, str]:
    """The fields of a health check made now."""
    return dict(re.findall(r"(\w+)=(\S+)", machine.sh("local-llm health", check=False)))


def test_a_kill_for_lack_of_memory_is_counted_once_and_heals(deployed: Deployed) -> None:
    machine = deployed.machine
    kills, pid, restarts = (
        int(health(machine)["oom_kills"]),
        machine.main_pid(),
        int(machine.show("local-llm", "NRestarts")),
    )
    began = time.monotonic()
    machine.sh(f"timeout 100 python3 -c '{HOG.format(group=CGROUP)}'", check=False)
    eventually(lambda: machine.main_pid() not in (0, pid), 60, "another process")
    eventually(machine.answers, 60, "an answer after the kill")
    assert time.monotonic() - began < 60
    assert int(machine.show("local-llm", "NRestarts")) == restarts + 1
    machine.sh("local-llm health --log", check=False)
    assert int(health(machine)["oom_kills"]) == kills + 1
    machine.sh("local-llm health --log", check=False)
    assert int(health(machine)["oom_kills"]) == kills + 1
    assert "oom-kill" in machine.sh("local-llm alerts", check=False)


def test_a_process_that_hangs_is_restarted(deployed: Deployed) -> None:
    machine = deployed.machine
    eventually(machine.answers, 60, "an answer")
    pid = machine.main_pid()
    machine.sh(f"kill -STOP {pid}")
    eventually(lambda: machine.main_pid() not in (0, pid), 300, "cron's health check to restart it")
    eventually(machine.answers, 60, "an answer")
    assert "healed=" in machine.sh("tail -n 5 /var/log/llm-health.log")


def test_a_processor_quota_holds(deployed: Deployed) -> None:
    machine = deployed.machine
    machine.sh("systemctl set-property --runtime local-llm CPUQuota=20%")
    try:
        before = machine.sh(f"awk '/nr_throttled/ {{print $2}}' {CGROUP}/cpu.stat")
        assert machine.answers()
        assert int(machine.sh(f"awk '/nr_throttled/ {{print $2}}' {CGROUP}/cpu.stat")) > int(before)
    finally:
        machine.sh("systemctl revert local-llm")
