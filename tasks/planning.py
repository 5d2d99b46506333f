"""How much memory and disk a model needs on a host, and whether the host can take the deploy. No pyinfra here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from facts.layout import AccountState
from facts.machine import LoginState, MachineState
from facts.packages import PackagePlan
from facts.prometheus import PrometheusState
from facts.swap import SwapState
from facts.ufw import OtherFirewalls
from settings import Model, Settings

MIB = 1024**2

SYSTEMS = {("ubuntu", "24.04"), ("debian", "12"), ("debian", "13")}
ARCHITECTURES = ("x86_64", "aarch64")

SERVER_MIB = 90
"""llama-server without weights and KV cache: heap and compute buffers (measured by benchmarks/memory.py: 80)."""
HOST_RESERVE_MIB = 512
"""What the system itself keeps, so that the model is not what fills the machine."""
BUILD_DISK_MIB = 600
"""Measured: source 176, its git objects 38, built objects 102, packages' archives 110, compiler's cache 20."""
PACKAGES_DISK_MIB = 500
"""Measured: 469 MB on a bare Debian 13."""
PROMETHEUS_DISK_MIB = 450
"""Its packages, with their archives while they are installed. Measured: 422 on Debian 13."""
NOBODY, NO_GROUP = "nobody", "nogroup"
"""The account that is everybody's who needs none: it owns nothing."""
FIRST_ORDINARY_GID = 1000
"""Debian's and Ubuntu's: below are groups with rights of the system's, such as docker."""
NO_LOGIN_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
SWAP_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs")
"""Where a file written in full can be swapped to; btrfs and ZFS copy what they overwrite, overlays have no blocks."""
PROXY_MIB = 8
"""Memory limit of each way to and from Prometheus' network (measured by benchmarks/prometheus_memory.py)."""
NODE_EXPORTER_MIB = 48
"""Memory limit of the node exporter (measured by benchmarks/prometheus_memory.py)."""


class Status(Enum):
    """How a finding counts: FAIL stops the deploy of this host before it changes anything."""

    PASS = "PASS"  # noqa: S105 - not a password
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the preflight table. `remedy` says what to do where the status is not PASS."""

    name: str
    status: Status
    found: str
    needed: str
    remedy: str = ""


def failures(findings: Iterable[Finding]) -> list[str]:
    """What forbids the deploy, a line each, with what to do."""
    return [
        f"{finding.name}: {finding.found}; needed: {finding.needed}. {finding.remedy}"
        for finding in findings
        if finding.status is Status.FAIL
    ]


@dataclass(frozen=True)
class MemoryPlan:
    """Resident memory of llama-server in MiB, by what takes it."""

    weights: int
    kv_cache: int
    server: int
    prompt_cache: int

    @property
    def serving(self) -> int:
        """What one request takes."""
        return self.weights + self.kv_cache + self.server

    @property
    def peak(self) -> int:
        """With the prompt cache full."""
        return self.serving + self.prompt_cache

    def __str__(self) -> str:
        return (
            f"weights {self.weights} + KV cache {self.kv_cache} + server {self.server} + prompt cache "
            f"{self.prompt_cache} = {self.peak} MiB"
        )


def memory_plan(settings: Settings) -> MemoryPlan:
    """What llama-server will take with these settings. Repacking adds a second copy of most weights."""
    model = settings.selected_model
    weights = model.size_bytes * (1.6 if settings.repack_weights else 1.0)
    kv_factor = {"f16": 1.0, "q8_0": 8.5 / 16}[settings.kv_cache_type]
    return MemoryPlan(
        weights=round(weights / MIB),
        kv_cache=round(model.kv_bytes_per_token * settings.context_tokens * settings.parallel * kv_factor / MIB),
        server=SERVER_MIB,
        prompt_cache=settings.reusable_prompts_mib,
    )


def compute_threads(settings: Settings, machine: MachineState) -> int:
    """Threads for computing: as asked, or one a core as far as the CPU quota pays for them."""
    return settings.threads or max(1, min(machine.cores, -(-settings.cpu_quota_percent // 100)))


def disk_needs(
    settings: Settings,
    release_exists: bool,
    model_exists: bool,
    prometheus_exists: bool = False,
    swap_file_exists: bool = False,
) -> dict[str, int]:
    """MiB that the deploy will write below each of the directories it writes to."""
    adds_prometheus = settings.prometheus and not prometheus_exists
    samples_mib = settings.prometheus_storage_mib if adds_prometheus else 0
    swap_mib = 0 if swap_file_exists else settings.swap_file_mib
    model: Model = settings.selected_model
    return {
        "/opt": (0 if model_exists else round(model.size_bytes / MIB)) + 100,
        "/usr": (20 if release_exists else PACKAGES_DISK_MIB) + (PROMETHEUS_DISK_MIB if adds_prometheus else 0),
        "/var": (100 if release_exists else BUILD_DISK_MIB) + samples_mib + swap_mib,
    }


def findings(
    settings: Settings, login: LoginState, machine: MachineState, disk_mib: dict[str, int]
) -> Iterator[Finding]:
    """All that decides whether this host can become what the settings say, in the order of the table."""
    yield _system(machine)
    yield _finding("init", machine.init == "systemd", machine.init or "unknown", "systemd", "use a host with systemd")
    yield _finding(
        "architecture", machine.architecture in ARCHITECTURES, machine.architecture or "unknown",
        "x86_64 or aarch64", "use a 64-bit host",
    )  # fmt: skip
    yield _sudo(login)
    yield _cpu(machine)
    yield from _memory(settings, machine)
    yield from _disk(machine, disk_mib)
    for name in ("api_port", "metrics_port"):
        yield _port(name, getattr(settings, name), machine, machine.gateway_pids)
    if settings.firewall:
        yield _ssh(settings, login, machine)


def key_findings(settings: Settings, given: bool, on_host: bool) -> Iterator[Finding]:
    """Whether the cloud has a key: given to this deploy, or on the host from an earlier one."""
    if settings.cloud_url is not None:
        found = "given to this deploy" if given else "on the host" if on_host else "none"
        remedy = "export LOCAL_LLM_CLOUD_KEY=…, or set cloud_key_file; a cloud without keys takes any word"
        yield _finding("cloud key", given or on_host, found, "the provider's key", remedy)


def prometheus_findings(settings: Settings, state: PrometheusState) -> Iterator[Finding]:
    """Whether the host is free for a Prometheus of ours: one that is there already is somebody's own."""
    if not settings.prometheus:
        return
    yield _finding(
        "prometheus", not state.in_use, ", ".join(state.in_use) or "none", "no Prometheus of your own",
        "keep yours: set prometheus = False and let it scrape this host (docs/MONITORING.md); or give it up: "
        f"`sudo systemctl disable --now {' '.join(state.in_use)}`",
    )  # fmt: skip


def package_findings(plan: PackagePlan) -> Iterator[Finding]:
    """Whether the packages that are missing can come without another one going."""
    words = f"{len(plan.missing)} to install" if plan.missing else "all installed"
    if not plan.is_known:
        words += ", what apt would do is seen once its lists are fetched"
    ours = "set firewall = False to do without ufw, which may be in their way; or " if "ufw" in plan.missing else ""
    yield _finding(
        "packages", not plan.removed, f"apt would remove {', '.join(plan.removed)}" if plan.removed else words,
        "all there, and nothing removed for it",
        f"{ours}remove them yourself first, if you need them no more: `sudo apt-get remove {' '.join(plan.removed)}`",
    )  # fmt: skip


def firewall_findings(settings: Settings, others: OtherFirewalls) -> Iterator[Finding]:
    """Whether UFW can be the host's firewall: what else sets rules would undo UFW's, or UFW its.

    Where UFW is on already, beside the other one, a deploy changes nothing about it.
    """
    if not settings.firewall:
        return
    docker = others.docker and not others.ufw_is_on
    if others.managers:
        yield Finding(
            "other firewall",
            Status.WARN if others.ufw_is_on else Status.FAIL,
            ", ".join(others.managers),
            "none that sets rules beside UFW",
            "each undoes the other's rules, at the latest at the next boot. Keep it: set firewall = False (the API "
            "listens on 127.0.0.1 all the same). Or give it up: its open ports into firewall_allowed_ports, then "
            f"`sudo systemctl disable --now {' '.join(others.managers)}`",
        )
    elif docker:
        yield Finding(
            "other firewall",
            Status.WARN,
            "docker.service",
            "none that sets rules beside UFW",
            "Docker's rules stay, and come before UFW's: a port that a container publishes stays open to the world. "
            "Publish it on 127.0.0.1 to close it; set firewall = False to have no UFW",
        )
    else:
        yield Finding("other firewall", Status.PASS, "none", "none that sets rules beside UFW")


def swap_findings(settings: Settings, state: SwapState) -> Iterator[Finding]:
    """Whether a swap file can lie where ours would."""
    if settings.swap_file_mib:
        yield _finding(
            "swap file", state.file_system in SWAP_FILE_SYSTEMS, state.file_system,
            "/var on a file system that takes swap files: ext4, xfs",
            "set swap_file_mib = 0, and make a swap partition or volume in this host's own way",
        )  # fmt: skip


def account_findings(settings: Settings, account: AccountState) -> Iterator[Finding]:
    """Whether llama-server's account is for nothing else: it reads what nobody trusts, and may not be somebody else."""
    if account.uid is not None and settings.service_user != NOBODY:
        uses = [
            *(["the rights of root"] if account.uid == 0 else []),
            *([] if account.shell in NO_LOGIN_SHELLS else [f"the login shell {account.shell or '/bin/sh'}"]),
            *(f"the group {group}" for group in account.groups[1:] if group != settings.service_group),
            *(f"the process {process}" for process in account.processes),
        ]
        yield _finding(
            "service_user", not uses, f"{settings.service_user} has {', '.join(uses)}" if uses else "for nothing else",
            "an account for nothing else", "set service_user to a name that is not in use: the deploy creates it",
        )  # fmt: skip
    if account.gid is not None and settings.service_group != NO_GROUP:
        named_for_it = settings.service_group == Settings.model_fields["service_group"].default
        own = named_for_it or settings.service_group in account.groups or account.gid >= FIRST_ORDINARY_GID
        yield _finding(
            "service_group", own, "its own" if own else f"{settings.service_group} is a group of the system",
            f"a new group, or one of {settings.service_user}'s", "set service_group to a name that is not in use",
        )  # fmt: skip


def _finding(name: str, good: bool, found: str, needed: str, remedy: str, bad: Status = Status.FAIL) -> Finding:
    return Finding(name, Status.PASS if good else bad, found, needed, "" if good else remedy)


def _system(machine: MachineState) -> Finding:
    return _finding(
        "system",
        (machine.os_id, machine.os_version) in SYSTEMS,
        machine.os_name,
        "Ubuntu 24.04, Debian 12 or 13",
        "reinstall the host with one of these; others were not tested",
    )


def _sudo(login: LoginState) -> Finding:
    found = "root" if login.is_root else f"{login.user}, sudo {'works' if login.sudo_without_password else 'asks'}"
    return _finding(
        "root rights", login.is_root or login.sudo_without_password, found, "root, or sudo without a password",
        "every user of the host can read the password in command lines (allow_sudo_password)", bad=Status.WARN,
    )  # fmt: skip


def _cpu(machine: MachineState) -> Finding:
    wanted = {"x86_64": "avx2", "aarch64": "asimddp"}.get(machine.architecture, "")
    return _finding(
        "cpu", wanted in machine.cpu_flags, f"{machine.cores} cores, {machine.cpu_model or 'unknown'}",
        f"{wanted or 'vector instructions'}", "it will work, several times slower; choose another VPS type",
        bad=Status.WARN,
    )  # fmt: skip


def _memory(settings: Settings, machine: MachineState) -> Iterator[Finding]:
    plan = memory_plan(settings)
    goal = settings.memory_goal_mib
    yield Finding(
        "memory limit",
        Status.FAIL if plan.peak > settings.memory_max_mib else Status.WARN if plan.peak > goal else Status.PASS,
        f"{plan}",
        f"at most memory_max_mib = {settings.memory_max_mib}, better memory_goal_mib = {goal}",
        ""
        if plan.peak <= goal
        else "lower context_tokens or prompt_cache_mib, set kv_cache_type = 'q8_0', or raise the two",
    )
    # What our own running service holds now is what the new one will hold instead.
    available = machine.memory_available_mib + machine.llama_memory_mib
    others = HOST_RESERVE_MIB + (settings.prometheus_memory_max_mib if settings.prometheus else 0)
    enough = machine.memory_total_mib >= plan.peak + others
    yield Finding(
        "memory",
        Status.FAIL if not enough else Status.PASS if available >= plan.serving else Status.WARN,
        f"{machine.memory_total_mib} MiB, {available} available",
        f"{plan.peak} + {others} for the system{' and Prometheus' if settings.prometheus else ''} = "
        f"{plan.peak + others} MiB",
        "" if enough and available >= plan.serving else "choose a smaller model or context, or a larger VPS",
    )


def _disk(machine: MachineState, needs: dict[str, int]) -> Iterator[Finding]:
    for mount in sorted({machine.disks[directory].mount for directory in needs if directory in machine.disks}):
        # Directories of one file system share its room.
        here = [name for name in needs if name in machine.disks and machine.disks[name].mount == mount]
        free = min(machine.disks[name].free_mib for name in here)
        needed = sum(needs[name] for name in here)
        yield _finding(
            f"disk {mount}", free >= needed, f"{free} MiB free", f"{needed} MiB for {' and '.join(here)}",
            "make room: `sudo apt-get clean`, `sudo journalctl --vacuum-size=100M`, or a larger disk",
        )  # fmt: skip
    for name in needs:
        if name not in machine.disks:
            yield Finding(f"disk {name}", Status.FAIL, "unknown", "a readable file system", f"see: df -P {name}")


def _port(setting: str, port: int, machine: MachineState, own_pids: frozenset[int]) -> Finding:
    process = machine.listeners.get(port)
    # While the gateway is down, systemd alone holds its ports.
    holders = own_pids | ({1} if port in machine.gateway_ports else set())
    ours = process is not None and any(f"pid={pid}," in process for pid in holders)
    return _finding(
        f"port {port}", process is None or ours, "ours" if ours else (process or "free"), "free, or ours",
        f"stop what listens there (`sudo ss -ltnp 'sport = :{port}'`) or set {setting} to another port",
    )  # fmt: skip


def _ssh(settings: Settings, login: LoginState, machine: MachineState) -> Finding:
    """UFW is about to close every port that is not known here."""
    ports = ", ".join(map(str, ssh_ports(login, machine)))
    return _finding(
        "ssh", bool(ports or settings.firewall_allowed_ports), f"ports {ports}" if ports else "no SSH server",
        "a port that stays open",
        "closing the firewall might lock you out: name your way in with firewall_allowed_ports (`sudo ss -ltnp` shows "
        "what listens), or set firewall = False",
    )  # fmt: skip


def ssh_ports(login: LoginState, machine: MachineState) -> list[int]:
    """Every port on which SSH is or will be served: the session's own, sshd's configuration, its listeners."""
    return sorted(machine.ssh_ports | ({login.ssh_port} if login.ssh_port else set()))
