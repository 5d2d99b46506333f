"""Owner and mode of directories, and which accounts exist: one round trip each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections
from operations.shell import word


class Directories(HostFact[dict[str, str]]):
    """`MODE OWNER GROUP` of each given directory that exists, by path."""

    def command(self, paths: Sequence[str]) -> str:
        return framed(
            f"for d in {' '.join(map(word, paths))}; do "
            'if [ -d "$d" ] && [ ! -L "$d" ]; then echo "$(stat -c "%04a %U %G" "$d") $d"; fi; done'
        )

    def parse(self, output: list[str]) -> dict[str, str]:
        return {path: state for state, path in (_split(line) for line in output)}


def _split(line: str) -> tuple[str, str]:
    mode, owner, group, path = line.split(" ", 3)
    return f"{mode} {owner} {group}", path


class Accounts(HostFact[set[str]]):
    """Which of the given users (`u:NAME`) and groups (`g:NAME`) exist."""

    def command(self, users: Sequence[str], groups: Sequence[str]) -> str:
        return framed(
            f'for u in {" ".join(map(word, users))}; do getent passwd "$u" >/dev/null && echo "u:$u"; done; '
            f'for g in {" ".join(map(word, groups))}; do getent group "$g" >/dev/null && echo "g:$g"; done; true'
        )

    def parse(self, output: list[str]) -> set[str]:
        return set(output)


@dataclass(frozen=True)
class AccountState:
    """A user and a group as they are. `uid` and `gid` are None where there is none of that name.

    `groups` are all of the user's, its primary one first; `processes` are its own, as `UNIT COMMAND`, but for those of
    the unit that it is for.
    """

    uid: int | None = None
    shell: str = ""
    groups: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    gid: int | None = None


class Account(HostFact[AccountState]):
    """What a user is and does besides its unit, and which group it is to have."""

    def command(self, account: str, group: str, unit: str) -> str:
        user = word(account)
        return framed(
            f"echo @user; getent passwd {user} | cut -d: -f3,7; echo @groups; id -Gn {user} 2>/dev/null; "
            f"echo @processes; ps -o unit:80=,comm= -U {user} 2>/dev/null | awk -v own={word(unit)} '$1!=own'; "
            f"echo @group; getent group {word(group)} | cut -d: -f3; true"
        )

    def parse(self, output: list[str]) -> AccountState:
        sections = parse_sections(output)
        uid, _, shell = next(iter(sections["user"]), "").partition(":")
        gid = next(iter(sections["group"]), "")
        return AccountState(
            uid=int(uid) if uid else None,
            shell=shell,
            groups=tuple(" ".join(sections["groups"]).split()),
            processes=tuple(sorted({" ".join(line.split()) for line in sections["processes"]})),
            gid=int(gid) if gid else None,
        )


@dataclass(frozen=True)
class OwnAccounts:
    """Users and groups that a deploy made and that are still there; `foreign_groups` are others of the users' names."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    foreign_groups: tuple[str, ...] = ()


class MadeAccounts(HostFact[OwnAccounts]):
    """Accounts that a deploy made: those of its record, and users that carry one of its descriptions.

    Of an account with a description and without a record, the group of the same name was made with it.
    """

    def command(self, record: str, descriptions: Sequence[str]) -> str:
        marks = "\n".join(descriptions)
        return framed(
            f"echo @recorded; cat {word(record)} 2>/dev/null; "
            f"echo @marked; printf '%s\\n' {word(marks)} | while IFS= read -r mark; do getent passwd | "
            'awk -F: -v mark="$mark" \'$5 == mark && $6 == "/nonexistent" {print $1}\'; done; '
            "echo @users; getent passwd | cut -d: -f1; echo @groups; getent group | cut -d: -f1"
        )

    def parse(self, output: list[str]) -> OwnAccounts:
        return parse_own_accounts(output)


def parse_own_accounts(output: list[str]) -> OwnAccounts:
    """Read the fact's output; the record has a line `u:NAME` or `g:NAME` for each."""
    sections = parse_sections(output)
    recorded, marked = sections.get("recorded", []), sections.get("marked", [])
    made_users = {line[2:] for line in recorded if line.startswith("u:")}
    made_groups = {line[2:] for line in recorded if line.startswith("g:")}
    made_groups |= {name for name in marked if name not in made_users}
    made_users |= set(marked)
    users = [name for name in sections.get("users", []) if name in made_users]
    there = sections.get("groups", [])
    return OwnAccounts(
        users=tuple(users),
        groups=tuple(name for name in there if name in made_groups),
        foreign_groups=tuple(name for name in there if name in users and name not in made_groups),
    )
