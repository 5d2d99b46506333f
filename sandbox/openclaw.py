"""A real OpenClaw and the Node.js that it needs, from npm, kept in the sandbox's cache by version."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sandbox.common import SandboxError, cache_dir, run, say

NODE = "24"
OPENCLAW = "2026.9.6"
DONE = ".complete"
INSTALL_SECONDS = 1200


def openclaw_tree() -> Path:
    """The folder whose node_modules holds both; installed once (650 MB, 330 packages).

    Raises SandboxError where there is no npm and none can be installed.
    """
    folder = cache_dir() / f"openclaw-{OPENCLAW}"
    if (folder / DONE).exists():
        return folder
    _ensure_npm()
    say(f"Installing OpenClaw {OPENCLAW} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _npm(folder, f"node@{NODE}")
    # OpenClaw's own installation steps run on the Node.js that will run it.
    _npm(folder, f"openclaw@{OPENCLAW}", first_in_path=folder / "node_modules" / "node" / "bin")
    (folder / DONE).touch()
    return folder


def _npm(folder: Path, package: str, first_in_path: Path | None = None) -> None:
    path = os.environ["PATH"] if first_in_path is None else f"{first_in_path}{os.pathsep}{os.environ['PATH']}"
    run(
        ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--save-exact", package],
        env={"PATH": path},
        timeout_seconds=INSTALL_SECONDS,
    )


def _ensure_npm() -> None:
    if shutil.which("npm"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SandboxError("npm is not installed. Install it (Debian, Ubuntu: apt-get install npm) and run this again.")
    say("Installing npm by apt")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=environment, timeout_seconds=INSTALL_SECONDS)
    run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", "npm"],
        env=environment,
        timeout_seconds=INSTALL_SECONDS,
    )
