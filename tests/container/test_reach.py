"""From inside each unit only the sockets that it needs can be connected to, and nothing is shared with others.

What is allowed is listed here, for each unit; a unit that is not listed fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from checks.contract import paths
from operations.jobs import Job
from operations.llama_cpp import Release, build_job, fetch_job
from operations.model import Download, download_job
from sandbox.servers.answers import CLOUD_MODELS
from sandbox.servers.cloud import Cloud
from tests import reach
from tests.container.clouds import deployed_with
from tests.container.machine import Machine, eventually

PLANTED = (
    "/run/test.sock",
    "/run/lock/test.sock",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/user/test.sock",
    "/dev/shm/test.sock",
    "/tmp/test.sock",
    "/var/tmp/test.sock",
    "/var/lib/test.sock",
    "@test",
)
"""Anybody may connect to these."""

WEBHOOK_UNIT, COMMAND_UNIT = paths.ALERT_UNITS["webhook"], paths.ALERT_UNITS["command"]
GATEWAY = {f"{paths.GATEWAY_RUNTIME}/local.sock", paths.SOCKET, "/run/systemd/notify"}
ALLOWED: dict[str, set[str]] = {
    paths.SERVICE_UNIT: {paths.OWN_SOCKET},
    paths.GATEWAY_UNIT: GATEWAY,
    paths.DRILL_UNIT: {paths.GATEWAY_ADMIN_SOCKET, paths.GATEWAY_API_SOCKET},
    WEBHOOK_UNIT: set(),
}
READS = {
    paths.SERVICE_UNIT: (),
    paths.GATEWAY_UNIT: (),
    paths.DRILL_UNIT: (paths.CONFIGURATION, paths.STATE, paths.ROOT_RUNTIME),
    WEBHOOK_UNIT: (paths.CONFIGURATION, paths.ALERT_OUTBOX, paths.ALERT_RUNTIME),
}
"""Where files lie that the unit may read and others may not."""
IN_THE_HOSTS_NETWORK = (paths.DRILL_UNIT,)
"""Where abstract sockets can be reached, since these belong to a network. With a cloud the gateway is there, too."""

RELEASE = Release("https://example.net/llama.cpp", "0c1e5709" * 5, True, "x86_64 avx2")
DOWNLOAD = Download("https://example.net/m.gguf", "a" * 64, 1000, attempts=3, stall_seconds=5, insecure=False)
JOBS = (
    fetch_job(RELEASE, paths.SCRATCH, paths.BUILD_USER),
    build_job(RELEASE, paths.SCRATCH, paths.BUILD_USER, 1),
    download_job(DOWNLOAD, f"{paths.MODELS}/incoming/test.part", paths.BUILD_USER),
)


@pytest.fixture(scope="module")
def planted(deployed: Machine) -> Iterator[frozenset[str]]:
    with reach.planted(deployed, *PLANTED) as made:
        yield made


def of_paths(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.startswith("/")}


def test_outside_of_a_sandbox_everything_is_reached(deployed: Machine, planted: frozenset[str]) -> None:
    """Or the probe would prove nothing."""
    for found in (reach.of_host(deployed), reach.of_unit(deployed, COMMAND_UNIT)):
        private = {name for name in planted if name.startswith(("/tmp/", "/var/tmp/"))}
        assert planted - private <= found.sockets
        assert {"/run/systemd/private", "/run/systemd/journal/socket"} <= found.sockets
        assert {"/run", "/run/lock", "/dev/shm"} <= found.shared
        assert {*reach.SECRETS, "/etc/shadow"} <= found.secrets


def test_every_unit_is_listed(deployed: Machine, planted: frozenset[str]) -> None:
    units = deployed.sh("cd /etc/systemd/system; ls local-llm*.service").splitlines()
    assert {*units} == {*ALLOWED, COMMAND_UNIT}


@pytest.mark.parametrize("unit", ALLOWED)
def test_a_unit_reaches_what_it_needs_and_shares_nothing(deployed: Machine, planted: frozenset[str], unit: str) -> None:
    found = reach.of_unit(deployed, unit)
    assert of_paths(found.sockets) == ALLOWED[unit]
    assert unit in IN_THE_HOSTS_NETWORK or of_paths(found.sockets) == found.sockets
    assert found.shared == set()
    assert found.secrets_but(*READS[unit]) == []


@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job.unit))
def test_a_job_reaches_no_socket_and_shares_nothing(deployed: Machine, planted: frozenset[str], job: Job) -> None:
    found = reach.of_job(deployed, job)
    assert found.sockets == found.shared == frozenset()
    assert found.secrets_but(paths.SCRATCH) == []


@pytest.mark.parametrize("unit", [paths.SERVICE_UNIT, paths.GATEWAY_UNIT])
def test_the_check_on_the_host_sees_a_hole_in_the_sandbox(deployed: Machine, unit: str) -> None:
    def shares() -> tuple[str, str]:
        results = json.loads(deployed.sh("local-llm test --json", check=False))["results"]
        [found] = [result for result in results if result["name"] == f"{unit} shares"]
        return found["status"], found["value"]

    assert shares() == ("PASS", "nothing else")
    drop_in = f"/run/systemd/system/{unit}.d"
    holes = {"BindPaths=/run/dbus": "/run/dbus", "TemporaryFileSystem=": "/run /run/lock /dev/shm"}
    try:
        for hole, seen in holes.items():
            deployed.sh(f"mkdir -p {drop_in}; printf '[Service]\\n{hole}\\n' > {drop_in}/test.conf")
            deployed.sh(f"systemctl daemon-reload; systemctl restart {unit}")
            assert shares() == ("FAIL", seen)
    finally:
        deployed.sh(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart {unit}")
        eventually(deployed.answers, 30, "an answer")


def test_with_a_cloud_the_gateway_knows_names_by_the_hosts_files_alone(
    deployed: Machine, planted: frozenset[str]
) -> None:
    """As where /etc/resolv.conf leads to a program's directory, in which its sockets lie as well."""
    stub = "/run/systemd/resolve/stub-resolv.conf"
    with Cloud(prefix="/api/v1") as cloud, deployed_with(deployed, cloud) as clouded:
        found = reach.of_unit(clouded, paths.GATEWAY_UNIT)
        assert of_paths(found.sockets) == {*GATEWAY, f"{paths.GATEWAY_RUNTIME}/cloud.sock"}
        assert found.shared == set()
        # The container's own is a mount, which no link can take the place of.
        clouded.sh(f"cp /etc/resolv.conf {stub}; systemctl restart {paths.GATEWAY_UNIT}")
        pid = clouded.main_pid(paths.GATEWAY_UNIT)
        assert clouded.sh(f"ls /proc/{pid}/root/run/systemd/resolve") == "stub-resolv.conf"
        assert "nameserver" in clouded.sh(f"cat /proc/{pid}/root{stub}; rm {stub}")
        body = json.dumps({"model": CLOUD_MODELS[0], "messages": [{"role": "user", "content": "hello"}]})
        headers = "-H 'Content-Type: application/json' -H 'X-LLM-Route: cloud'"
        ask = f"http://127.0.0.1:8765/v1/chat/completions {headers} -d '{body}'"
        eventually(lambda: clouded.http(ask)[1].get("x-llm-backend") == "cloud", 20, "an answer of the cloud")
