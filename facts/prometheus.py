"""What of Prometheus is on a host: the user's own, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections
from facts.systemd import in_use, print_use
from operations.shell import word


@dataclass(frozen=True)
class PrometheusState:
    """`in_use`: those of the distribution's services that run or start by themselves: somebody's own.

    `pids` are the processes of our services.
    """

    in_use: tuple[str, ...] = ()
    pids: frozenset[int] = frozenset()


class Prometheus(HostFact[PrometheusState]):
    """Who runs a Prometheus here, before it is decided whether we may."""

    def command(self, distribution: Sequence[str], own: Sequence[str]) -> str:
        return framed(
            f"echo @distribution; {print_use(distribution)}; "
            f"echo @own; systemctl show {' '.join(map(word, own))} -p MainPID --value; true"
        )

    def parse(self, output: list[str]) -> PrometheusState:
        return parse_prometheus(output)


def parse_prometheus(output: Sequence[str]) -> PrometheusState:
    """Read the fact's lines."""
    sections = parse_sections(list(output))
    return PrometheusState(
        in_use=in_use(sections.get("distribution", [])),
        pids=frozenset(int(line) for line in sections.get("own", []) if line.strip() not in ("", "0")),
    )
