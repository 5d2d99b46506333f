"""The power is cut while a deploy writes: the machine comes up, and the next deploy completes what was begun."""

from __future__ import annotations

import pytest

from tests.container.conftest import with_settings
from tests.container.machine import Machine
from tests.vm.conftest import FIRST_DEPLOY_CUTS, SWAP_MIB, Deployed


def assert_boots(machine: Machine) -> None:
    assert machine.sh("systemctl --failed --plain --no-legend") == ""
    assert machine.sh("findmnt -no OPTIONS /").startswith("rw")


@pytest.mark.parametrize("cut", [cut.name for cut in FIRST_DEPLOY_CUTS])
def test_the_next_deploy_completes_a_first_one(deployed: Deployed, cut: str) -> None:
    with deployed.booted_after(cut) as machine:
        assert_boots(machine)
        run = machine.deploy()
        assert run.succeeded, run.output
        assert machine.answers()
        assert "FAIL" not in run.output


def test_half_a_swap_file_goes_where_none_is_wanted_any_more(swapping: Deployed) -> None:
    with swapping.booted_after("half a swap file") as machine:
        assert_boots(machine)
        run = with_settings(machine, swap_file_mib=0).deploy()
        assert run.succeeded, run.output
        assert machine.sh("ls /var/swap 2>/dev/null", check=False) == ""
        assert machine.answers()


def test_a_swap_file_that_was_in_use_is_in_use(swapping: Deployed) -> None:
    with swapping.booted_after("swap file") as machine:
        assert_boots(machine)
        run = machine.deploy()
        assert run.succeeded, run.output
        assert f" {SWAP_MIB * 1024 - 4} " in machine.sh("cat /proc/swaps | tr -s ' \\t' ' '")
        assert machine.answers()
