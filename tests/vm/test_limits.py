"""What the kernel enforces, and how the service comes back from it."""

from __future__ import annotations

import re
import time

from tests.container.machine import Machine, eventually
from tests.vm.conftest import CGROUP

HOG = """
import sys
open("/proc/self/oom_score_adj", "w").write("-500")
open("{group}/cgroup.procs", "w").write("0")
kept = [bytearray(b"x" * 2**20) for _ in range(900)]
"""
"""Takes more than the service's limit in its group; the kernel prefers llama-server as the one to kill."""


def health(machine: Machine) -> dict[str, str]:
    """The fields of a health check made now: once cron's, which comes before it, has ended."""
    found: dict[str, str] = {}

    def looked() -> bool:
        found.update(re.findall(r"(\w+)=(\S+)", machine.sh("local-llm health 2>&1", check=False)))
        return bool(found)

    eventually(looked, 60, "a health check")
    return found


def test_a_kill_for_lack_of_memory_is_counted_once_and_heals(deployed: Machine) -> None:
    kills, pid = int(health(deployed)["oom_kills"]), deployed.main_pid()
    restarts = int(deployed.show("local-llm", "NRestarts"))
    began = time.monotonic()
    deployed.sh(f"timeout 100 python3 -c '{HOG.format(group=CGROUP)}'", check=False)
    eventually(lambda: deployed.main_pid() not in (0, pid), 60, "another process")
    eventually(deployed.answers, 60, "an answer after the kill")
    assert time.monotonic() - began < 60
    assert int(deployed.show("local-llm", "NRestarts")) == restarts + 1
    deployed.sh("local-llm health --log", check=False)
    assert int(health(deployed)["oom_kills"]) == kills + 1
    deployed.sh("local-llm health --log", check=False)
    assert int(health(deployed)["oom_kills"]) == kills + 1
    assert "oom-kill" in deployed.sh("local-llm alerts", check=False)


def test_a_process_that_hangs_is_restarted(deployed: Machine) -> None:
    eventually(deployed.answers, 60, "an answer")
    pid = deployed.main_pid()
    deployed.sh(f"kill -STOP {pid}")
    eventually(lambda: deployed.main_pid() not in (0, pid), 300, "cron's health check to restart it")
    eventually(deployed.answers, 60, "an answer")
    assert "healed=" in deployed.sh("tail -n 5 /var/log/llm-health.log")


def test_a_processor_quota_holds(deployed: Machine) -> None:
    deployed.sh("systemctl set-property --runtime local-llm CPUQuota=20%")
    try:
        before = deployed.sh(f"awk '/nr_throttled/ {{print $2}}' {CGROUP}/cpu.stat")
        assert deployed.answers()
        assert int(deployed.sh(f"awk '/nr_throttled/ {{print $2}}' {CGROUP}/cpu.stat")) > int(before)
    finally:
        deployed.sh("systemctl revert local-llm")
