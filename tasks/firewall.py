"""UFW: closed to the world but for SSH and what the settings open."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from facts.machine import LoginState, MachineState
from operations import ufw
from tasks import packages
from tasks.planning import ssh_ports
from tasks.preflight import Target

RECORD = f"{paths.STATE}/firewall.json"
"""What UFW was before a deploy first changed it."""


@deploy("Firewall")
def close(target: Target) -> None:
    """Deny incoming traffic, SSH allowed first; leave UFW alone where `firewall` is off."""
    settings = target.settings
    if not settings.firewall:
        return
    ufw.firewall(
        name="Close the firewall, SSH stays open",
        ssh_ports=ssh_ports(target.login, target.machine),
        denied=list(settings.loopback_ports.values()),
        allowed=settings.firewall_allowed_ports,
        record=RECORD,
    )


@deploy("Firewall")
def restore(login: LoginState, machine: MachineState) -> None:
    """Put UFW back to what it was before the first deploy, SSH open throughout."""
    ufw.restored(
        name="Take our rules out of UFW",
        ssh_ports=ssh_ports(login, machine),
        record=RECORD,
        packages_record=packages.RECORD,
    )
