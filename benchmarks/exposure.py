"""Exposure of both units by `systemd-analyze security`, against the distribution's own units: 0 is none, 10 is all."""

from __future__ import annotations

import argparse
import re
import sys

from benchmarks.common import print_report, ratio
from benchmarks.machine import add_machine_option, deployed_machine
from checks.contract import paths
from sandbox.common import SandboxError, fail
from sandbox.host import SandboxHost

DISTRIBUTION_UNITS = "/lib/systemd/system"
PEER = "haproxy.service"
UNITS = (paths.SERVICE_UNIT, paths.GATEWAY_UNIT)
PEERS = (PEER, "ssh.service")


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        exposures = {unit: exposure(machine, unit, unit) for unit in UNITS}
        # As the distribution ships them: its haproxy.service is masked here, which cannot be looked at by name.
        exposures |= {
            f"{unit} of the distribution": exposure(machine, unit, "--offline=true", f"{DISTRIBUTION_UNITS}/{unit}")
            for unit in PEERS
        }
        version = machine.exec("systemctl", "--version").splitlines()[0]
    except SandboxError as error:
        return fail(error)
    peer = exposures[f"{PEER} of the distribution"]
    print_report(
        "Exposure",
        ("unit", "exposure", f"ratio to {PEER}"),
        [[name, f"{value:.1f}", ratio(value, peer)] for name, value in exposures.items()],
        f"{machine.image}, {version}.",
    )
    return 0


def exposure(machine: SandboxHost, unit: str, *arguments: str) -> float:
    """The overall level of the unit that the arguments select. Raises SandboxError when systemd says none."""
    output = machine.exec("systemd-analyze", "security", "--no-pager", *arguments)
    found = re.search(rf"Overall exposure level for {re.escape(unit)}: ([\d.]+)", output)
    if not found:
        raise SandboxError(f"systemd-analyze says nothing of {unit} on {machine.name}.")
    return float(found[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exposure", description=__doc__)
    add_machine_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
