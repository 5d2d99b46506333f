"""UFW's state and the rules that were added, as UFW itself prints them."""

from __future__ import annotations

from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections
from facts.systemd import in_use, print_use


@dataclass(frozen=True)
class Firewall:
    """UFW as it is. `rules` are the arguments of `ufw` that would add them again, such as `allow 22/tcp`."""

    active: bool = False
    default_incoming: str | None = None
    default_outgoing: str | None = None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class OtherFirewalls:
    """What filters packets beside UFW. `managers` would set rules again at the next boot; Docker sets its own."""

    ufw_is_on: bool = False
    managers: tuple[str, ...] = ()
    docker: bool = False


_MANAGERS = (
    "netfilter-persistent.service",
    "nftables.service",
    "firewalld.service",
    "shorewall.service",
    "shorewall6.service",
    "csf.service",
    "ferm.service",
)

_DOCKER = "docker.service"


class Others(HostFact[OtherFirewalls]):
    """Other managers of packet filters that run or are enabled, and whether UFW is on already."""

    def command(self) -> str:
        return framed(
            "echo @ufw; grep -ix ENABLED=yes /etc/ufw/ufw.conf 2>/dev/null; echo @units; "
            f"{print_use((*_MANAGERS, _DOCKER))}; true"
        )

    def parse(self, output: list[str]) -> OtherFirewalls:
        return parse_others(output)


def parse_others(output: list[str]) -> OtherFirewalls:
    """Read the fact's output."""
    sections = parse_sections(output)
    units = in_use(sections.get("units", []))
    return OtherFirewalls(
        ufw_is_on=bool(sections.get("ufw")),
        managers=tuple(name for name in units if name in _MANAGERS),
        docker=_DOCKER in units,
    )


class Ufw(HostFact[Firewall]):
    """Whether UFW is active, its defaults, and its rules in order."""

    def command(self) -> str:
        return framed(
            "command -v ufw >/dev/null || exit 0; export LC_ALL=C; "
            "echo @status; ufw status verbose; echo @added; ufw show added; "
            "echo @defaults; grep -E '^DEFAULT_(INPUT|OUTPUT)_POLICY=' /etc/default/ufw; true"
        )

    def parse(self, output: list[str]) -> Firewall:
        return parse_ufw(output)


_POLICIES = {"DROP": "deny", "REJECT": "reject", "ACCEPT": "allow"}


def parse_ufw(output: list[str]) -> Firewall:
    """Read the fact's output. Defaults come from the file: `ufw status` shows them only while active."""
    sections = parse_sections(output)
    defaults = dict(line.split("=", 1) for line in sections.get("defaults", []))

    def policy(name: str) -> str | None:
        return _POLICIES.get(defaults.get(f"DEFAULT_{name}_POLICY", "").strip('"'))

    return Firewall(
        active="Status: active" in sections.get("status", []),
        default_incoming=policy("INPUT"),
        default_outgoing=policy("OUTPUT"),
        rules=tuple(line.removeprefix("ufw ").strip() for line in sections.get("added", []) if line.startswith("ufw ")),
    )
