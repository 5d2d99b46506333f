"""Which Debian packages are installed: one round trip for a list of names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from facts.base import HostFact, framed


class InstalledPackages(HostFact[set[str]]):
    """Those of the given packages that are installed and configured."""

    def command(self, packages: Sequence[str]) -> str:
        return framed(
            "dpkg-query -W -f='${db:Status-Status} ${Package}\\n' "
            f"{' '.join(map(shlex.quote, packages))} 2>/dev/null || true"
        )

    def parse(self, output: list[str]) -> set[str]:
        return {name for status, name in (line.split() for line in output) if status == "installed"}
