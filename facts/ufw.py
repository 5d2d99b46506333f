"""UFW's state and the rules that were added, as UFW itself prints them."""

from __future__ import annotations

from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections


@dataclass(frozen=True)
class Firewall:
    """UFW as it is. `rules` are the arguments of `ufw` that would add them again, such as `allow 22/tcp`."""

    active: bool = False
    default_incoming: str | None = None
    default_outgoing: str | None = None
    rules: tuple[str, ...] = ()


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
