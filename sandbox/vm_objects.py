"""What the deploy's own build leaves in the compiler's cache, made in a container of the same distribution.

An emulated CPU would compile llama.cpp for hours; with these objects it takes minutes.
Job, compiler and flags are the deploy's own, so a deploy that changes any of them compiles again.
"""

import os
import shlex
from dataclasses import replace
from pathlib import Path

from checks.contract import paths
from operations.jobs import Job
from operations.llama_cpp import Release, build_job, fetch_job
from sandbox.common import LABEL, cache_dir, only_one, recipe_digest, say, stream
from sandbox.image import base_image
from tasks.packages import BUILD

REPOSITORY = "/llama.cpp.git"
SAFE_REPOSITORY = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
"""It belongs to whoever runs the tests."""


def compiled_objects(release: Release, repository: Path, image: str) -> Path:
    """An archive of the directory that `release` is built in, which holds the compiler's cache alone.

    `repository` is a bare one with the release's commit, `image` a name known to `base_image`. Whoever unpacks it may
    write it: the building user does not exist yet.
    """
    tag = base_image(image)
    script = _script(release)
    made = cache_dir() / f"objects-{recipe_digest(tag, script)}.tar"
    with only_one("objects"):
        if not made.exists():
            say("  Compiling llama.cpp for the virtual machine outside of it: some ten minutes, needed once.")
            _make(tag, script, repository, made)
    return made


def _make(tag: str, script: str, repository: Path, made: Path) -> None:
    partial = made.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    mounts = ["-v", f"{repository}:{REPOSITORY}:ro", "-v", f"{made.parent}:/out"]
    ending = f"cp /objects.tar /out/{partial.name}; chown {os.getuid()}:{os.getgid()} /out/{partial.name}"
    stream(
        ["docker", "run", "--rm", "--init", "--interactive", "--label", f"{LABEL}=objects", *mounts, tag, "sh", "-eu"],
        cache_dir() / "objects.log",
        input_text=f"{script}\n{ending}\n",
    )
    partial.replace(made)


def _script(release: Release) -> str:
    here = replace(release, repository=f"file://{REPOSITORY}")
    jobs = os.cpu_count() or 1
    return f"""
export DEBIAN_FRONTEND=noninteractive
# As systemd does for the job: the locale belongs to the key of an object.
set -a; . /etc/default/locale; set +a
apt-get update -q
apt-get install -q -y --no-install-recommends {shlex.join(BUILD)}
useradd --system {paths.BUILD_USER}
mkdir -p {paths.SCRATCH}
{_command(fetch_job(here, paths.SCRATCH, paths.BUILD_USER))}
{_command(build_job(here, paths.SCRATCH, paths.BUILD_USER, jobs))}
cd {paths.SCRATCH}
rm -rf source build
chmod -R a+rwX .
tar -cf /objects.tar .
"""


def _command(job: Job) -> str:
    """A job's script with its environment, without systemd's sandbox, and what root prepares for it."""
    environment = {"HOME": "/root", **job.environment, **SAFE_REPOSITORY}
    words = ["env", *(f"{name}={value}" for name, value in environment.items()), "/bin/sh", "-euc", job.script.strip()]
    return f"(\n{job.prepare.strip()}\n)\n{shlex.join(words)}"
