"""What a deploy made and the other tasks do not take away themselves: units, files, directories, records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import deploy

from checks.contract import paths
from checks.textfile import NAME as TEXTFILE
from facts.base import read
from facts.files import FileContents
from facts.layout import MadeAccounts
from facts.machine import LoginState, Machine, MachineState
from facts.removal import Removable, Sizes
from facts.swap import SwapFile
from facts.ufw import Ufw
from operations import lock, preflight, removal
from operations.jobs import LOG_DIRECTORY
from operations.ufw import parse_before, restoration
from settings import Settings
from tasks import accounts, firewall, openclaw, packages
from tasks.planning import Finding, failures, ssh_ports
from tasks.rendering import TEMPLATES
from tasks.tables import show

UNIT_DIRECTORY = "/etc/systemd/system"
JOB_UNITS = ("local-llm-fetch.service", "local-llm-build.service", "local-llm-download.service")
EARLIER_UNITS = ("local-llm-alertmanager.service",)
"""Of earlier deploys."""
TREES = (paths.ROOT, paths.CONFIGURATION, paths.SCRATCH, LOG_DIRECTORY, paths.STATE)
"""Directories that are ours, with all that is in them."""
MODELS = f"{paths.MODELS}/*.gguf*"
LOGS = (f"{paths.HEALTH_LOG}*", f"{paths.METRICS_LOG}*", LOG_DIRECTORY)
HISTORY = f"{paths.SAMPLES}*"
_STOPPING = (".socket", ".timer", ".path", ".service", ".slice")
"""A unit that starts others stops first."""


@dataclass(frozen=True)
class Leaving:
    """One host with its settings and what was found on it: what every task of an uninstall works from."""

    settings: Settings
    login: LoginState
    machine: MachineState
    kept: tuple[str, ...]
    findings: tuple[Finding, ...]


def _template_paths() -> list[str]:
    return sorted(f"/{file.relative_to(TEMPLATES)}".removesuffix(".j2") for file in TEMPLATES.rglob("*.j2"))


def units() -> list[str]:
    """Every unit that a deploy may have written or started, in the order in which they are to be stopped."""
    written = [PurePosixPath(path).name for path in _template_paths() if path.startswith(f"{UNIT_DIRECTORY}/")]
    return sorted([*written, *JOB_UNITS, *EARLIER_UNITS], key=lambda unit: _STOPPING.index(PurePosixPath(unit).suffix))


def files(settings: Settings) -> list[str]:
    """Every file outside of our directories and beside the units: what has a template, and what the checks write.

    A writing that was broken off may have left its candidate beside a file.
    """
    elsewhere = tuple(f"{directory}/" for directory in (*TREES, UNIT_DIRECTORY))
    ours = [path for path in _template_paths() if not path.startswith(elsewhere)]
    ours.append(f"{settings.textfile_directory}/{TEXTFILE}")
    candidates = [str(PurePosixPath(path).with_name(f".{PurePosixPath(path).name}.new")) for path in ours]
    return [*ours, *candidates, f"{UNIT_DIRECTORY}/.local*llm*.new"]


def state_directories() -> list[str]:
    """What systemd keeps for units of ours, as their templates say; with a dynamic user it lies in a private place."""
    return [f"/var/lib/{place}{name}" for name in _in_templates("StateDirectory") for place in ("", "private/")]


def runtime() -> list[str]:
    """Everything in /run: what the units' templates and `paths` name."""
    named = [
        *(path for path in vars(paths).values() if isinstance(path, str) and path.startswith("/run/")),
        *map("/run/{}".format, _in_templates("RuntimeDirectory")),
    ]
    # /run/lock is everybody's: of it, only the files.
    return sorted({"/".join(path.split("/")[: 4 if path.startswith("/run/lock/") else 3]) for path in named})


def _in_templates(directive: str) -> list[str]:
    texts = [file.read_text() for file in (TEMPLATES / UNIT_DIRECTORY.lstrip("/")).glob("*.j2")]
    return sorted({name for text in texts for name in re.findall(f"^{directive}=(.+)$", text, re.MULTILINE)})


def inspect(settings: Settings, login: LoginState) -> Leaving:
    """Look at the host, change nothing, and show what goes and what stays."""
    machine = read(Machine)
    choices = _choices(settings, read(Sizes, patterns=(MODELS, *LOGS, HISTORY)))
    kept = tuple(pattern for choice in choices if choice.stays for pattern in choice.patterns)
    findings = tuple(openclaw.uninstall_findings(settings))
    there = read(Removable, patterns=TREES, kept=kept)
    rows = [
        ("local-llm", "goes", ", ".join([*TREES, "its units, cron job, log rotation and command"]), "")
        if there
        else ("local-llm", "gone", "none of its directories is here, but for what stays", ""),
        *(choice.row() for choice in choices),
        *_swap_row(),
        *_firewall_row(login, machine),
        *_account_row(settings),
        *(_package_row() if there else ()),
        *(("OpenClaw", finding.status.value, finding.found, finding.remedy) for finding in findings),
    ]
    show(f"Uninstall: {host.name}", ("what", "", "where", "to have it otherwise"), rows)
    return Leaving(settings, login, machine, kept, findings)


@dataclass(frozen=True)
class _Choice:
    """What a person may want to keep. Its setting says whether it goes."""

    what: str
    setting: str
    stays: bool
    patterns: tuple[str, ...]
    kib: int

    def row(self) -> tuple[str, str, str, str]:
        where = f"{', '.join(self.patterns)} ({self.kib / 1024:.0f} MiB)"
        remedy = f"--data {self.setting}=True, now or later" if self.stays else ""
        return self.what, "stays" if self.stays else "goes", where, remedy


def _choices(settings: Settings, sizes: dict[str, int]) -> list[_Choice]:
    """What is there of models, logs and history."""
    found = [
        ("models", "uninstall_models", (MODELS,)),
        ("logs", "uninstall_logs", LOGS),
        ("history", "uninstall_history", (HISTORY,)),
    ]
    choices = []
    for what, setting, patterns in found:
        there = {pattern: size for pattern in patterns if (size := sizes.get(pattern.replace("*", ""), 0))}
        if there:
            stays = not getattr(settings, setting)
            choices.append(_Choice(what, setting, stays, tuple(there), sum(there.values())))
    return choices


_Row = Iterator[tuple[str, str, str, str]]


def _swap_row() -> _Row:
    if read(SwapFile, path=paths.SWAP_FILE).size_bytes:
        yield "swap file", "goes", f"{paths.SWAP_FILE}, and its line in /etc/fstab", ""


def _firewall_row(login: LoginState, machine: MachineState) -> _Row:
    record = read(FileContents, paths=(firewall.RECORD,)).get(firewall.RECORD)
    before = parse_before(record.content) if record else None
    way = restoration(read(Ufw), before, ssh_ports(login, machine))
    if way.commands:
        yield "firewall", "goes", "; ".join(f"ufw {command}" for command in way.commands), ""
    if way.left:
        yield "firewall", "stays", way.left, "`sudo ufw status numbered`, then `sudo ufw delete NUMBER`, or `disable`"


def _account_row(settings: Settings) -> _Row:
    descriptions = tuple(user.description for user in accounts.users(settings))
    made = read(MadeAccounts, record=accounts.RECORD, descriptions=descriptions)
    if made.users or made.groups:
        yield "accounts", "goes", ", ".join(sorted({*made.users, *made.groups})), ""


def _package_row() -> _Row:
    record = read(FileContents, paths=(packages.RECORD,)).get(packages.RECORD)
    if record is None:
        found = "no record says which of them a deploy brought"
        remedy = "where nothing else needs it: `sudo apt-get purge haproxy && sudo systemctl unmask haproxy`"
        yield "packages", "stays", found, remedy
        return
    names = (*packages.BUILD, *packages.RUN, *packages.FIREWALL)
    ours = sorted(set(record.content.decode().split()) & set(names))
    found = f"{', '.join(ours) or 'none'}, and what came with them, unless something needs them"
    yield "packages", "goes", found, f"to keep one: sudo sed -i '/^NAME$/d' {packages.RECORD}"


@deploy("Preflight")
def check(leaving: Leaving) -> None:
    """Stop this host where something still needs what would go, and take the deploy's lock; other hosts go on."""
    preflight.required(
        name="Require a host that nothing else needs this on",
        failures=failures(leaving.findings),
    )
    lock.exclusive(name="Take the deploy's lock")


@deploy("Services")
def stop() -> None:
    """End what starts by itself, then all that runs, and delete the units."""
    removal.schedule_removed(
        name="Remove the cron job", file=paths.CRON_FILE, locks=[paths.HEALTH_LOCK, paths.METRICS_LOCK]
    )
    removal.units_removed(
        name="Stop and remove the units",
        units=units(),
        runtime=runtime(),
        # Held until the end of this run, and gone at the next boot.
        kept=[paths.DEPLOY_LOCK],
    )


@deploy("Files")
def delete(leaving: Leaving) -> None:
    """Delete files and directories; the records of what was here before stay until all else is gone."""
    trees = [tree for tree in TREES if tree != paths.STATE]
    patterns = [*files(leaving.settings), *trees, *state_directories(), *LOGS]
    removal.removed(name="Remove the files", patterns=patterns, kept=leaving.kept)


@deploy("Records")
def forget(leaving: Leaving) -> None:
    """Delete what the deploys have written down, last of all."""
    removal.removed(name="Remove the records", patterns=[paths.STATE], kept=leaving.kept)
