"""The end of a deploy: the host proves itself, and what is not needed any more goes."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import llama_cpp, model, verification
from tasks.preflight import Target


@deploy("Verification")
def verify() -> None:
    """Run all checks on the host; the deploy fails where one fails."""
    verification.verified(name="Verify the host")


@deploy("Clean-up")
def prune(target: Target) -> None:
    """Remove releases and models beyond those that are kept: only now that the new ones have proven themselves."""
    settings = target.settings
    llama_cpp.pruned(
        name="Remove old releases", root=paths.ROOT, current=target.release.id, keep=settings.keep_releases
    )
    model.pruned(
        name="Remove old models",
        directory=paths.MODELS,
        current=target.model_file.rsplit("/", 1)[1],
        keep=settings.keep_models,
    )
