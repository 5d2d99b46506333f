"""llama.cpp, compiled for this host from the pinned commit."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import llama_cpp
from operations.llama_cpp import build_jobs
from tasks.preflight import Target


@deploy("llama.cpp")
def build(target: Target) -> None:
    """Build the release if this host does not have it, and make it the current one."""
    llama_cpp.installed(
        name=f"Install llama.cpp {target.release.id}",
        release=target.release,
        root=paths.ROOT,
        scratch=paths.SCRATCH,
        user=paths.BUILD_USER,
        jobs=build_jobs(target.machine.cores, target.machine.memory_available_mib, target.settings.build_jobs),
    )
