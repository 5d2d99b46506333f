"""HAProxy's admin socket, and what its checks of the cloud mean in words."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import cloud, gateway, runner
from checks.contract.config import Config
from checks.gateway import CLOUD as CLOUD_SIDE
from checks.gateway import LOCAL, GatewayError, Server
from checks.result import Status
from tests.unit.checks_support import CLOUD, Admin, FakeHost, make_config, results, serve_admin


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with serve_admin(tmp_path) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path, cloud=CLOUD)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def state(status: str, check: str = "", code: str = "", detail: str = "") -> Server:
    return Server(status, check, code, detail, 0)


def test_a_side_is_read(admin: Admin, config: Config, host: FakeHost) -> None:
    admin.servers["llm/llama"] = {"status": "DOWN", "check_status": "* L7TOUT", "last_chk": '"a, \x1bb"', "qcur": "3"}
    assert gateway.server(config, host, LOCAL) == Server("DOWN", "L7TOUT", "", "a, b", 3)
    assert gateway.server(config, host, CLOUD_SIDE).up


def test_a_side_goes_out_and_comes_back(admin: Admin, config: Config, host: FakeHost) -> None:
    gateway.set_state(config, host, CLOUD_SIDE, "maint")
    assert gateway.server(config, host, CLOUD_SIDE).by_hand
    assert gateway.server(config, host, LOCAL).up
    gateway.set_state(config, host, CLOUD_SIDE, "ready")
    assert gateway.server(config, host, CLOUD_SIDE).up
    assert "set server cloud/cloud state maint" in admin.commands


def test_a_frontend_of_the_same_name_is_not_the_side(admin: Admin, config: Config, host: FakeHost) -> None:
    del admin.servers["cloud/cloud"]
    with pytest.raises(GatewayError, match="no server cloud/cloud"):
        gateway.server(config, host, CLOUD_SIDE)
    with pytest.raises(GatewayError, match="No such backend"):
        gateway.set_state(config, host, CLOUD_SIDE, "maint")


def test_nobody_answers(config: Config, host: FakeHost) -> None:
    with pytest.raises(GatewayError, match="systemctl status local-llm-gateway"):
        gateway.server(config, host, LOCAL)


def test_something_else_answers(admin: Admin, config: Config, host: FakeHost) -> None:
    admin.broken = True
    with pytest.raises(GatewayError, match="no server"):
        gateway.server(config, host, LOCAL)


def test_without_root_the_check_says_so(
    config: Config, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", closed)
    host.root_user = False
    (found,), _ = runner.run(config, host, {"api": [cloud.reachable]})
    assert found.status is Status.WARN
    assert "sudo local-llm test" in found.remedy


def test_without_a_cloud_there_is_nothing_to_check(tmp_path: Path, host: FakeHost) -> None:
    assert list(cloud.reachable(make_config(tmp_path), host)) == []


@pytest.mark.parametrize(
    ("server", "status", "text", "remedy"),
    [
        (state("UP", "L7OK", "200"), Status.PASS, "up", ""),
        (state("UP 1/2", "L7STS", "503"), Status.PASS, "up", ""),
        (state("DOWN", "L4CON", "", "Connection refused"), Status.WARN, "no connection (Connection refused)", "curl"),
        (
            state("DOWN", "L4CON", "", "SSL handshake failure (Connection refused)"),
            Status.WARN,
            "down: no connection (Connection refused)",
            "curl",
        ),
        (state("DOWN", "L4TOUT"), Status.WARN, "in time", "curl"),
        (state("DOWN", "L6TOUT"), Status.WARN, "TLS handshake takes", "curl"),
        (state("DOWN", "L7TOUT"), Status.WARN, "no answer in time", "curl"),
        (state("DOWN 1/2", "L7RSP"), Status.WARN, "no HTTP", "curl"),
        (state("DOWN", "HANA"), Status.WARN, "one after another", "curl"),
        (state("DOWN", "SOCKERR", "", "General socket error"), Status.WARN, "SOCKERR (General socket error)", "curl"),
        (state("DOWN", "L7STS", "401", "Unauthorized"), Status.FAIL, "refuses the key: HTTP status 401", "deploy"),
        (state("DOWN", "L7STS", "403", "Forbidden"), Status.FAIL, "refuses the key", "cloud_key_file"),
        (state("DOWN", "L7STS", "402"), Status.WARN, "wants to be paid", "curl"),
        (state("DOWN", "L7STS", "429"), Status.WARN, "limit of requests", "curl"),
        (state("DOWN", "L7STS", "503", "Service Unavailable"), Status.WARN, "it fails: HTTP status 503", "curl"),
        (state("MAINT (resolution)"), Status.WARN, "api.example.com does not resolve", "getent hosts api.example.com"),
        (state("MAINT"), Status.WARN, "by hand", "systemctl reload local-llm-gateway.service"),
        (state("DRAIN"), Status.WARN, "by hand", "systemctl reload"),
    ],
)
def test_the_cloud_in_words(config: Config, server: Server, status: Status, text: str, remedy: str) -> None:
    assert config.cloud is not None
    found = cloud.diagnose(config, config.cloud, server)
    assert found.status is status
    assert text in found.text
    assert remedy in found.remedy
    assert bool(found.remedy) is (status is not Status.PASS)


def test_the_check_reads_the_gateway(admin: Admin, config: Config, host: FakeHost) -> None:
    assert results(cloud.reachable, config, host)["cloud"].status is Status.PASS
    admin.servers["cloud/cloud"] = {"status": "DOWN", "check_status": "L7STS", "check_code": "401"}
    assert results(cloud.reachable, config, host)["cloud"].status is Status.FAIL


HANDSHAKE = state("DOWN", "L6RSP", "", "SSL handshake failure")
NAME = state("DOWN", "L6RSP", "", "Server presented an SSL certificate different from the expected one")


def test_a_handshake_that_breaks_without_a_certificate(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    config = make_config(tmp_path, cloud={**CLOUD, "url": f"https://127.0.0.1:{port}/v1"})
    assert config.cloud is not None
    assert cloud.diagnose(config, config.cloud, HANDSHAKE).status is Status.WARN
    named = cloud.diagnose(config, config.cloud, NAME)
    assert (named.status, "different from the expected" in named.text) == (Status.FAIL, True)


def test_a_certificate_that_is_not_trusted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def distrust(*_: object, **__: object) -> None:
        error = ssl.SSLCertVerificationError("certificate verify failed")
        error.verify_message = "certificate has expired"
        raise error

    monkeypatch.setattr(socket, "create_connection", distrust)
    assert config.cloud is not None
    found = cloud.diagnose(config, config.cloud, HANDSHAKE)
    assert found.status is Status.FAIL
    assert found.text == "down: its certificate is not trusted: certificate has expired"
    assert "ca-certificates" in found.remedy
