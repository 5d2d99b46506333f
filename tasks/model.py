"""The model's weights."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import model
from operations.model import Download
from tasks.preflight import Target


@deploy("Model")
def download(target: Target) -> None:
    """Download and prove the model if this host does not have it."""
    settings = target.settings
    chosen = settings.selected_model
    model.downloaded(
        name=f"Download {chosen.name}",
        path=target.model_file,
        download=Download(
            url=chosen.url,
            sha256=chosen.sha256,
            size_bytes=chosen.size_bytes,
            attempts=settings.download_attempts,
            stall_seconds=settings.download_stall_seconds,
            insecure=settings.allow_insecure_downloads,
        ),
        user=paths.BUILD_USER,
    )
