"""UFW: closed to the world but for SSH and what the settings open."""

from __future__ import annotations

from pyinfra.api import deploy

from operations import ufw
from tasks.planning import ssh_ports
from tasks.preflight import Target


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
    )
