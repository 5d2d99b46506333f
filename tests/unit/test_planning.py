"""Preflight's judgement: what a host must be, and how much a model takes."""

from dataclasses import replace
from typing import Any

import pytest

from facts.layout import AccountState
from facts.machine import Disk, LoginState, MachineState
from facts.swap import SwapState
from group_data import optimised
from operations.llama_cpp import build_jobs
from settings import Settings, parse
from tasks.planning import (
    Finding,
    Status,
    account_findings,
    compute_threads,
    disk_needs,
    findings,
    memory_plan,
    ssh_ports,
    swap_findings,
)

LOGIN = LoginState(user="ubuntu", is_root=False, sudo_without_password=True, ssh_port=22)
VPS = MachineState(
    os_id="ubuntu",
    os_version="24.04",
    os_name="Ubuntu 24.04.3 LTS",
    architecture="x86_64",
    init="systemd",
    cores=2,
    cpu_model="AMD EPYC",
    cpu_flags=frozenset({"avx2", "fma"}),
    memory_total_mib=7_900,
    memory_available_mib=6_500,
    disks={name: Disk("/", 50_000) for name in ("/opt", "/usr", "/var")},
    ssh_ports=frozenset({22}),
)


def judge(
    settings: Settings | None = None, login: LoginState = LOGIN, machine: MachineState = VPS
) -> dict[str, Finding]:
    settings = settings or Settings()
    needs = disk_needs(settings, release_exists=False, model_exists=False)
    return {finding.name: finding for finding in findings(settings, login, machine, needs)}


def test_the_vps_that_was_asked_for_passes_everything() -> None:
    assert {finding.status for finding in judge().values()} == {Status.PASS}


def test_memory_of_the_default_model_is_what_was_measured() -> None:
    plan = memory_plan(Settings())
    assert plan.weights == 1066
    assert plan.kv_cache == 448
    assert plan.peak == pytest.approx(1_686e6 / 2**20, rel=0.02)


def test_each_request_that_is_computed_at_once_has_a_context_of_its_own() -> None:
    assert memory_plan(Settings(parallel=2)).kv_cache == 2 * memory_plan(Settings()).kv_cache


def test_a_quantised_kv_cache_takes_half() -> None:
    assert memory_plan(Settings(kv_cache_type="q8_0")).kv_cache == 238


def test_a_context_that_does_not_fit_the_limit_fails_with_the_numbers() -> None:
    finding = judge(Settings(context_tokens=131_072))["memory limit"]
    assert finding.status is Status.FAIL
    assert "KV cache 3584" in finding.found
    assert "memory_max_mib = 3072" in finding.needed


def test_a_peak_that_the_kernel_would_slow_down_warns() -> None:
    assert judge(Settings(model="qwen2.5-3b-instruct", prompt_cache_mib=256))["memory limit"].status is Status.WARN


def test_too_little_memory_fails_and_busy_memory_warns() -> None:
    assert judge(machine=replace(VPS, memory_total_mib=2_000))["memory"].status is Status.FAIL
    assert judge(machine=replace(VPS, memory_available_mib=500))["memory"].status is Status.WARN


def test_what_our_own_service_holds_counts_as_available() -> None:
    machine = replace(VPS, memory_available_mib=500, llama_memory_mib=1_700)
    assert judge(machine=machine)["memory"].status is Status.PASS


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("system", {"os_version": "22.04"}),
        ("init", {"init": "sh"}),
        ("architecture", {"architecture": "armv7l"}),
        ("disk /", {"disks": {name: Disk("/", 2_000) for name in ("/opt", "/usr", "/var")}}),
        ("disk /data", {"disks": {**VPS.disks, "/opt": Disk("/data", 1_000)}}),
        ("disk /var", {"disks": {"/opt": Disk("/", 50_000), "/usr": Disk("/", 50_000)}}),
        ("port 8765", {"listeners": {8765: 'users:(("nginx",pid=1,fd=2))'}}),
        ("port 8766", {"listeners": {8766: ""}}),
    ],
)
def test_what_forbids_a_deploy_fails_and_says_what_to_do(name: str, change: dict[str, object]) -> None:
    finding = judge(machine=replace(VPS, **change))[name]  # type: ignore[arg-type]
    assert finding.status is Status.FAIL
    assert finding.remedy


def test_a_port_that_is_ours_is_free() -> None:
    machine = replace(VPS, listeners={8765: 'users:(("haproxy",pid=41,fd=5))'}, gateway_pids=frozenset({40, 41}))
    assert judge(machine=machine)["port 8765"].status is Status.PASS
    assert judge(machine=replace(machine, gateway_pids=frozenset({4})))["port 8765"].status is Status.FAIL


def test_a_port_that_systemd_holds_is_ours_only_by_the_gateways_own_unit() -> None:
    machine = replace(VPS, listeners={8765: 'users:(("systemd",pid=1,fd=36))'}, gateway_ports=frozenset({8765, 8766}))
    assert judge(machine=machine)["port 8765"].status is Status.PASS
    assert judge(machine=replace(machine, gateway_ports=frozenset({8766})))["port 8765"].status is Status.FAIL
    stranger = replace(machine, listeners={8765: 'users:(("nginx",pid=12,fd=3))'})
    assert judge(machine=stranger)["port 8765"].status is Status.FAIL


def test_a_slow_cpu_and_a_sudo_password_only_warn() -> None:
    assert judge(machine=replace(VPS, cpu_flags=frozenset()))["cpu"].status is Status.WARN
    assert judge(login=replace(LOGIN, sudo_without_password=False))["root rights"].status is Status.WARN


def test_what_is_there_needs_no_disk() -> None:
    assert disk_needs(Settings(), release_exists=True, model_exists=True) == {"/opt": 100, "/usr": 20, "/var": 100}


def test_a_firewall_that_would_shut_out_its_owner_fails() -> None:
    no_way_in = replace(VPS, ssh_ports=frozenset())
    from_the_console = replace(LOGIN, ssh_port=None)
    finding = judge(login=from_the_console, machine=no_way_in)["ssh"]
    assert finding.status is Status.FAIL
    assert "firewall_allowed_ports" in finding.remedy
    named = Settings(firewall_allowed_ports=("2022/tcp",))
    assert judge(named, login=from_the_console, machine=no_way_in)["ssh"].status is Status.PASS
    assert "ssh" not in judge(Settings(firewall=False), login=from_the_console, machine=no_way_in)


def test_ssh_ports_are_the_sessions_and_the_servers() -> None:
    machine = replace(VPS, ssh_ports=frozenset({22, 2222}))
    assert ssh_ports(replace(LOGIN, ssh_port=2022), machine) == [22, 2022, 2222]
    assert ssh_ports(replace(LOGIN, ssh_port=None), machine) == [22, 2222]


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(2, 200, 2), (8, 200, 2), (1, 200, 1), (4, 350, 4), (4, 50, 1)]
)
def test_threads_are_cores_that_the_quota_pays_for(cores: int, quota: int, threads: int) -> None:
    assert compute_threads(Settings(cpu_quota_percent=quota), replace(VPS, cores=cores)) == threads


@pytest.mark.parametrize(
    ("cores", "memory", "asked", "jobs"), [(2, 6_500, None, 2), (8, 3_000, None, 3), (2, 500, None, 1), (2, 500, 4, 4)]
)
def test_compiler_processes_fit_into_memory(cores: int, memory: int, asked: int | None, jobs: int) -> None:
    assert build_jobs(cores, memory, asked) == jobs


def test_a_swap_file_needs_its_size_once_and_a_file_system_that_takes_it() -> None:
    wanted = Settings(swap_file_mib=4096)
    without = disk_needs(Settings(), release_exists=True, model_exists=True)
    before = disk_needs(wanted, release_exists=True, model_exists=True)
    assert before["/var"] == without["/var"] + 4096
    assert disk_needs(wanted, release_exists=True, model_exists=True, swap_file_exists=True) == without
    for file_system, status in (("ext4", Status.PASS), ("xfs", Status.PASS), ("btrfs", Status.FAIL)):
        (finding,) = swap_findings(wanted, SwapState(file_system=file_system))
        assert (finding.status, file_system in finding.found) == (status, True)
    assert not list(swap_findings(Settings(), SwapState(file_system="btrfs")))


def test_the_optimised_group_fits_the_vps_that_was_asked_for_and_the_goal() -> None:
    settings, problems = parse({name: value for name, value in vars(optimised).items() if not name.startswith("__")})
    assert settings is not None, problems
    assert (settings.model, settings.swap_file_mib, settings.prometheus) == ("qwen2.5-3b-instruct", 4096, True)
    assert memory_plan(settings).peak <= settings.memory_goal_mib <= 2560
    assert {finding.status for finding in judge(settings).values()} == {Status.PASS}


OWN = AccountState(uid=990, shell="/usr/sbin/nologin", groups=("local-llm",), gid=990)


def judge_account(account: AccountState, **values: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in account_findings(Settings(**values), account)}  # type: ignore[arg-type]


def test_an_account_that_is_new_or_for_nothing_else_is_taken() -> None:
    assert judge_account(AccountState()) == {}
    assert {finding.status for finding in judge_account(OWN).values()} == {Status.PASS}
    assert (
        judge_account(replace(OWN, uid=65534, groups=("nogroup",)), service_user="nobody", service_group="nogroup")
        == {}
    )
    left_over = judge_account(AccountState(gid=990))
    assert {finding.status for finding in left_over.values()} == {Status.PASS}
    theirs = judge_account(replace(OWN, groups=("llm",), gid=1005), service_user="llm", service_group="llm-clients")
    assert {finding.status for finding in theirs.values()} == {Status.PASS}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uid": 0}, "the rights of root"),
        ({"shell": "/bin/bash"}, "the login shell /bin/bash"),
        ({"shell": ""}, "the login shell /bin/sh"),
        ({"groups": ("local-llm", "docker")}, "the group docker"),
        ({"processes": ("nginx.service nginx",)}, "the process nginx.service nginx"),
    ],
)
def test_an_account_with_another_task_is_refused(change: dict[str, Any], words: str) -> None:
    finding = judge_account(replace(OWN, **change))["service_user"]
    assert finding.status is Status.FAIL
    assert words in finding.found


def test_a_group_of_the_system_is_refused() -> None:
    docker = judge_account(replace(OWN, gid=998), service_group="docker")["service_group"]
    assert docker.status is Status.FAIL
    assert "service_group" in docker.remedy
