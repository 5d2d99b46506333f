"""What the kernel lets the services do: a program that tries everything takes each one's place in its own sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.machine import Machine
from tests.vm import probe
from tests.vm.conftest import Deployed

PROGRAM = "/usr/local/bin/sandbox-probe"
UNIT = "/run/systemd/system/sandbox-probe.service"
OUTPUT = "/run/sandbox-probe.json"
REPLACED = "Exec(Start(Pre|Post)?|Reload|Stop(Post)?)|Type|Restart|Sockets|EnvironmentFile|RuntimeDirectory"
"""What belongs to the service's own program, not to its sandbox."""

# What each service may do of all that the probe attempts: its work, and nothing else.
EVERY = {"write /tmp"}
NETWORK = {"internet socket", "datagram to the network", "datagram to the network, IPv6", "connection to the network"}
ALLOWED = {
    "local-llm": EVERY,
    "local-llm-gateway": EVERY | {"internet socket", "connection to the API"},
    "local-llm-drill": EVERY | {"internet socket", "connection to the API", "write /var/lib/local-llm"},
    "local-llm-alert-webhook": EVERY | NETWORK | {"connection to the API"},
}
# Root without any capability still owns its files, and sees its own processes.
OF_ROOT = {"read secrets", "read /etc/shadow", "other processes"}
TOLERATED = {"local-llm-drill": OF_ROOT, "local-llm-alert-webhook": OF_ROOT}


@pytest.fixture(scope="module")
def machine(deployed: Deployed) -> Iterator[Machine]:
    """The machine with the probe on it."""
    write(deployed.machine, PROGRAM, Path(probe.__file__).read_text())
    yield deployed.machine
    deployed.machine.sh(f"rm -f {PROGRAM} {UNIT} {OUTPUT}; systemctl daemon-reload")


@pytest.fixture(scope="module")
def free(machine: Machine) -> dict[str, str]:
    """What comes of each attempt of root without a sandbox."""
    attempts: dict[str, str] = probed(machine, "[Service]\nPrivateMounts=yes\n")["attempts"]
    return attempts


def probed(machine: Machine, unit: str) -> dict[str, Any]:
    """What the probe finds in the place of a unit's own program."""
    hub = machine.source.hub
    kept = [line for line in unit.replace("\\\n", " ").splitlines() if not re.match(rf"({REPLACED})=", line)]
    service = (
        f"[Service]\nType=oneshot\nStandardOutput=truncate:{OUTPUT}\n"
        f"ExecStart=/usr/bin/python3 -I {PROGRAM} {hub.bind} {hub.port}"
    )
    write(machine, UNIT, "\n".join(kept).replace("[Service]", service) + "\n")
    machine.sh("systemctl daemon-reload; systemctl start sandbox-probe")
    found: dict[str, Any] = json.loads(machine.sh(f"cat {OUTPUT}"))
    machine.sh("rm -f $(find /etc /usr /opt/local-llm /var/lib -xdev -name probe -type f -size 0)")
    return found


def write(machine: Machine, path: str, content: str) -> None:
    machine.sh(f"cat >{path} <<'END-OF-FILE'\n{content}END-OF-FILE")


@pytest.mark.parametrize("unit", ALLOWED)
def test_a_service_may_do_its_work_and_nothing_else(machine: Machine, free: dict[str, str], unit: str) -> None:
    found = probed(machine, machine.sh(f"cat {machine.show(unit, 'FragmentPath')}"))
    attempts = found["attempts"]
    allowed = {name for name, result in attempts.items() if result == "allowed"}
    assert allowed - TOLERATED.get(unit, set()) == ALLOWED[unit]
    # It is the sandbox that refused: without one, something else comes of it.
    assert [name for name in attempts.keys() - allowed if attempts[name] == free[name]] == []
    assert int(found["status"]["CapBnd"], 16) == int(found["status"]["CapEff"], 16) == 0
    assert found["status"]["NoNewPrivs"] == "1"
