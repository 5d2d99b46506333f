"""The deployed sandbox machine that a benchmark looks at, and running a probe inside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from checks.contract import paths
from sandbox.common import SandboxError
from sandbox.host import SandboxHost
from sandbox.state import State

PROBES = Path(__file__).with_name("probes")


def add_machine_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", metavar="NAME", help="sandbox machine to look at (default: that of `make demo`)")


def deployed_machine(name: str | None) -> SandboxHost:
    """The machine of that name, or the demo's. Raises SandboxError unless both services run on it."""
    machine = SandboxHost.attach(name or State.load().machine)
    for unit in (paths.SERVICE_UNIT, paths.GATEWAY_UNIT):
        state = machine.exec("systemctl", "is-active", unit, check=False).strip()
        if state != "active":
            raise SandboxError(f"{unit} is {state or 'unknown'} on {machine.name}. Deploy to it first.")
    return machine


def run_probe(machine: SandboxHost, name: str, *arguments: str) -> Any:
    """Run `probes/NAME.py` with the machine's own python3 and return the JSON that it prints."""
    source = (PROBES / f"{name}.py").read_text()
    return json.loads(machine.exec("/usr/bin/python3", "-c", source, *arguments))
