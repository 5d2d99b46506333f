"""What the kernel lets the services do: a program that tries everything takes each one's place in its own sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.contract import paths
from tests import reach
from tests.container.machine import Machine
from tests.vm import probe

PROGRAM = "/opt/local-llm/test-sandbox.py"
FREE = "local-llm-test-free.service"
"""A unit without a sandbox."""

WEBHOOK_UNIT = paths.ALERT_UNITS["webhook"]
# What each service may do of all that the probe attempts: its work, and nothing else.
EVERY = {"write /tmp"}
NETWORK = {"internet socket", "datagram to the network", "datagram to the network, IPv6", "connection to the network"}
ALLOWED = {
    paths.SERVICE_UNIT: EVERY,
    paths.GATEWAY_UNIT: EVERY | {"internet socket"},
    paths.DRILL_UNIT: EVERY | {"internet socket", "connection to the API", "write /var/lib/local-llm"},
    WEBHOOK_UNIT: EVERY | NETWORK | {"connection to the API"},
}
# Root without any capability still owns what is bound into its sandbox, and sees its own processes.
OF_ROOT = {"read secrets", "other processes"}
TOLERATED = {paths.DRILL_UNIT: OF_ROOT, WEBHOOK_UNIT: OF_ROOT}


@pytest.fixture(scope="module")
def machine(deployed: Machine) -> Iterator[Machine]:
    """The machine with the probe on it."""
    units = "/etc/systemd/system"
    deployed.sh(
        f"cat >{PROGRAM} <<'END-OF-FILE'\n{Path(probe.__file__).read_text()}END-OF-FILE\n"
        f"printf '[Service]\\nPrivateMounts=yes\\n' >{units}/{FREE}"
    )
    yield deployed
    deployed.sh(f"rm -f {PROGRAM} {units}/{FREE}; systemctl daemon-reload")


@pytest.fixture(scope="module")
def free(machine: Machine) -> dict[str, str]:
    """What comes of each attempt of root without a sandbox."""
    attempts: dict[str, str] = probed(machine, FREE)["attempts"]
    return attempts


def probed(machine: Machine, unit: str) -> dict[str, Any]:
    """What the probe finds in the place of a unit's own program."""
    hub = machine.source.hub
    output = reach.in_place_of(machine, unit, f"/usr/bin/python3 -I {PROGRAM} {hub.bind} {hub.port}")
    machine.sh("rm -f $(find /etc /usr /opt/local-llm /var/lib -xdev -name probe -type f -size 0)")
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.parametrize("unit", ALLOWED)
def test_a_service_may_do_its_work_and_nothing_else(machine: Machine, free: dict[str, str], unit: str) -> None:
    found = probed(machine, unit)
    attempts = found["attempts"]
    allowed = {name for name, result in attempts.items() if result == "allowed"}
    assert allowed - TOLERATED.get(unit, set()) == ALLOWED[unit]
    # It is the sandbox that refused: without one, something else comes of it.
    assert [name for name in attempts.keys() - allowed if attempts[name] == free[name]] == []
    assert int(found["status"]["CapBnd"], 16) == int(found["status"]["CapEff"], 16) == 0
    assert found["status"]["NoNewPrivs"] == "1"
