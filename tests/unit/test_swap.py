"""The swap file: what is found, and what would be run."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from facts.swap import SwapFile, SwapState
from operations.swap import ACCESS, MIB, creation, fstab_line, removal

FILE = "/var/swap/local-llm"
GOOD = SwapState(64 * MIB, ACCESS, in_use=True, fstab=(fstab_line(FILE),), file_system="ext4")


def look(path: Path, swaps: str = "/proc/swaps") -> SwapState:
    fact = SwapFile()
    command = fact.command(str(path)).replace("/proc/swaps", swaps)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    return fact.process(done.stdout.splitlines())


def test_a_file_is_found_and_none_is_none(tmp_path: Path) -> None:
    nothing = look(tmp_path / "no" / "swap")
    assert (nothing.size_bytes, nothing.access, nothing.in_use, nothing.fstab) == (0, "", False, ())
    file = tmp_path / "a file"
    file.write_bytes(bytes(8192))
    file.chmod(0o600)
    found = look(file)
    assert (found.size_bytes, found.access.split()[0]) == (8192, "600")
    assert found.file_system == nothing.file_system != "unknown"


def test_a_file_is_in_use_where_it_is(tmp_path: Path) -> None:
    file, swaps = tmp_path / "swap", tmp_path / "swaps"
    swaps.write_text(f"Filename Type Size Used Priority\n{file} file 4 0 -2\n")
    assert not look(file, str(swaps)).in_use
    file.touch()
    assert look(file, str(swaps)).in_use
    assert not look(swaps, str(swaps)).in_use


def test_what_is_right_is_left_alone() -> None:
    assert not creation(FILE, 64, GOOD)
    assert not removal(FILE, SwapState())


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (SwapState(), ["mkswap", "swapon", "fstab"]),
        (SwapState(32 * MIB, ACCESS, True, GOOD.fstab), ["mkswap", "swapoff", "swapon"]),
        (SwapState(64 * MIB, "644 root root", True, GOOD.fstab), ["mkswap", "swapoff", "swapon"]),
        (SwapState(64 * MIB, ACCESS, False, GOOD.fstab), ["swapon"]),
        (SwapState(64 * MIB, ACCESS, True, ()), ["fstab"]),
        (SwapState(64 * MIB, ACCESS, True, (f"{FILE} none swap sw 0 0",)), ["fstab"]),
    ],
    ids=["none", "another size", "readable by others", "not in use", "not at boot", "another line"],
)
def test_only_what_is_missing_is_done(now: SwapState, expected: list[str]) -> None:
    script = "\n".join(creation(FILE, 64, now))
    subprocess.run(["/bin/sh", "-n", "-c", script], check=True)
    words = ("mkswap", "swapoff", "swapon", "fstab")
    assert [word for word in words if word in script.replace(f"{FILE} none swap", "")] == expected


def test_the_old_file_is_given_up_only_when_the_new_one_is_ready() -> None:
    steps = creation(FILE, 128, GOOD)
    order = [next(n for n, step in enumerate(steps) if word in step) for word in ("mkswap", "swapoff", "mv ")]
    assert order == sorted(order)


def test_it_goes_without_a_trace() -> None:
    script = "\n".join(removal(FILE, GOOD))
    subprocess.run(["/bin/sh", "-n", "-c", script], check=True)
    assert script.index("swapoff") < script.index("fstab") < script.index(f"rm -f {FILE}")


def test_what_a_cut_creation_left_is_found_and_goes(tmp_path: Path) -> None:
    file = tmp_path / "swap"
    assert not look(file).unfinished
    (tmp_path / "swap.new").touch()
    assert look(file).unfinished
    for steps in (removal(str(file), look(file)), creation(FILE, 64, dataclasses.replace(GOOD, unfinished=True))):
        [step] = [step for step in steps if ".new" in step]
        assert step.startswith("rm -f ")
    subprocess.run(["/bin/sh", "-euc", "\n".join(removal(str(file), look(file)))], check=True)
    assert not (tmp_path / "swap.new").exists()
