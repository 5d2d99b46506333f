"""What the sandbox does to the machine it runs on: as little as possible. Also its state and its image tags."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import engine, image
from sandbox.common import SandboxError
from sandbox.state import State, connection_data, state_settings
from settings import Settings


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this must not be called here")


def no_problem() -> str | None:
    return None


def a_problem() -> str | None:
    return "permission denied"


def test_an_engine_that_answers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_problem", no_problem)
    monkeypatch.setattr(engine, "install_packages", refuse)
    monkeypatch.setattr(engine, "start_engine", refuse)
    engine.ensure_engine()


def test_without_root_nothing_is_installed_and_the_error_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "engine_problem", a_problem)
    monkeypatch.setattr(engine, "is_root_on_debian", lambda: False)
    monkeypatch.setattr(engine, "install_packages", refuse)
    monkeypatch.setattr(engine, "start_engine", refuse)
    with pytest.raises(SandboxError, match=r"permission denied.*Install and start it"):
        engine.ensure_engine()


@pytest.mark.parametrize(
    ("missing", "installs"), [({"dockerd"}, True), ({"docker"}, True), (set(), False)], ids=["engine", "client", "none"]
)
def test_root_on_debian_installs_what_lacks_and_starts_it(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], installs: bool
) -> None:
    def which(program: str) -> str | None:
        return None if program in missing else f"/usr/bin/{program}"

    done: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda *_: done.append(what)

    monkeypatch.setattr(engine, "engine_problem", a_problem)
    monkeypatch.setattr(engine, "is_root_on_debian", lambda: True)
    monkeypatch.setattr(engine.shutil, "which", which)
    monkeypatch.setattr(engine, "docker_packages", lambda: ["docker.io"])
    monkeypatch.setattr(engine, "install_packages", note("install"))
    monkeypatch.setattr(engine, "start_engine", note("start"))
    engine.ensure_engine()
    assert done == (["install", "start"] if installs else ["start"])


def test_mtu_is_that_of_the_default_route(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    routes.write_text("Iface Destination Gateway\neth1 0000A8C0 00000000\neth0 00000000 0100A8C0\n")
    for interface, mtu in (("eth0", "1400"), ("eth1", "9000")):
        (tmp_path / interface).mkdir()
        (tmp_path / interface / "mtu").write_text(f"{mtu}\n")
    assert engine.uplink_mtu(routes, tmp_path) == 1400


def test_mtu_without_a_default_route(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    routes.write_text("Iface Destination Gateway\n")
    assert engine.uplink_mtu(routes, tmp_path) == 1500


def test_image_tag_follows_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image, "registry_problem", lambda _: "no registry")
    debian = image.DISTRIBUTIONS["debian12"]
    before = image.image_tag(debian)
    assert image.image_tag(debian) == before
    assert image.image_tag(replace(debian, suite="trixie")) != before
    script = tmp_path / "provision.sh"
    script.write_text("true\n")
    monkeypatch.setattr(image, "PROVISION_SCRIPT", script)
    assert image.image_tag(debian) != before


def test_images_come_from_a_registry_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "registry_problem", lambda _: None)
    assert image.root_tag(image.DISTRIBUTIONS["debian12"]) == "debian:12"
    assert image.root_tag(image.DISTRIBUTIONS["ubuntu24.04"]) == "ubuntu:24.04"


def test_unknown_image_names_the_known_ones() -> None:
    with pytest.raises(SandboxError, match=r"debian12, debian13, ubuntu24\.04"):
        image.base_image("debian11")


def a_state() -> State:
    return State(
        machine="local-llm-sandbox-demo",
        image="debian12",
        ssh_port=20022,
        ssh_user="deployer",
        ssh_key="/k",
        known_hosts="/h",
        hub_pid=1,
        hub_bind="127.0.0.1",
        hub_port=8000,
        git_url="http://127.0.0.1:8000/git/llama.cpp",
        commit="0" * 40,
        model_url="http://127.0.0.1:8000/resolve/tiny.gguf",
        model_sha256="0" * 64,
        model_size_bytes=1000,
    )


def test_state_survives_saving(tmp_path: Path) -> None:
    a_state().save(tmp_path / "folder" / "state.json")
    assert State.load(tmp_path / "folder" / "state.json") == a_state()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_unreadable_state_says_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(SandboxError, match="make demo-down"):
        State.load(path)


def test_missing_state_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="make demo"):
        State.load(tmp_path / "state.json")


def test_the_overrides_are_valid_settings() -> None:
    overrides = state_settings(a_state())
    settings = Settings.model_validate(overrides)
    assert settings.selected_model.url == overrides["model_url"]


def test_host_keys_must_match() -> None:
    data = connection_data(ssh_port=1, ssh_user="u", ssh_key="/k", known_hosts="/h")
    assert data["ssh_strict_host_key_checking"] == "yes"
    assert data["ssh_known_hosts_file"] == "/h"
