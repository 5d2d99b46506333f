"""The edge: from pyinfra's host data to settings, and how to become root on each host."""

from __future__ import annotations

import os
import sys
from typing import Any

from pyinfra import config, host, inventory
from pyinfra.api import Host
from rich.console import Console

from facts.machine import Login, LoginState
from settings import Settings, parse
from tasks.alerts import operators_webhook
from tasks.cloud_key import operators_key
from tasks.secret_files import SecretError


def load_settings() -> Settings:
    """Settings of the current host, after those of every host were validated.

    Ends the program with status 1 where any host's are wrong: all problems of all hosts, a line each, and nothing
    was changed anywhere.
    """
    problems = [
        f"{each.name}: {problem}" for each in inventory.get_active_hosts() for problem in _problems(host_data(each))
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


def _problems(data: dict[str, Any]) -> list[str]:
    settings, problems = parse(data)
    if settings is not None:
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
    """Who logged in; from here on every operation of this host runs as root, by sudo where that is needed."""
    login = host.get_fact(Login)
    config.SUDO = not login.is_root
    return login
