"""The power is cut while a deploy writes: the machine comes up, and the next deploy completes what was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from sandbox.host import SandboxHost
from sandbox.vm import CORES, VirtualMachine
from tests.container.machine import Machine, Run
from tests.vm.conftest import FIRST_DEPLOY_CUTS, SWAP_CUTS, SWAP_MIB, Watched, virtual

HALF_A_SWAP_FILE, SWAP_FILE = (cut.name for cut in SWAP_CUTS)


@dataclass(frozen=True)
class Repair:
    """What a machine was like that was switched on again after a cut, and what the next deploy made of it."""

    failed_units: str
    mounted: str
    run: Run
    answers: bool
    swap: str


@pytest.fixture(scope="module")
def repair(first: Watched, swapping: Watched) -> Iterator[Callable[[str], Repair]]:
    """What came of each cut; as many machines at once as there are cores, while the first one rests."""
    after = dict.fromkeys(swapping.disks, swapping.machine) | dict.fromkeys(first.disks, first.machine)
    # Nothing of a swap file that was never whole is wanted any more.
    after[HALF_A_SWAP_FILE] = first.machine
    disks = first.disks | swapping.disks
    with virtual(first.machine).paused(), ThreadPoolExecutor(CORES) as pool:
        found = {cut: pool.submit(repaired, after[cut], disk) for cut, disk in disks.items()}
        yield lambda cut: found[cut].result()


def repaired(machine: Machine, disk: Path) -> Repair:
    """Boot from the disk, and deploy with the machine's settings."""
    with VirtualMachine(virtual(machine).disk, snapshot=disk) as vm:
        copy = replace(machine, host=cast(SandboxHost, vm))
        return Repair(
            failed_units=copy.sh("systemctl --failed --plain --no-legend"),
            mounted=copy.sh("findmnt -no OPTIONS /"),
            run=copy.deploy(),
            answers=copy.answers(),
            swap=copy.sh("ls /var/swap 2>&1; tr -s ' \\t' ' ' </proc/swaps", check=False),
        )


@pytest.mark.parametrize("cut", [cut.name for cut in (*FIRST_DEPLOY_CUTS, *SWAP_CUTS)])
def test_it_boots_and_the_next_deploy_completes_what_was_begun(repair: Callable[[str], Repair], cut: str) -> None:
    found = repair(cut)
    assert found.failed_units == ""
    assert found.mounted.startswith("rw")
    assert found.run.succeeded, found.run.output
    assert "FAIL" not in found.run.output
    assert found.answers


def test_half_a_swap_file_goes_where_none_is_wanted_any_more(repair: Callable[[str], Repair]) -> None:
    assert "No such file" in repair(HALF_A_SWAP_FILE).swap
    assert "local-llm" not in repair(HALF_A_SWAP_FILE).swap


def test_a_swap_file_that_was_in_use_is_in_use(repair: Callable[[str], Repair]) -> None:
    assert f"/var/swap/local-llm file {SWAP_MIB * 1024 - 4} " in repair(SWAP_FILE).swap
