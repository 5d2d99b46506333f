"""What the host is, and whether the deploy may begin: nothing before this changes anything."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import deploy

from checks.contract import paths
from facts.base import read
from facts.files import FileDigests
from facts.layout import Account, AccountState
from facts.llama_cpp import Proof, ReleaseContent
from facts.machine import LoginState, Machine, MachineState
from facts.model import ModelFiles
from facts.packages import Plan
from facts.prometheus import Prometheus, PrometheusState
from facts.swap import SwapFile
from facts.ufw import Others
from operations import lock, preflight
from operations.llama_cpp import Release
from settings import Settings
from tasks import openclaw, packages
from tasks.cloud_key import operators_key
from tasks.planning import (
    MIB,
    Finding,
    account_findings,
    disk_needs,
    failures,
    findings,
    firewall_findings,
    key_findings,
    package_findings,
    prometheus_findings,
    swap_findings,
)
from tasks.tables import show


@dataclass(frozen=True)
class Target:
    """One host with its settings and what was found on it: what every task works from."""

    settings: Settings
    login: LoginState
    machine: MachineState
    release: Release
    findings: tuple[Finding, ...]

    @property
    def model_file(self) -> str:
        model = self.settings.selected_model
        return paths.model_file(model.name, model.sha256)


def inspect(settings: Settings, login: LoginState) -> Target:
    """Look at the host, change nothing, and show all findings in one table."""
    machine = read(Machine)
    release = Release(
        repository=settings.llama_cpp_repository,
        commit=settings.llama_cpp_commit,
        native=settings.build_native,
        cpu=f"{machine.architecture} {' '.join(sorted(machine.cpu_flags))}",
    )
    content = read(ReleaseContent, directory=f"{paths.ROOT}/releases/{release.id}")
    release_exists = content.proof(release.id) is not Proof.NONE
    model_exists = any(
        file.sha256 == settings.selected_model.sha256 for file in read(ModelFiles, directory=paths.MODELS).files
    )
    prometheus = _prometheus(settings)
    swap = read(SwapFile, path=paths.SWAP_FILE)
    disk_mib = disk_needs(
        settings,
        release_exists,
        model_exists,
        prometheus_exists=bool(prometheus.pids),
        swap_file_exists=swap.size_bytes == settings.swap_file_mib * MIB,
    )
    results = (
        *findings(settings, login, machine, disk_mib),
        *account_findings(settings, _account(settings)),
        *package_findings(read(Plan, packages=packages.wanted(settings))),
        *firewall_findings(settings, read(Others)),
        *key_findings(settings, given=_is_key_given(settings), on_host=_is_key_on_host()),
        *prometheus_findings(settings, prometheus),
        *swap_findings(settings, swap),
        *openclaw.findings(settings),
    )
    show(
        f"Preflight: {host.name}",
        ("check", "status", "found", "needed", "what to do"),
        [(result.name, result.status.value, result.found, result.needed, result.remedy) for result in results],
    )
    return Target(settings, login, machine, release, results)


def _account(settings: Settings) -> AccountState:
    return read(Account, account=settings.service_user, group=settings.service_group, unit=paths.SERVICE_UNIT)


def _is_key_given(settings: Settings) -> bool:
    return operators_key(settings, os.environ) is not None


def _is_key_on_host() -> bool:
    return paths.CLOUD_KEY in read(FileDigests, paths=(paths.CLOUD_KEY,))


def _prometheus(settings: Settings) -> PrometheusState:
    if not settings.prometheus:
        return PrometheusState()
    state: PrometheusState = read(
        Prometheus, distribution=paths.PROMETHEUS_DISTRIBUTION_UNITS, own=paths.PROMETHEUS_UNITS
    )
    return state


@deploy("Preflight")
def check(target: Target) -> None:
    """Stop this host where a finding forbids the deploy, and take the deploy's lock; other hosts go on."""
    preflight.required(
        name="Require a host that can take the deploy",
        failures=failures(target.findings),
    )
    lock.exclusive(name="Take the deploy's lock")
