"""A host that cannot take the deploy is told everything at once and stays as it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from sandbox.host import SandboxHost
from tests.container.conftest import IMAGES, with_settings
from tests.container.machine import ROOT, Machine, Source


@pytest.fixture(scope="module")
def untouched(source: Source) -> Iterator[Machine]:
    """A machine that no deploy ever succeeds on, so that what a refused one left would show."""
    with SandboxHost(IMAGES[0]) as host:
        yield Machine(host, source)


def is_untouched(machine: Machine) -> bool:
    traces = "/opt/local-llm /etc/local-llm /var/lib/local-llm /usr/local/bin/local-llm"
    return machine.sh(f"ls -d {traces} 2>/dev/null; getent passwd local-llm", check=False) == ""


def test_all_findings_come_in_one_table_before_any_change(untouched: Machine) -> None:
    untouched.sh("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 8765")
    run = with_settings(untouched, memory_max_mib=64, memory_goal_mib=64).deploy()
    untouched.sh("systemctl stop squatter")
    assert run.status == 1
    assert "port 8765" in run.output
    assert "memory limit" in run.output
    assert "Nothing was changed on this host." in run.output
    assert is_untouched(untouched)


def test_wrong_settings_are_said_all_at_once_before_any_change(untouched: Machine) -> None:
    run = with_settings(untouched, context_tokens=1, paralel=2, api_port=22).deploy()
    assert run.status == 1
    said = [line for line in run.output.splitlines() if line.startswith(f"{IMAGES[0]}: ")]
    assert said == [
        f"{IMAGES[0]}: context_tokens = 1: allowed: a whole number from 512 to 131072 tokens",
        f"{IMAGES[0]}: api_port = 22: allowed: a whole number from 1024 to 65535",
        f"{IMAGES[0]}: paralel = 2: no such setting; did you mean parallel?",
    ]
    assert "Traceback" not in run.output
    assert is_untouched(untouched)


def test_a_cloud_without_a_key_is_said_before_any_change(untouched: Machine) -> None:
    cloud = {"cloud_url": "https://api.example.com/v1", "cloud_models": ["large"]}
    run = with_settings(untouched, **cloud).deploy()
    assert run.status == 1
    assert "LOCAL_LLM_CLOUD_KEY" in run.output
    run = with_settings(untouched, **cloud, cloud_key_file="/no/such/file").deploy()
    assert run.status == 1
    assert "cloud_key_file = '/no/such/file': cannot be read: No such file or directory" in run.output
    assert is_untouched(untouched)


def test_checks_of_a_bare_host_say_how_to_deploy(untouched: Machine) -> None:
    run = untouched.deploy("checks.py")
    assert run.status == 1
    assert "pyinfra inventory.py deploy.py" in run.output


def test_an_empty_inventory_says_how_to_add_a_host() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", "inventory.py", "deploy.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "No host is configured" in done.stderr
    assert "Traceback" not in done.stderr
