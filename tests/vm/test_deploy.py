"""The deploy on a kernel of its own: the whole of it, and that what is shown are the kernel's own figures."""

from __future__ import annotations

import re

from tests.container.machine import Machine
from tests.vm.conftest import CGROUP

MIB = 1024**2


def test_first_deploy_ends_verified(deployed: Machine) -> None:
    run = deployed.first_deploy
    assert run is not None
    assert "Build llama.cpp" in run.output
    assert "FAIL" not in run.output
    assert deployed.answers()
    assert deployed.sh("stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
    assert deployed.sh("systemctl --failed --plain --no-legend") == ""


def test_second_run_changes_nothing(deployed: Machine) -> None:
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def test_checks_pass(deployed: Machine) -> None:
    run = deployed.deploy("checks.py")
    assert run.succeeded, run.output
    assert "PASS" in run.output
    assert "FAIL" not in run.output


def kernel(machine: Machine, file: str, key: str = "") -> int:
    """A figure of the service's cgroup; `key` where the file has several."""
    text = machine.sh(f"cat {CGROUP}/{file}")
    found = re.search(rf"^{key} (\d+)$", text, re.MULTILINE) if key else re.search(r"\d+", text)
    assert found is not None, text
    return int(found[found.lastindex or 0])


def test_memory_is_the_kernels(deployed: Machine) -> None:
    assert kernel(deployed, "memory.max") == 512 * MIB
    [shown] = [line for line in deployed.sh("local-llm status").splitlines() if line.startswith("memory")]
    current, peak = (int(found) for found in re.findall(r"(\d+) MiB (?:with the file cache|at its highest)", shown))
    assert abs(current - kernel(deployed, "memory.current") / MIB) <= 2
    assert abs(peak - kernel(deployed, "memory.peak") / MIB) <= 2
    resident = int(deployed.sh(f"awk '/^VmRSS/ {{print $2}}' /proc/{deployed.main_pid()}/status")) / 1024
    assert abs(int(re.findall(r"(\d+) MiB resident", shown)[0]) - resident) <= 2


def test_processor_time_is_the_kernels(deployed: Machine) -> None:
    before, used = metrics(deployed), kernel(deployed, "cpu.stat", "usage_usec")
    for _ in range(3):
        assert deployed.answers()
    after, used = metrics(deployed), kernel(deployed, "cpu.stat", "usage_usec") - used
    assert before["peak_mib"] != "-"
    assert used > 0
    # What passes between reading the one and the other, and the metrics' one decimal.
    assert abs(float(after["cpu_s"]) - used / 1e6) <= 0.2 + 0.1 * used / 1e6


def metrics(machine: Machine) -> dict[str, str]:
    """The hour's line, written now."""
    machine.sh("local-llm metrics --log")
    return dict(re.findall(r"(\w+)=(\S+)", machine.sh("tail -n 1 /var/log/llm-metrics.log")))
