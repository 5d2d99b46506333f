"""The firewall."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import StringConstraints

from settings.section import Section, setting

FirewallPort = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}(:[0-9]{1,5})?/(tcp|udp)$")]
"""A port or range with its protocol, as UFW writes it: `443/tcp`, `60000:61000/udp`."""


class FirewallSettings(Section, title="Firewall"):
    """Which ports of the host are open to the world."""

    firewall: bool = setting(True, "Manage UFW: deny incoming, allow outgoing, SSH stays open.")
    firewall_allowed_ports: tuple[FirewallPort, ...] = setting(
        (),
        "Further ports open to the world, such as `443/tcp`. Rules you added by hand stay.",
        allowed="a list of ports with protocol, such as 443/tcp or 60000:61000/udp",
    )

    def problems(self) -> Iterator[str]:
        for port in self.firewall_allowed_ports:
            if not opened_by(port):
                yield f"firewall_allowed_ports contains {port!r}: allowed: ports from 1 to 65535, ranges ascending"


def opened_by(port: FirewallPort) -> range:
    """The numbers that a port or range of UFW's stands for; none where there is no such port."""
    numbers = [int(number) for number in re.findall(r"\d+", port)]
    first, last = numbers[0], numbers[-1]
    return range(first, last + 1) if first >= 1 and last <= 65535 else range(0)
