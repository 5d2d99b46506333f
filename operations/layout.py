"""Directories and system accounts, each compared in one round trip."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.layout import Accounts, Directories, MadeAccounts
from operations.remote import connector_arguments, script, told
from operations.shell import word


@dataclass(frozen=True)
class Directory:
    """What a directory on the host is to be. `mode` is four octal digits."""

    path: str
    mode: str = "0755"
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class SystemUser:
    """An account that runs a service: no password, no shell, no home."""

    name: str
    group: str
    description: str


@operation()
def directories(directories: Sequence[Directory]) -> Generator[StringCommand, None, None]:
    """Ensure directories with their owner and mode; what is in them is left as it is.

    + directories: the directories, parents first
    """
    present = read(Directories, paths=tuple(directory.path for directory in directories))
    changed = False
    for wanted in directories:
        if present.get(wanted.path) == f"{wanted.mode} {wanted.owner} {wanted.group}":
            continue
        changed = True
        yield StringCommand(
            *("install", "-d", "-m", word(wanted.mode), "-o", word(wanted.owner), "-g", word(wanted.group)),
            word(wanted.path),
        )
    if not changed:
        host.noop(f"{len(directories)} directories are as they should be")


@operation()
def system_users(users: Sequence[SystemUser], record: str) -> Generator[StringCommand, None, None]:
    """Ensure that system users and their groups exist. Accounts that exist already are left as they are.

    + users: the accounts
    + record: a file that keeps which of them were made, for `accounts_removed`
    """
    present = read(Accounts, users=tuple(user.name for user in users), groups=tuple(user.group for user in users))
    made: set[str] = set()
    for user in users:
        if f"g:{user.group}" not in present | made:
            made.add(f"g:{user.group}")
            yield _record(f"g:{user.group}", record)
            # Beside a user that is there already, it is no group of the system's.
            yield StringCommand("groupadd", *([] if f"u:{user.name}" in present else ["--system"]), word(user.group))
        if f"u:{user.name}" not in present | made:
            made.add(f"u:{user.name}")
            yield _record(f"u:{user.name}", record)
            yield StringCommand(
                "useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                "--shell", "/usr/sbin/nologin", "--gid", word(user.group),
                "--comment", word(user.description), word(user.name),
            )  # fmt: skip
    if not made:
        host.noop("all accounts exist")


def _record(account: str, record: str) -> StringCommand:
    folder = word(str(PurePosixPath(record).parent))
    return StringCommand(script(f"install -d -m 0750 {folder}\necho {word(account)} >>{word(record)}"))


@operation()
def accounts_removed(descriptions: Sequence[str], record: str) -> Generator[PyinfraCommand, None, None]:
    """Ensure that the accounts that `system_users` made are gone; those that were there before stay.

    + descriptions: by which a user is known that was made when no record was kept
    + record: its record; it goes last
    """
    made = read(MadeAccounts, record=record, descriptions=tuple(descriptions))
    if not made.users and not made.groups:
        host.noop("no account was made by a deploy")
        return
    for user in made.users:
        if user in made.foreign_groups:
            # userdel would take the group of the user's name along.
            yield StringCommand("usermod", "--gid", "nogroup", word(user))
        yield StringCommand("userdel", word(user))
    for name in made.groups:
        group = word(name)
        steps = f"! getent group {group} >/dev/null || groupdel {group} || echo 'Left: the group' {group}"
        yield told(script(steps), connector_arguments(host))
    yield StringCommand("rm", "-f", word(record))
