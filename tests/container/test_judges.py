"""What the deploy writes, judged by the programs that will read it, in the versions of the target system."""

from __future__ import annotations

import base64

import pytest

from facts.machine import LoginState, MachineState
from operations.llama_cpp import Release
from operations.ufw import wanted_rules
from settings import Settings
from tasks import gateway, service
from tasks.preflight import Target
from tests.container.machine import Machine

VARIANTS = {
    "defaults": Settings(),
    "smallest": Settings(
        context_tokens=512, queue_length=0, max_body_kib=4, cpu_quota_percent=10, memory_max_mib=64,
        memory_goal_mib=32, prompt_cache_mib=0, queue_timeout_seconds=1, request_timeout_seconds=5, cpu_weight=1,
    ),
    "largest": Settings(
        context_tokens=131_072, queue_length=1000, max_body_kib=4096, parallel=8, cpu_quota_percent=25_600,
        memory_max_mib=1_048_576, queue_timeout_seconds=3600, request_timeout_seconds=7200, cpu_weight=10_000,
        api_port=1024, metrics_port=65_535,
    ),
}  # fmt: skip


def put(machine: Machine, path: str, content: str) -> str:
    machine.sh(f"mkdir -p $(dirname {path}); echo {base64.b64encode(content.encode()).decode()} | base64 -d > {path}")
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_haproxy_accepts_the_configuration_without_a_warning(deployed: Machine, name: str) -> None:
    path = put(deployed, "/tmp/judged.cfg", gateway.configuration_file(VARIANTS[name], "stamp").content)
    judgement = deployed.sh(f"haproxy -c -f {path} 2>&1; echo $?")
    assert judgement.endswith("0")
    assert "WARNING" not in judgement


@pytest.mark.parametrize("name", VARIANTS)
def test_systemd_accepts_the_units_without_a_warning(deployed: Machine, name: str) -> None:
    settings = VARIANTS[name]
    release = Release(settings.llama_cpp_repository, settings.llama_cpp_commit, True, "x86_64")
    target = Target(settings, LoginState("u", False, True, 22), MachineState(cores=2), release, ())
    units = [*service.unit_files(target), gateway.socket_unit_file(settings, "stamp", has_ipv6=True)]
    units.append(gateway.unit_file(settings, "stamp"))
    paths = [put(deployed, f"/tmp/judged/{unit.path.rsplit('/', 1)[1]}", unit.content) for unit in units]
    assert deployed.sh(f"systemd-analyze verify --man=no {' '.join(paths)} 2>&1") == ""


def test_logrotate_accepts_its_file(deployed: Machine) -> None:
    judgement = deployed.sh("logrotate --debug --state /dev/null /etc/logrotate.d/local-llm 2>&1; echo $?")
    assert judgement.endswith("0")
    assert "error" not in judgement


@pytest.mark.parametrize("rule", wanted_rules([22, 2222], [8765], ["443/tcp", "60000:61000/udp"]))
def test_ufw_accepts_the_rules(deployed: Machine, rule: str) -> None:
    assert "ERROR" not in deployed.sh(f"ufw --dry-run {rule} comment 'local-llm' 2>&1")
