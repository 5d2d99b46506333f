"""Which builds of llama.cpp are installed, and which of them is current."""

from __future__ import annotations

from dataclasses import dataclass

from facts.base import HostFact, framed


@dataclass(frozen=True)
class Installed:
    """Release IDs, newest first, and the one that `current` points at."""

    releases: tuple[str, ...] = ()
    current: str | None = None


class Releases(HostFact[Installed]):
    """The builds below a directory. A build that was broken off has another name and does not count."""

    def command(self, root: str) -> str:
        return framed(
            f'echo "current $(basename "$(readlink {root}/current)")"; '
            f"ls -1t {root}/releases 2>/dev/null | grep -v '[.]partial$'; true"
        )

    def parse(self, output: list[str]) -> Installed:
        current = output[0].removeprefix("current").strip()
        return Installed(tuple(output[1:]), current or None)
