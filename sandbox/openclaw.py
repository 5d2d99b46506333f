"""A real OpenClaw and the Node.js that it needs, from npm, as sandbox/npm locks them; kept in the sandbox's cache.

To lock another version, write it into package.json and run there:
`npm install --package-lock-only --omit-lockfile-registry-resolved`
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from sandbox.common import SandboxError, cache_dir, run, say
from sandbox.engine import install_packages, is_root_on_debian

LOCKED = Path(__file__).with_name("npm")
OPENCLAW: str = json.loads((LOCKED / "package.json").read_text())["dependencies"]["openclaw"]
PROGRAMS = Path("node_modules/.bin")
"""Where `openclaw` and `node` lie in the tree."""
DONE = ".complete"
INSTALL_SECONDS = 1200


def openclaw_tree() -> Path:
    """The folder with both; installed once (830 MB, 370 packages), each package's hash compared with the locked one.

    Raises SandboxError where there is no npm and none can be installed.
    """
    files = [LOCKED / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = cache_dir() / f"openclaw-{OPENCLAW}-{digest[:12]}"
    if (folder / DONE).exists():
        return folder
    _ensure_npm()
    say(f"Installing OpenClaw {OPENCLAW} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    # OpenClaw's own installation steps run on the Node.js that will run it, which is there before npm links it.
    node = [str(folder / "node_modules" / f"node-linux-{machine}" / "bin") for machine in ("x64", "arm64")]
    run(
        ["npm", "ci", "--prefix", str(folder), "--no-audit", "--no-fund"],
        env={"PATH": os.pathsep.join([*node, os.environ["PATH"]])},
        timeout_seconds=INSTALL_SECONDS,
    )
    (folder / DONE).touch()
    return folder


def _ensure_npm() -> None:
    if shutil.which("npm"):
        return
    if not is_root_on_debian():
        raise SandboxError("npm is not installed. Install it (Debian, Ubuntu: apt-get install npm) and run this again.")
    install_packages(["npm"])
