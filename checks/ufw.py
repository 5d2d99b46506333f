"""Reading `ufw status verbose`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DEFAULT = re.compile(r"^Default: (\w+) \(incoming\)", re.MULTILINE)
# "8765/tcp (v6)             DENY IN     Anywhere (v6)              # comment"
_RULE = re.compile(
    r"^(?P<to>\S.*?)\s{2,}(?P<action>ALLOW|DENY|REJECT|LIMIT)(?: (?P<way>IN|OUT|FWD))?\s+(?P<source>\S.*)$"
)


@dataclass(frozen=True)
class Rule:
    to: str
    action: str
    source: str
    v6: bool

    def covers(self, port: int) -> bool:
        """Does it speak of this TCP port, on any interface, whoever the sender is?"""
        target = re.sub(r"\s*\(.*?\)| on \S+", "", self.to).strip()
        if target == "Anywhere" or target.startswith("Anywhere/"):
            return not target.endswith("/udp")
        ports, _, protocol = target.split(" ")[-1].partition("/")
        if protocol not in ("", "tcp"):
            return False
        for part in ports.split(","):
            first, _, last = part.partition(":")
            if first.isdigit() and int(first) <= port <= int(last or first):
                return True
        return False

    @property
    def from_anywhere(self) -> bool:
        return self.source.startswith("Anywhere") and " on " not in self.to


@dataclass(frozen=True)
class Firewall:
    """UFW's state; rules for incoming traffic in the order in which they are tried."""

    active: bool
    default_incoming: str
    rules: tuple[Rule, ...]

    def denies(self, port: int) -> bool:
        """Is the port closed by a rule of its own, for IPv4 and, if there are such rules, for IPv6?"""
        families = {False} | {rule.v6 for rule in self.rules}
        return all(self._denies(port, v6) for v6 in families)

    def _denies(self, port: int, v6: bool) -> bool:
        for rule in self.rules:
            if rule.v6 != v6 or not rule.covers(port):
                continue
            if rule.action in ("ALLOW", "LIMIT"):
                return False
            if rule.from_anywhere:
                return True
        return False


def parse_status(text: str) -> Firewall:
    default = _DEFAULT.search(text)
    rules = []
    for line in text.splitlines():
        found = _RULE.match(line)
        if not found or found["way"] in ("OUT", "FWD"):
            continue
        source = found["source"].partition("#")[0].strip()
        rules.append(Rule(found["to"], found["action"], source, "(v6)" in found["to"] or "(v6)" in source))
    return Firewall(
        active=re.search(r"^Status: active$", text, re.MULTILINE) is not None,
        default_incoming=default.group(1) if default else "unknown",
        rules=tuple(rules),
    )
