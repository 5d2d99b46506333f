"""The swap file: what is found of it, and of one that was never finished."""

import subprocess
from pathlib import Path

from facts.swap import SwapFile, SwapState
from operations.swap import removal


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


def test_what_a_cut_creation_left_is_found_and_goes(tmp_path: Path) -> None:
    file = tmp_path / "swap"
    assert not look(file).unfinished
    (tmp_path / "swap.new").touch()
    assert look(file).unfinished
    subprocess.run(["/bin/sh", "-euc", "\n".join(removal(str(file), look(file)))], check=True)
    assert not (tmp_path / "swap.new").exists()
