"""A swap file that comes, changes its size and goes, on a file system that takes one and on one that does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import is_root_on_debian
from tests.container.conftest import SWAP_FOLDER, with_settings
from tests.container.machine import Machine

FILE = f"{SWAP_FOLDER}/local-llm"

pytestmark = pytest.mark.distribution(-1)


def is_somebodys_machine() -> bool:
    """Swap belongs to the kernel, which containers share: on a person's own machine nothing of it is touched."""
    return "CI" not in os.environ and (not is_root_on_debian() or Path("/run/systemd/system").exists())


@pytest.fixture
def swapping(deployed: Machine) -> Iterator[Machine]:
    """The deployed machine, whose swap file is given up whatever happens."""
    if is_somebodys_machine():
        pytest.skip("swap is the whole machine's: tested where CI is set, or as root on Debian without systemd")
    yield deployed
    deployed.sh(f"swapoff {FILE}; sed -i '\\|^{FILE} |d' /etc/fstab; rm -f {FILE}", check=False)
    deployed.deploy()


def swaps(machine: Machine) -> dict[str, int]:
    """Size in KiB of each file in use, as the kernel says it."""
    lines = [line.split() for line in machine.sh("cat /proc/swaps").splitlines()[1:]]
    return {fields[0]: int(fields[2]) for fields in lines}


def test_it_comes_changes_its_size_and_goes(swapping: Machine) -> None:
    swapping.sh("printf '# mine\\n/dev/vdz /data ext4 nofail 0 2' >/etc/fstab")  # no newline at its end
    small = with_settings(swapping, swap_file_mib=32)
    run = small.deploy()
    assert run.succeeded, run.output
    assert swaps(swapping)[FILE] == 32 * 1024 - 4
    assert swapping.sh(f"stat -c '%a %U %s' {FILE}") == f"600 root {32 * 1024**2}"
    assert swapping.sh("cat /etc/fstab").splitlines() == [
        "# mine",
        "/dev/vdz /data ext4 nofail 0 2",
        f"{FILE} none swap sw,nofail 0 0",
    ]
    assert "swap file" in swapping.sh("local-llm test", check=False)
    assert small.deploy().changed == 0

    swapping.sh(f"swapoff {FILE}")  # as after a boot whose fstab failed
    assert small.deploy().changed == 1
    assert FILE in swaps(swapping)

    large = with_settings(swapping, swap_file_mib=48)
    assert large.deploy().succeeded
    assert swaps(swapping)[FILE] == 48 * 1024 - 4
    assert swapping.sh(f"ls {SWAP_FOLDER}") == "local-llm"

    assert swapping.deploy().succeeded
    assert FILE not in swaps(swapping)
    assert swapping.sh(f"ls {SWAP_FOLDER}") == ""
    assert swapping.sh("cat /etc/fstab").splitlines() == ["# mine", "/dev/vdz /data ext4 nofail 0 2"]
    assert swapping.deploy().changed == 0


def test_a_file_system_without_swap_files_is_refused_before_anything_changes(deployed: Machine) -> None:
    deployed.sh(f"mount -t tmpfs tmpfs {SWAP_FOLDER}")
    try:
        run = with_settings(deployed, swap_file_mib=32).deploy()
        assert run.status == 1
        assert "swap file: tmpfs; needed: /var on a file system" in run.output
        assert "set swap_file_mib = 0" in run.output
        assert deployed.sh(f"ls {SWAP_FOLDER}") == ""
    finally:
        deployed.sh(f"umount {SWAP_FOLDER}")
