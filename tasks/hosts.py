"""The edge: from pyinfra's host data to settings, and how to become root on each host."""

from __future__ import annotations

import os
import sys
from typing import Any

from pyinfra import config, host, inventory
from pyinfra.api import Host
from rich.console import Console

from facts.base import give_up, read
from facts.machine import Login, LoginState
from settings import Settings, parse
from tasks.alerts import operators_webhook
from tasks.cloud_key import operators_key
from tasks.secret_files import SecretError


def load_settings(*, secrets: bool = True) -> Settings:
    """Settings of the current host, after those of every host were validated.

    + secrets: whether the operator's secrets must be there and usable

    Ends the program with status 1 where any host's are wrong: all problems of all hosts, a line each, and nothing
    was changed anywhere.
    """
    problems = [
        f"{each.name}: {problem}"
        for each in inventory.get_active_hosts()
        for problem in _problems(host_data(each), secrets)
    ]
    if problems:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        for problem in problems:
            console.print(problem, style="red", markup=False)
        console.print("No host was changed. docs/SETTINGS.md describes every setting.")
        sys.exit(1)
    settings, _ = parse(host_data(host))
    assert settings is not None
    return settings


def _problems(data: dict[str, Any], secrets: bool) -> list[str]:
    settings, problems = parse(data)
    if settings is not None and secrets:
        try:
            operators_key(settings, os.environ)
            operators_webhook(settings)
        except SecretError as problem:
            return [str(problem)]
    return problems


def host_data(of: Host) -> dict[str, Any]:
    """What inventory, group_data and `--data` say of a host, merged."""
    data: dict[str, Any] = of.data.dict()  # type: ignore[no-untyped-call]
    return data


def become_root() -> LoginState:
    """Who logged in; from here on every operation of this host runs as root, by sudo where that is needed.

    Ends the run for a host whose sudo asks for a password, before pyinfra could send one.
    """
    login = read(Login, _sudo=False, _su_user=None, _doas=False)
    asks = not (login.is_root or login.sudo_without_password)
    given = bool(host.data.get("_sudo_password") or config.SUDO_PASSWORD)
    ways = (
        "Log in as root by a key, or let sudo ask for none while you deploy: "
        f"echo '{login.user} ALL=(ALL) NOPASSWD:ALL' | sudo tee /etc/sudoers.d/local-llm-deploy, and afterwards "
        "sudo rm /etc/sudoers.d/local-llm-deploy"
    )
    if (asks or given) and host.data.get("allow_sudo_password") is not True:
        found = f"sudo asks {login.user} for a password" if asks else "sudo is given a password that it does not need"
        give_up(
            f"FAIL root rights: {found}, which pyinfra puts in command lines that every user of the host can read. "
            f"Nothing was changed. {ways}. Or accept it: allow_sudo_password = True."
        )
    if asks and not login.tmp_runs_programs:
        give_up(f"FAIL root rights: /tmp runs no programs, and pyinfra hands a password to sudo by one there. {ways}.")
    config.SUDO = not login.is_root
    return login
