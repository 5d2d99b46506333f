"""A deployed machine with a real OpenClaw on it, installed for every user and used by one.

A deploy compiles llama.cpp: 10 minutes where the compiler's cache is empty, 2 where it is not. LOCAL_LLM_TEST_MACHINE
names a sandbox machine that was deployed already, and is used instead; it is left with OpenClaw on it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from sandbox.common import run
from sandbox.host import SandboxHost
from sandbox.openclaw import PROGRAMS, openclaw_tree
from tests.container.conftest import IMAGES, engine, models, source
from tests.container.machine import Machine, Source
from tests.openclaw.user import FOLDER, NAME, OpenClawUser

__all__ = ["engine", "models", "source"]


@pytest.fixture(scope="session")
def machine(source: Source) -> Iterator[Machine]:
    """A machine that runs the local model and the gateway."""
    tree = openclaw_tree()
    with contextlib.ExitStack() as stack:
        name = os.environ.get("LOCAL_LLM_TEST_MACHINE")
        host = SandboxHost.attach(name) if name else stack.enter_context(SandboxHost(IMAGES[-1]))
        found = Machine(host, source)
        deployed = found.deploy()
        assert deployed.succeeded, deployed.output
        if not found.sh(f"ls {FOLDER} 2>/dev/null", check=False):
            run(["docker", "cp", f"{tree}/.", f"{host.container_id}:{FOLDER}"], timeout_seconds=600)
        # As an installation for all users has it: the wiring is to find both by itself.
        found.sh(
            f"ln -sfn {FOLDER}/{PROGRAMS}/openclaw {FOLDER}/{PROGRAMS}/node /usr/local/bin/\n"
            f"userdel -rf {NAME} 2>/dev/null; useradd --create-home --shell /bin/bash {NAME}"
        )
        yield found


@pytest.fixture(scope="session")
def user(machine: Machine) -> OpenClawUser:
    """The user whose OpenClaw is wired."""
    return OpenClawUser(machine)
