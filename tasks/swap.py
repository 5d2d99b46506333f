"""A swap file, for what else runs on the host: the model and the gateway never swap."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import swap
from settings import Settings


@deploy("Swap file")
def make(settings: Settings) -> None:
    """A swap file of `swap_file_mib`; with 0 an earlier one of ours goes."""
    swap.swap_file(
        name=f"Make a swap file of {settings.swap_file_mib} MiB" if settings.swap_file_mib else "Have no swap file",
        path=paths.SWAP_FILE,
        size_mib=settings.swap_file_mib,
    )


@deploy("Swap file")
def remove() -> None:
    """Have no swap file of ours."""
    swap.swap_file(name="Remove the swap file", path=paths.SWAP_FILE, size_mib=0)
