"""Owner and mode of directories, and which accounts exist: one round trip each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase


class Directories(FactBase[dict[str, str]]):
    """`MODE OWNER GROUP` of each given directory that exists, by path."""

    def command(self, paths: Sequence[str]) -> str:
        return (
            f"for d in {' '.join(map(shlex.quote, paths))}; do "
            'if [ -d "$d" ] && [ ! -L "$d" ]; then echo "$(stat -c "%04a %U %G" "$d") $d"; fi; done'
        )

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        return {path: state for state, path in (_split(line) for line in output)}


def _split(line: str) -> tuple[str, str]:
    mode, owner, group, path = line.split(" ", 3)
    return f"{mode} {owner} {group}", path


class Accounts(FactBase[set[str]]):
    """Which of the given users (`u:NAME`) and groups (`g:NAME`) exist."""

    def command(self, users: Sequence[str], groups: Sequence[str]) -> str:
        return (
            f'for u in {" ".join(map(shlex.quote, users))}; do getent passwd "$u" >/dev/null && echo "u:$u"; done; '
            f'for g in {" ".join(map(shlex.quote, groups))}; do getent group "$g" >/dev/null && echo "g:$g"; done; true'
        )

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        return set(output)
