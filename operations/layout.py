"""Directories and system accounts, each compared in one round trip."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.layout import Accounts, Directories
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
def system_users(users: Sequence[SystemUser]) -> Generator[StringCommand, None, None]:
    """Ensure that system users and their groups exist. Accounts that exist already are left as they are.

    + users: the accounts
    """
    present = read(Accounts, users=tuple(user.name for user in users), groups=tuple(user.group for user in users))
    made: set[str] = set()
    for user in users:
        if f"g:{user.group}" not in present | made:
            made.add(f"g:{user.group}")
            # Beside a user that is there already, it is no group of the system's.
            yield StringCommand("groupadd", *([] if f"u:{user.name}" in present else ["--system"]), word(user.group))
        if f"u:{user.name}" not in present | made:
            made.add(f"u:{user.name}")
            yield StringCommand(
                "useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                "--shell", "/usr/sbin/nologin", "--gid", word(user.group),
                "--comment", word(user.description), word(user.name),
            )  # fmt: skip
    if not made:
        host.noop("all accounts exist")
