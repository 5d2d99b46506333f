"""UFW: our rules beside the user's own, and SSH open before anything is closed."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.files import FileContents
from facts.ufw import Firewall, Ufw
from operations.remote import script
from operations.shell import moved_into_place, word

COMMENT = "local-llm"
"""Marks the rules that are ours, so that one that is no longer wanted is found and a user's never touched."""


@dataclass(frozen=True)
class Before:
    """UFW before the first deploy touched it, and the ports by which SSH was served then."""

    active: bool
    default_incoming: str | None
    default_outgoing: str | None
    rules: tuple[str, ...]
    ssh_ports: tuple[int, ...]


@operation()
def firewall(
    ssh_ports: Sequence[int], denied: Sequence[int], allowed: Sequence[str], record: str
) -> Generator[StringCommand, None, None]:
    """Ensure that UFW is active, denies incoming and allows outgoing traffic, and has these rules, IPv4 and IPv6.

    The rules come first, SSH's before all others, and `ufw enable` last: at no moment is SSH closed. Rules that a
    user added stay; of ours, those that are not wanted any more go.

    + ssh_ports: ports of the SSH server, allowed
    + denied: TCP ports that are denied explicitly, whatever the default becomes
    + allowed: further ports with protocol (`443/tcp`), allowed
    + record: a file that keeps what UFW was before it was first changed, for `restored`
    """
    now = read(Ufw)
    commands = ufw_commands(now, wanted_rules(ssh_ports, denied, allowed))
    if not commands:
        host.noop("UFW is active with all rules")
        return
    # Rules of ours without a record: what was before them, nobody knows.
    if not _ours(now) and record not in read(FileContents, paths=(record,)):
        content = json.dumps({**asdict(now), "ssh_ports": sorted(ssh_ports)})
        keep = f"printf '%s\\n' {word(content)} > {word(f'{record}.new')}\n{moved_into_place(f'{record}.new', record)}"
        yield StringCommand(script(keep))
    for command in commands:
        yield StringCommand("ufw", command)


def wanted_rules(ssh_ports: Sequence[int], denied: Sequence[int], allowed: Sequence[str]) -> list[str]:
    """Our rules in order, without their comment."""
    return [
        *(f"allow {port}/tcp" for port in sorted(ssh_ports)),
        *(f"deny {port}/tcp" for port in sorted(denied)),
        *(f"allow {port}" for port in allowed),
    ]


_SUFFIX = f" comment '{COMMENT}'"


def _ours(now: Firewall) -> list[str]:
    return [rule.removesuffix(_SUFFIX) for rule in now.rules if rule.endswith(_SUFFIX)]


def _theirs(rules: Sequence[str]) -> list[str]:
    return [rule for rule in rules if not rule.endswith(_SUFFIX)]


def ufw_commands(now: Firewall, wanted: Sequence[str]) -> list[str]:
    """What `ufw` is to be called with, in order, to get from `now` to the wanted rules."""
    suffix = _SUFFIX
    present = {rule.split(" comment ")[0] for rule in now.rules}
    # A user's `limit` lets in what our `allow` would, and UFW would turn it into ours.
    theirs = {rule.split(" comment ")[0] for rule in now.rules if not rule.endswith(suffix)}
    present |= {rule.replace("limit ", "allow ", 1) for rule in theirs if rule.startswith("limit ")}
    if now.active and now.default_incoming in ("deny", "reject"):
        # We came in by this rule: opening the port to everybody would only undo what the user narrowed.
        narrow = (re.match(r"(?:allow|limit) from \S+ to any port (\d+)\b", rule) for rule in theirs)
        present |= {f"allow {found[1]}/tcp" for found in narrow if found}
    ours = _ours(now)
    commands = [rule + suffix for rule in wanted if rule not in present]
    if now.default_incoming != "deny":
        commands.append("default deny incoming")
    if now.default_outgoing != "allow":
        commands.append("default allow outgoing")
    commands += [f"--force delete {rule}" for rule in ours if rule not in wanted]
    if not now.active:
        commands.append("--force enable")
    return commands


@dataclass(frozen=True)
class Restoration:
    """How UFW gets back to what it was: the commands, whether it is off after them, and what stays and why."""

    commands: tuple[str, ...]
    is_off: bool
    left: str = ""


@operation()
def restored(ssh_ports: Sequence[int], record: str, packages_record: str) -> Generator[StringCommand, None, None]:
    """Ensure that UFW is what it was before the first deploy, as far as that is known and leaves SSH open.

    Where it stays on it is the user's: then its package is one that no deploy brought.

    + ssh_ports: ports by which SSH is served now
    + record: what `firewall` has written down; it goes last
    + packages_record: the record of `packages.installed`
    """
    found = read(FileContents, paths=(record, packages_record))
    way = restoration(read(Ufw), parse_before(found[record].content) if record in found else None, ssh_ports)
    for command in way.commands:
        yield StringCommand("ufw", command)
    if not way.is_off and packages_record in found and b"ufw" in found[packages_record].content.split():
        yield StringCommand("sed", "-i", "'/^ufw$/d'", word(packages_record))
    if record in found:
        yield StringCommand("rm", "-f", word(record))
    elif not way.commands:
        host.noop("nothing of UFW is ours")


def parse_before(content: bytes) -> Before | None:
    """The record of `firewall`; None where it is not one."""
    try:
        data = json.loads(content)
        return Before(**{**data, "rules": tuple(data["rules"]), "ssh_ports": tuple(data["ssh_ports"])})
    except (ValueError, TypeError, KeyError):
        return None


def restoration(now: Firewall, before: Before | None, ssh_ports: Sequence[int]) -> Restoration:
    """From `now` to `before`; where that is unknown, or a user has come to rely on UFW, what lets traffic in stays.

    No command shuts SSH: a rule of ours for its port goes only if UFW is off then, or SSH got in without it before.
    """
    ours = _ours(now)
    closed = [f"--force delete {rule}" for rule in ours if rule.startswith("deny ")]
    if not now.active:
        restoring = [*_replaced(ours, before), *_defaults(now, before)] if before else []
        return Restoration((*(f"--force delete {rule}" for rule in _unreplaced(ours, before)), *restoring), is_off=True)
    if before is None:
        left = "UFW was set up by a deploy that kept no record of what it was: it stays on, with all rules that allow"
        return Restoration(tuple(closed), is_off=False, left=left if ours else "")
    since = [rule for rule in _theirs(now.rules) if rule not in before.rules]
    if not before.active and since:
        left = f"UFW was off before the first deploy, and has rules of yours since ({', '.join(since)}): it stays on"
        return Restoration(tuple(closed), is_off=False, left=f"{left}, with all rules that allow")
    gone = _unreplaced(ours, before)
    off = ["--force disable"] if not before.active else []
    back = _replaced(ours, before)
    # SSH came in by these rules and defaults before, so it does again; a port that it moved to since may need ours.
    has_all = set(before.rules) <= {*now.rules, *back}
    kept = [
        rule
        for rule in gone
        if before.active
        and rule in {f"allow {port}/tcp" for port in ssh_ports if not has_all or port not in before.ssh_ports}
    ]
    commands = [*off, *back, *_defaults(now, before), *(f"--force delete {rule}" for rule in gone if rule not in kept)]
    left = f"the rule {', '.join(kept)}: without it SSH would be shut" if kept else ""
    return Restoration(tuple(commands), is_off=not before.active, left=left)


def _target(rule: str) -> str:
    """What a rule is about: UFW has one action for it."""
    return rule.split(" comment ")[0].partition(" ")[2]


def _replaced(ours: Sequence[str], before: Before | None) -> list[str]:
    """Rules of the user's whose action a deploy changed: adding them changes it back, at the same place."""
    targets = {_target(rule) for rule in ours}
    return [rule for rule in _theirs(before.rules if before else ()) if _target(rule) in targets]


def _unreplaced(ours: Sequence[str], before: Before | None) -> list[str]:
    targets = {_target(rule) for rule in _replaced(ours, before)}
    return [rule for rule in ours if _target(rule) not in targets]


def _defaults(now: Firewall, before: Before) -> list[str]:
    """Default policies that are still as a deploy sets them, and were others."""
    return [
        f"default {was} {direction}"
        for is_now, ours, was, direction in (
            (now.default_incoming, "deny", before.default_incoming, "incoming"),
            (now.default_outgoing, "allow", before.default_outgoing, "outgoing"),
        )
        if was is not None and is_now == ours != was
    ]
