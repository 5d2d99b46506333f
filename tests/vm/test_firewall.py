"""UFW with nftables, from a network of its own beside the machine, in both families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.container.machine import Machine, eventually

OPEN_PORT = 8899
"""Something listens there on all addresses, that nobody allowed."""
HOST = {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}
LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("accepted")
except TimeoutError:
    print("dropped")
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def machine(deployed: Machine) -> Iterator[Machine]:
    """The machine, with a neighbour in its network, a namespace of the kernel's."""
    deployed.sh(
        "ip netns add outside && ip link add inner type veth peer name outer netns outside && ip link set inner up && "
        f"ip addr add {HOST['IPv4']}/24 dev inner && ip addr add {HOST['IPv6']}/64 dev inner nodad && "
        "ip -n outside link set outer up && ip -n outside addr add 192.0.2.2/24 dev outer && "
        "ip -n outside addr add 2001:db8::2/64 dev outer nodad && "
        f"systemd-run --quiet --unit=listener python3 -m http.server {OPEN_PORT} --bind ::"
    )
    eventually(lambda: connect(deployed, "IPv4", OPEN_PORT, LOOPBACK) == "accepted", 60, "the listener")
    yield deployed
    deployed.sh("systemctl stop listener; ip link del inner; ip netns del outside", check=False)


def connect(machine: Machine, family: str, port: int, addresses: dict[str, str], via: str = "") -> str:
    """What comes of a connection to the machine."""
    return machine.sh(f"{via} python3 -c '{CONNECT}' {addresses[family]} {port}")


@pytest.mark.parametrize("family", HOST)
def test_from_outside_ssh_alone_is_let_in(machine: Machine, family: str) -> None:
    assert "nf_tables" in machine.sh("iptables --version")
    found = {
        port: connect(machine, family, port, HOST, "ip netns exec outside") for port in (22, 8765, 8766, OPEN_PORT)
    }
    assert found == {22: "accepted", 8765: "dropped", 8766: "dropped", OPEN_PORT: "dropped"}


@pytest.mark.parametrize("family", HOST)
def test_inside_everything_is_let_in(machine: Machine, family: str) -> None:
    assert connect(machine, family, OPEN_PORT, LOOPBACK) == "accepted"
    assert connect(machine, family, OPEN_PORT, HOST) == "accepted"  # an own address is loopback as well
    assert connect(machine, family, 22, LOOPBACK) == "accepted"
    assert connect(machine, "IPv4", 8765, LOOPBACK) == "accepted"


def test_without_the_firewall_the_listener_would_be_reached(machine: Machine) -> None:
    machine.sh("ufw disable")
    try:
        for family in HOST:
            assert connect(machine, family, OPEN_PORT, HOST, "ip netns exec outside") == "accepted"
    finally:
        machine.sh("ufw --force enable")
    assert connect(machine, "IPv4", OPEN_PORT, HOST, "ip netns exec outside") == "dropped"


def test_outgoing_is_let_out(machine: Machine) -> None:
    assert machine.sh(f"curl -sS -m 20 -o /dev/null -w '%{{http_code}}' {machine.source.hub.url}/status") == "200"
