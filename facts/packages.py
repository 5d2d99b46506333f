"""Which Debian packages are installed, and what installing the others would do: one round trip for a list of names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections


class InstalledPackages(HostFact[set[str]]):
    """Those of the given packages that are installed and configured."""

    def command(self, packages: Sequence[str]) -> str:
        return framed(
            "dpkg-query -W -f='${db:Status-Status} ${Package}\\n' "
            f"{' '.join(map(shlex.quote, packages))} 2>/dev/null || true"
        )

    def parse(self, output: list[str]) -> set[str]:
        return {name for status, name in (line.split() for line in output) if status == "installed"}


@dataclass(frozen=True)
class PackagePlan:
    """What installing packages would do. `is_known` is false where apt cannot say: a fresh VPS has no lists yet."""

    missing: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    is_known: bool = True


class Plan(HostFact[PackagePlan]):
    """Which of the given packages are missing, and which others apt would remove to install them. Changes nothing."""

    def command(self, packages: Sequence[str]) -> str:
        names = " ".join(map(shlex.quote, packages))
        return framed(
            "export LC_ALL=C; missing=; "
            f'for p in {names}; do [ "$(dpkg-query -W -f=\'${{db:Status-Status}}\' "$p" 2>/dev/null)" = installed ] '
            '|| missing="$missing $p"; done; '
            'echo @missing; echo "$missing"; [ -n "$missing" ] || exit 0; '
            "echo @plan; apt-get -s -y --no-install-recommends install $missing 2>/dev/null && echo known; true"
        )

    def parse(self, output: list[str]) -> PackagePlan:
        return parse_plan(output)


def parse_plan(output: Sequence[str]) -> PackagePlan:
    """Read the fact's output. `Remv NAME [VERSION]` is apt's word for a removal."""
    sections = parse_sections(list(output))
    plan = [line.split() for line in sections.get("plan", [])]
    missing = " ".join(sections.get("missing", [])).split()
    return PackagePlan(
        missing=tuple(missing),
        removed=tuple(words[1] for words in plan if len(words) > 1 and words[0] == "Remv"),
        is_known=not missing or plan[-1:] == [["known"]],
    )
