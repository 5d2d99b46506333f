"""Each hole that the security checks name is seen when it is there."""

import socket as sockets
from pathlib import Path

import pytest

from checks import security
from checks.contract.config import Config
from checks.host import Command
from checks.result import Status
from tests.unit.checks_support import GATEWAY, PID, SERVICE, FakeHost, make_config, results, show, statuses
from tests.unit.test_checks_parsing import UFW

HEADER = "  sl  local_address rem_address   st …\n"
MOUNTS = "1 0 8:1 / / rw\n2 1 0:{run} / /run rw\n3 1 0:{shm} / /dev/shm rw\n4 1 0:{ipc} / /dev/mqueue rw\n"
OWN = MOUNTS.format(run=71, shm=72, ipc=73) + "5 1 8:1 /tmp/a/tmp /tmp rw\n6 1 8:1 /var/tmp/a/tmp /var/tmp rw\n"
EXPOSURE = "→ Overall exposure level for {}: {} SAFE 😀\n"


def row(address: str, port: int, inode: int = 1, state: str = "0A") -> str:
    return f"   0: {address}:{port:04X} 00000000:0000 {state} 0:0 0:0 0 0 0 {inode} 1 0\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.put_units(show(SERVICE), show(GATEWAY))
    host.put("/proc/self/net/tcp", HEADER + row("0100007F", 8765) + row("0100007F", 8766) + row("00000000", 22))
    host.put(f"/proc/{PID}/net/tcp", HEADER)
    host.put(f"/proc/{PID}/net/tcp6", HEADER)
    host.put(f"/proc/{PID}/net/dev", "Inter-|   Receive\n face |bytes\n    lo:       0       0\n")
    host.put_link(f"/proc/{PID}/fd/3", "socket:[555]")
    host.put_link(f"/proc/{PID}/fd/4", "/dev/null")
    host.put_link(f"/proc/{PID}/ns/net", "net:[2]")
    host.put_link("/proc/self/ns/net", "net:[1]")
    host.put("/proc/1/mountinfo", MOUNTS.format(run=61, shm=62, ipc=63) + "7 2 0:64 / /run/lock rw\n")
    host.put(f"/proc/{PID}/mountinfo", OWN + "8 2 0:61 /systemd/propagate/x /run/systemd/incoming rw\n")
    host.commands["ufw status verbose"] = Command(0, UFW, "")
    host.commands[f"systemd-analyze security --no-pager {SERVICE}"] = Command(0, EXPOSURE.format(SERVICE, 0.3), "")
    host.commands[f"systemd-analyze security --no-pager {GATEWAY}"] = Command(0, EXPOSURE.format(GATEWAY, 1.5), "")
    host.put("/etc/local-llm/haproxy.cfg", "x")
    return host


def test_as_deployed(config: Config, host: FakeHost) -> None:
    checks = (
        security.listeners,
        security.service_network,
        security.shared_places,
        security.firewall,
        security.exposure,
        security.files,
    )
    found = [result for check in checks for result in check(config, host)]
    assert {result.status for result in found} == {Status.PASS}
    assert len(found) == 12


@pytest.mark.parametrize("address", ["00000000", "0100000A"])
def test_a_port_open_to_others(config: Config, host: FakeHost, address: str) -> None:
    host.put("/proc/self/net/tcp", HEADER + row("0100007F", 8765) + row(address, 8765) + row("0100007F", 8766))
    found = results(security.listeners, config, host)
    assert found["port 8765"].status is Status.FAIL
    assert "systemctl stop local-llm-gateway.socket local-llm-gateway.service" in found["port 8765"].remedy
    assert found["port 8766"].status is Status.PASS


def test_a_port_open_over_ipv6_alone(config: Config, host: FakeHost) -> None:
    host.put("/proc/self/net/tcp6", HEADER + row("0" * 32, 8765))
    assert statuses(security.listeners, config, host)["port 8765"] is Status.FAIL


def test_nothing_listens(config: Config, host: FakeHost) -> None:
    host.put("/proc/self/net/tcp", HEADER + row("0100007F", 8765, state="01"))
    assert results(security.listeners, config, host)["port 8765"].value == "nothing listens"


def test_llama_server_on_tcp(config: Config, host: FakeHost) -> None:
    host.put(f"/proc/{PID}/net/tcp", HEADER + row("0100007F", 8080, inode=555))
    found = results(security.service_network, config, host)["TCP ports of the service"]
    assert (found.status, found.value) == (Status.FAIL, "127.0.0.1:8080")


def test_the_ports_of_others_are_not_its_own(config: Config, host: FakeHost) -> None:
    host.put(f"/proc/{PID}/net/tcp", HEADER + row("00000000", 22, inode=77))
    assert statuses(security.service_network, config, host)["TCP ports of the service"] is Status.PASS


def test_the_network_of_the_host(config: Config, host: FakeHost) -> None:
    host.put_link(f"/proc/{PID}/ns/net", "net:[1]")
    assert statuses(security.service_network, config, host)["network of the service"] is Status.FAIL


def test_a_way_out_of_the_private_network(config: Config, host: FakeHost) -> None:
    host.put(f"/proc/{PID}/net/dev", "a\nb\n    lo: 0\n  eth0: 0\n")
    assert statuses(security.service_network, config, host)["network of the service"] is Status.FAIL


@pytest.mark.parametrize(
    ("mounts", "shared"),
    [
        ("9 1 0:61 / /run rw", "/run"),
        ("9 2 0:64 / /run/lock rw", "/run/lock"),
        ("9 2 0:61 /dbus /run/dbus rw", "/run/dbus"),
        ("9 1 0:62 / /dev/shm rw", "/dev/shm"),
        ("9 1 0:63 / /dev/mqueue rw", "/dev/mqueue"),
        ("9 1 8:1 /tmp /tmp rw", "/tmp"),
        ("9 1 8:1 / / rw\n9 1 8:1 /var/tmp /var/tmp rw", "/var/tmp"),
        ("9 2 0:61 /local-llm /run/local-llm rw", "nothing else"),
        ("9 2 0:61 /systemd/notify /run/systemd/notify rw", "/run/systemd/notify"),
    ],
)
def test_a_place_that_a_unit_shares(config: Config, host: FakeHost, mounts: str, shared: str) -> None:
    host.put(f"/proc/{PID}/mountinfo", OWN + mounts + "\n")
    found = results(security.shared_places, config, host)[f"{SERVICE} shares"]
    assert (found.status is Status.PASS, found.value) == (shared == "nothing else", shared)


def test_a_unit_as_it_would_be_without_a_sandbox(config: Config, host: FakeHost) -> None:
    host.put(f"/proc/{PID}/mountinfo", host.read("/proc/1/mountinfo"))
    found = results(security.shared_places, config, host)[f"{GATEWAY} shares"]
    assert found.value == "/run /run/lock /dev/shm /dev/mqueue /tmp /var/tmp"


@pytest.mark.parametrize(
    "text",
    [
        "Status: inactive\n",
        UFW.replace("Status: active", "Status: inactive"),
        UFW.replace("deny (incoming)", "allow (incoming)"),
        "",
        "Status: active\n",
    ],
)
def test_an_open_firewall(config: Config, host: FakeHost, text: str) -> None:
    host.commands["ufw status verbose"] = Command(0, text, "")
    assert statuses(security.firewall, config, host)["firewall"] is Status.FAIL


def test_a_port_without_its_deny(config: Config, host: FakeHost) -> None:
    host.commands["ufw status verbose"] = Command(0, UFW.replace("8766/tcp", "9999/tcp"), "")
    found = statuses(security.firewall, config, host)
    assert found == {
        "firewall": Status.PASS,
        "firewall, port 8765": Status.PASS,
        "firewall, port 8766": Status.FAIL,
    }


def test_a_firewall_that_is_not_ours(tmp_path: Path, host: FakeHost) -> None:
    config = make_config(tmp_path, firewall=False)
    host.commands.clear()
    assert results(security.firewall, config, host)["firewall"].value == "not managed"


def test_a_weaker_sandbox(config: Config, host: FakeHost) -> None:
    host.commands[f"systemd-analyze security --no-pager {SERVICE}"] = Command(0, EXPOSURE.format(SERVICE, 0.4), "")
    found = statuses(security.exposure, config, host)
    assert found == {f"{SERVICE} exposure": Status.FAIL, f"{GATEWAY} exposure": Status.PASS}


def test_a_unit_that_cannot_be_rated(config: Config, host: FakeHost) -> None:
    host.commands[f"systemd-analyze security --no-pager {SERVICE}"] = Command(1, "", "Unit not found.")
    with pytest.raises(OSError, match=r"does not rate local-llm\.service: Unit not found"):
        list(security.exposure(config, host))


def test_a_file_that_others_may_write(config: Config, host: FakeHost) -> None:
    host.put("/etc/local-llm/haproxy.cfg", "x", mode=0o666)
    found = results(security.files, config, host)["/etc/local-llm/haproxy.cfg"]
    assert (found.status, found.value, found.limit) == (Status.FAIL, "0666 root:root", "0644 root:root")
    assert "chmod 0644" in found.remedy


@pytest.mark.parametrize("owner", [("nobody", "root"), ("root", "users")])
def test_a_file_of_another_owner(config: Config, host: FakeHost, owner: tuple[str, str]) -> None:
    host.owners["/etc/local-llm/haproxy.cfg"] = owner
    assert set(statuses(security.files, config, host).values()) == {Status.FAIL}


def test_a_missing_file(config: Config, host: FakeHost) -> None:
    host.path("/etc/local-llm/haproxy.cfg").unlink()
    assert results(security.files, config, host)["/etc/local-llm/haproxy.cfg"].value == "missing"


def make_socket(host: FakeHost, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.path("/run/local-llm-sockets/llama.sock")
    path.parent.mkdir(mode=0o750, parents=True)
    host.owners["/run/local-llm-sockets"] = ("root", "local-llm-gateway")
    monkeypatch.chdir(path.parent)  # a socket's path holds 108 bytes
    with sockets.socket(sockets.AF_UNIX) as made:
        made.bind(path.name)
    path.chmod(mode)
    host.owners["/run/local-llm-sockets/llama.sock"] = ("local-llm", "local-llm")


@pytest.mark.parametrize(
    ("mode", "status"), [(0o770, Status.PASS), (0o660, Status.PASS), (0o777, Status.FAIL), (0o771, Status.FAIL)]
)
def test_the_mode_of_the_socket(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch, mode: int, status: Status
) -> None:
    make_socket(host, mode, monkeypatch)
    assert statuses(security.socket, config, host) == {"directory of the socket": Status.PASS, "socket": status}


def test_the_owner_of_the_socket(config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    make_socket(host, 0o770, monkeypatch)
    host.owners["/run/local-llm-sockets/llama.sock"] = ("local-llm", "users")
    assert statuses(security.socket, config, host)["socket"] is Status.FAIL


@pytest.mark.parametrize(
    ("mode", "owner"),
    [
        (0o770, ("root", "local-llm-gateway")),
        (0o755, ("root", "local-llm-gateway")),
        (0o750, ("local-llm", "local-llm-gateway")),
        (0o750, ("root", "local-llm")),
    ],
)
def test_a_directory_in_which_others_may_exchange_or_reach_the_socket(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch, mode: int, owner: tuple[str, str]
) -> None:
    make_socket(host, 0o770, monkeypatch)
    host.path("/run/local-llm-sockets").chmod(mode)
    host.owners["/run/local-llm-sockets"] = owner
    assert statuses(security.socket, config, host)["directory of the socket"] is Status.FAIL


def test_a_file_in_place_of_the_socket(config: Config, host: FakeHost) -> None:
    host.put("/run/local-llm-sockets/llama.sock", "", mode=0o660)
    host.owners["/run/local-llm-sockets/llama.sock"] = ("local-llm", "local-llm")
    assert "not a socket" in results(security.socket, config, host)["socket"].value


def test_no_socket(config: Config, host: FakeHost) -> None:
    assert results(security.socket, config, host)["socket"].value == "missing"


def test_a_stopped_service(config: Config, host: FakeHost) -> None:
    host.put_units(show(SERVICE, ActiveState="inactive", MainPID="0"))
    assert set(statuses(security.service_network, config, host).values()) == {Status.FAIL}
