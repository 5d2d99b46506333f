"""Machines to deploy to: real systemd, sshd, UFW and cron in containers, reached over SSH as a sudo user.

One machine a distribution serves all tests that leave it as they found it; a test that fails in between may make
later ones of the same machine fail too. What is downloaded comes from a hub on this machine, which can misbehave.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sandbox.common import cache_dir
from sandbox.engine import ensure_engine
from sandbox.host import SandboxHost
from sandbox.servers.hub import Hub
from sandbox.source import llama_cpp_repository
from sandbox.tiny_model import TinyModel, write_tiny_model
from tests.container.machine import Machine, Source

IMAGES = tuple(os.environ.get("LOCAL_LLM_TEST_IMAGES", "debian12,debian13").split(","))
OTHER_ANSWER = "Another model speaks now: small, but different."
SSH_SECOND_PORT = 2222
SWAP_FOLDER = "/var/swap"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `distribution(0)` or `(-1)` run there only: what they test differs little, and takes long."""
    others = [
        item
        for item in items
        if (mark := item.get_closest_marker("distribution")) and _image_of(item) not in (None, IMAGES[mark.args[0]])
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _image_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("bare")


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine; without one the tests fail, they are not skipped."""
    ensure_engine()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """A model, and another one with other words that is large enough to be cut off in the middle."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": write_tiny_model(folder / "tiny.gguf"),
        "other": write_tiny_model(folder / "other.gguf", answer=OTHER_ANSWER, pad_mib=24),
    }


@pytest.fixture(scope="session")
def source(models: dict[str, TinyModel]) -> Iterator[Source]:
    """The hub with llama.cpp's source and the models."""
    repository, commit = llama_cpp_repository(cache_dir())
    with Hub(repository, {name: model.path for name, model in models.items()}) as hub:
        yield Source(hub, commit, models)


@pytest.fixture(autouse=True)
def no_faults(source: Source) -> Iterator[None]:
    """Every test starts and ends with a hub that does as it should."""
    source.hub.clear()
    yield
    source.hub.clear()


# The tests of one distribution share its machine, so pytest-xdist gives all of them to one worker.
@pytest.fixture(scope="session", params=[pytest.param(image, marks=pytest.mark.xdist_group(image)) for image in IMAGES])
def bare(request: pytest.FixtureRequest, source: Source) -> Iterator[Machine]:
    """A machine as a provider hands it over."""
    with SandboxHost(request.param, extra_ports=[SSH_SECOND_PORT], volumes=[SWAP_FOLDER]) as host:
        yield Machine(host, source)


@pytest.fixture(scope="session")
def deployed(bare: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The same machine after its first deploy, during whose beginning another package manager holds its locks."""
    bare.hold_package_locks(seconds=15)
    bare.first_deploy = bare.deploy()
    assert bare.first_deploy.succeeded, bare.first_deploy.output
    return bare


@pytest.fixture(scope="session")
def broken_commit(source: Source, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A commit of llama.cpp, served by the hub, that does not compile."""
    return source.commit_that_does_not_compile(tmp_path_factory.mktemp("broken"))


def with_settings(machine: Machine, **settings: object) -> Machine:
    """The same machine with other settings for its next deploys."""
    return replace(machine, settings={**machine.settings, **settings})
