"""UFW: our rules beside the user's own, and SSH open before anything is closed."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.ufw import Firewall, Ufw

COMMENT = "local-llm"
"""Marks the rules that are ours, so that one that is no longer wanted is found and a user's never touched."""


@operation()
def firewall(
    ssh_ports: Sequence[int], denied: Sequence[int], allowed: Sequence[str]
) -> Generator[StringCommand, None, None]:
    """Ensure that UFW is active, denies incoming and allows outgoing traffic, and has these rules, IPv4 and IPv6.

    The rules come first, SSH's before all others, and `ufw enable` last: at no moment is SSH closed. Rules that a
    user added stay; of ours, those that are not wanted any more go.

    + ssh_ports: ports of the SSH server, allowed
    + denied: TCP ports that are denied explicitly, whatever the default becomes
    + allowed: further ports with protocol (`443/tcp`), allowed
    """
    commands = ufw_commands(read(Ufw), wanted_rules(ssh_ports, denied, allowed))
    if not commands:
        host.noop("UFW is active with all rules")
    for command in commands:
        yield StringCommand("ufw", command)


def wanted_rules(ssh_ports: Sequence[int], denied: Sequence[int], allowed: Sequence[str]) -> list[str]:
    """Our rules in order, without their comment."""
    return [
        *(f"allow {port}/tcp" for port in sorted(ssh_ports)),
        *(f"deny {port}/tcp" for port in sorted(denied)),
        *(f"allow {port}" for port in allowed),
    ]


def ufw_commands(now: Firewall, wanted: Sequence[str]) -> list[str]:
    """What `ufw` is to be called with, in order, to get from `now` to the wanted rules."""
    suffix = f" comment '{COMMENT}'"
    present = {rule.split(" comment ")[0] for rule in now.rules}
    # A user's `limit` lets in what our `allow` would, and UFW would turn it into ours.
    theirs = {rule.split(" comment ")[0] for rule in now.rules if not rule.endswith(suffix)}
    present |= {rule.replace("limit ", "allow ", 1) for rule in theirs if rule.startswith("limit ")}
    if now.active and now.default_incoming in ("deny", "reject"):
        # We came in by this rule: opening the port to everybody would only undo what the user narrowed.
        narrow = (re.match(r"(?:allow|limit) from \S+ to any port (\d+)\b", rule) for rule in theirs)
        present |= {f"allow {found[1]}/tcp" for found in narrow if found}
    ours = [rule.removesuffix(suffix) for rule in now.rules if rule.endswith(suffix)]
    commands = [rule + suffix for rule in wanted if rule not in present]
    if now.default_incoming != "deny":
        commands.append("default deny incoming")
    if now.default_outgoing != "allow":
        commands.append("default allow outgoing")
    commands += [f"--force delete {rule}" for rule in ours if rule not in wanted]
    if not now.active:
        commands.append("--force enable")
    return commands
