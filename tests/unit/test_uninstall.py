"""Everything that a deploy writes is known to the uninstall: deploy.py itself is run, its operations only noted."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyinfra.context import ctx_host

import operations
from checks.contract import paths
from facts.layout import OwnAccounts, parse_own_accounts
from facts.machine import LoginState, MachineState
from facts.openclaw import InstallationState
from facts.removal import sweep
from operations.files import ManagedFile
from operations.llama_cpp import Release, build_job, fetch_job
from operations.lock import LOCK_FILE
from operations.model import Download, download_job
from settings import Settings
from tasks import hosts, openclaw, preflight, uninstall
from tasks.preflight import Target

ROOT = Path(__file__).parents[2]
SETTINGS = [
    Settings(),
    Settings(
        prometheus=True,
        swap_file_mib=64,
        cloud_url="https://api.example.com/v1",
        cloud_models=("large",),
        alert_webhook_url="https://hooks.example.com/x",
        openclaw_slim=True,
        openclaw_user="claw",
        service_user="llm",
        service_group="llm",
    ),
]
RELEASE = Release("https://example.net/llama.cpp", "0c1e5709" * 5, True, "x86_64 avx2")


class NotedHost:
    """What tasks need of a host besides its operations."""

    name = "vps"

    def get_fact(self, fact: type, **_: object) -> Any:
        return InstallationState("/home/claw", "/usr/bin/openclaw") if fact.__name__ == "Installation" else {}

    def log(self, *_: object) -> None:
        pass

    @contextmanager
    def deploy(self, **_: object) -> Iterator[None]:
        yield


def operations_of_a_deploy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The arguments of every operation that deploy.py calls for these settings."""
    called: list[Mapping[str, Any]] = []

    def noting() -> Callable[..., None]:
        return lambda **arguments: called.append(arguments)

    for info in pkgutil.iter_modules(operations.__path__):
        module = importlib.import_module(f"operations.{info.name}")
        for name in [name for name, value in vars(module).items() if hasattr(value, "_inner")]:
            monkeypatch.setattr(module, name, noting())
    login = LoginState("u", False, True, 22)
    target = Target(settings, login, MachineState(cores=2), RELEASE, ())
    monkeypatch.setattr(hosts, "load_settings", lambda: settings)
    monkeypatch.setattr(hosts, "become_root", lambda: login)
    monkeypatch.setattr(preflight, "inspect", lambda *_: target)
    monkeypatch.setattr(sys.modules["pyinfra.api.deploy"], "pop_global_arguments", lambda *_: ({}, []))
    monkeypatch.setitem(os.environ, "LOCAL_LLM_CLOUD_KEY", "key")
    with ctx_host.use(NotedHost()):
        runpy.run_path(str(ROOT / "deploy.py"))
    return called


def paths_in(value: object) -> Iterator[str]:
    """Every absolute path among an operation's arguments; of a file its own, never those in its content."""
    if isinstance(value, ManagedFile):
        yield value.path
    elif isinstance(value, str):
        if re.fullmatch(r"/[^\s;]+", value):
            yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from paths_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        yield from paths_in([*value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from paths_in(each)


def is_known(path: str, settings: Settings) -> bool:
    """Whether the uninstall takes a path away."""
    units = {f"{uninstall.UNIT_DIRECTORY}/{unit}" for unit in uninstall.units()}
    trees = (*uninstall.TREES, *uninstall.runtime())
    return path in {*uninstall.files(settings), *units, paths.SWAP_FILE} or any(
        f"{path}/".startswith(f"{tree}/") for tree in trees
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=["bare", "everything"])
def test_every_path_of_a_deploy_is_known(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    called = operations_of_a_deploy(settings, monkeypatch)
    # What is another's: OpenClaw's own command and its directory.
    others = {settings.openclaw_command, settings.openclaw_state_directory}
    found = {path for arguments in called for path in paths_in(arguments)} - others
    assert len(found) > 60
    assert {path for path in found if not is_known(path, settings)} == set()
    units = {str(arguments["unit"]) for arguments in called if "unit" in arguments}
    assert len(units) >= 5
    assert units <= set(uninstall.units())


def test_an_unknown_path_would_be_seen() -> None:
    for path in (
        "/etc/sysctl.d/local-llm.conf",
        "/opt/local-llm-2/x",
        "/etc/systemd/system/other.service",
        "/run/lock",
    ):
        assert not is_known(path, Settings())


def test_every_job_is_known() -> None:
    download = Download("https://example.net/m.gguf", "a" * 64, 1000, attempts=3, stall_seconds=5, insecure=False)
    jobs = (fetch_job(RELEASE, "/s", "u"), build_job(RELEASE, "/s", "u", 2), download_job(download, "/m/x.part", "u"))
    assert {f"{job.unit}.service" for job in jobs} == set(uninstall.JOB_UNITS)


def test_timers_and_sockets_stop_before_what_they_start_and_slices_last() -> None:
    kinds = [unit.rpartition(".")[2] for unit in uninstall.units()]
    assert kinds == sorted(kinds, key=["socket", "timer", "service", "slice"].index)
    assert set(kinds) == {"timer", "socket", "service", "slice"}


def test_what_systemd_makes_for_our_units_is_known() -> None:
    assert "/var/lib/private/local-llm-prometheus" in uninstall.state_directories()
    assert {"/run/local-llm", "/run/local-llm-gateway", "/run/local-llm-alerts"} <= set(uninstall.runtime())
    assert LOCK_FILE in uninstall.runtime() or any(LOCK_FILE.startswith(f"{path}/") for path in uninstall.runtime())
    assert "/run" not in uninstall.runtime()
    assert "/run/lock" not in uninstall.runtime()


def test_a_sweep_takes_all_but_what_is_kept_and_follows_no_link(tmp_path: Path) -> None:
    for name in (
        "a/models/x.gguf",
        "a/models/x.gguf.stamp",
        "a/models/incoming/y.part",
        "a/bin/z",
        "a.conf",
        "theirs/f",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "b").symlink_to("nowhere")
    patterns = [f"{tmp_path}/a", f"{tmp_path}/a.*", f"{tmp_path}/b", f"{tmp_path}/none*"]
    kept = [f"{tmp_path}/a/models/*.gguf*"]

    def run(action: str) -> str:
        text = sweep(patterns, kept, action)
        return subprocess.run(["/bin/sh", "-euc", text], check=True, capture_output=True, text=True).stdout

    assert len(run("-print -quit").splitlines()) == 3
    run("-delete")
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert there == {"a", "a/models", "a/models/x.gguf", "a/models/x.gguf.stamp", "theirs", "theirs/f"}
    assert run("-print -quit") == ""


def test_whose_accounts_they_are() -> None:
    there = ["@users", "root", "llm", "local-llm-build", "@groups", "root", "llm", "local-llm-build"]
    # With a record: a group that was there before is not ours.
    found = parse_own_accounts(["@recorded", "u:llm", "g:llm", "u:local-llm-build", "@marked", "llm", *there])
    assert found == OwnAccounts(("llm", "local-llm-build"), ("llm",), ("local-llm-build",))
    # Without one: an account that carries our description, with its group.
    assert parse_own_accounts(["@recorded", "@marked", "llm", *there]) == OwnAccounts(("llm",), ("llm",))
    assert parse_own_accounts(["@recorded", "@marked", *there]) == OwnAccounts()


@pytest.mark.parametrize(
    ("config", "used"),
    [
        ({}, []),
        ({"agents": {"defaults": {"model": "vendor/m", "utilityModel": "vendor/m"}}}, []),
        ({"agents": {"defaults": {"model": "local-llm-router/m"}}}, ["agents.defaults.model"]),
        (
            {"agents": {"defaults": {"model": {"fallbacks": ["local-llm/m"]}}}},
            ["agents.defaults.model"],
        ),
        ({"agents": {"defaults": {"utilityModel": "local-llm/m"}}}, ["agents.defaults.utilityModel"]),
        ({"plugins": {"load": {"paths": ["/opt/local-llm/openclaw/slim"]}}}, ["plugins.load.paths"]),
    ],
)
def test_what_openclaw_still_uses(config: dict[str, Any], used: list[str]) -> None:
    assert openclaw.uses(config) == used
