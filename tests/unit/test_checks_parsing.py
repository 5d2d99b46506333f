"""What systemd, ufw, the journal and the kernel print, as it was seen on real machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import journal, network, systemd, ufw
from tests.unit.checks_support import GATEWAY, PID, SERVICE, show


def test_two_units_in_one_answer() -> None:
    units = systemd.parse_show(show(SERVICE) + "\n" + show(GATEWAY, ActiveState="failed", MainPID="0", NRestarts="3"))
    assert units[SERVICE].active
    assert units[SERVICE].pid == PID
    assert units[SERVICE].uptime_seconds(5000.0) == 4000.0
    assert not units[GATEWAY].active
    assert units[GATEWAY].restarts == 3
    assert units[GATEWAY].uptime_seconds(5000.0) is None


@pytest.mark.parametrize("text", ["[not set]", "infinity", "18446744073709551615", ""])
def test_a_number_systemd_does_not_know(text: str) -> None:
    unit = systemd.parse_show(show(SERVICE, MemoryCurrent=text, MemoryMax=text))[SERVICE]
    assert unit.memory_current_bytes is None
    assert unit.memory_max_bytes is None


def test_an_older_systemd_has_no_peak() -> None:
    assert systemd.parse_show(show(SERVICE))[SERVICE].memory_peak_bytes is None


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("→ Overall exposure level for local-llm.service: 0.3 SAFE 😀", 0.3),
        ("-> Overall exposure level for haproxy.service: 9.6 UNSAFE :-{", 9.6),
        ("→ Overall exposure level for x.service: 10 DANGEROUS 😨", 10.0),
    ],
)
def test_exposure(line: str, level: float) -> None:
    rows = "✗ UMask=    Files created by service are world-readable by default    0.1\n\n"
    assert systemd.parse_exposure(rows + line) == level


def test_no_exposure() -> None:
    with pytest.raises(ValueError, match="no overall exposure"):
        systemd.parse_exposure("Failed to connect to bus: Host is down")


UFW = """\
Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere                   # SSH
8765/tcp                   DENY IN     Anywhere                   # local LLM: API
8766/tcp                   DENY IN     Anywhere
22/tcp (v6)                ALLOW IN    Anywhere (v6)              # SSH
8765/tcp (v6)              DENY IN     Anywhere (v6)              # local LLM: API
8766/tcp (v6)              DENY IN     Anywhere (v6)

53                         ALLOW OUT   Anywhere
"""


def test_ufw_as_deployed() -> None:
    firewall = ufw.parse_status(UFW)
    assert firewall.active
    assert firewall.default_incoming == "deny"
    assert firewall.denies(8765)
    assert firewall.denies(8766)
    assert not firewall.denies(22)
    assert not firewall.denies(80)
    assert len(firewall.rules) == 6


def test_ufw_inactive() -> None:
    firewall = ufw.parse_status("Status: inactive\n")
    assert not firewall.active
    assert firewall.default_incoming == "unknown"


@pytest.mark.parametrize(
    "rule",
    [
        "8765/tcp                   ALLOW IN    203.0.113.7",
        "8765                       ALLOW IN    Anywhere",
        "8000:9000/tcp              ALLOW IN    Anywhere",
        "443,8765/tcp               LIMIT IN    Anywhere",
        "8765/tcp on eth0           ALLOW IN    Anywhere",
        "Anywhere                   ALLOW IN    10.0.0.0/8",
        "192.0.2.1 8765/tcp         ALLOW IN    Anywhere",
    ],
)
def test_an_earlier_allow_opens_the_port(rule: str) -> None:
    opened = UFW.replace("8765/tcp                   DENY", rule + "\n8765/tcp                   DENY", 1)
    assert not ufw.parse_status(opened).denies(8765)


@pytest.mark.parametrize(
    "rule",
    [
        "8765/udp                   ALLOW IN    Anywhere",
        "22/tcp                     ALLOW IN    Anywhere",
        "8766                       ALLOW OUT   Anywhere",
    ],
)
def test_an_allow_of_something_else_does_not(rule: str) -> None:
    same = UFW.replace("8765/tcp                   DENY", rule + "\n8765/tcp                   DENY", 1)
    assert ufw.parse_status(same).denies(8765)


@pytest.mark.parametrize(
    "without",
    [
        "8765/tcp                   DENY IN     Anywhere                   # local LLM: API\n",
        "8765/tcp (v6)              DENY IN     Anywhere (v6)              # local LLM: API\n",
    ],
)
def test_each_family_needs_its_rule(without: str) -> None:
    assert without in UFW
    assert not ufw.parse_status(UFW.replace(without, "")).denies(8765)


@pytest.mark.parametrize("source", ["203.0.113.7", "10.0.0.0/8"])
def test_a_deny_for_some_is_no_deny(source: str) -> None:
    some = UFW.replace("8766/tcp                   DENY IN     Anywhere", f"8766/tcp    DENY IN     {source}")
    assert not ufw.parse_status(some).denies(8766)


def test_a_range_is_denied_too() -> None:
    text = "Status: active\nDefault: deny (incoming)\n\n8765:8766/tcp      REJECT IN   Anywhere\n"
    firewall = ufw.parse_status(text)
    assert firewall.denies(8765)
    assert firewall.denies(8766)
    assert not firewall.denies(8767)


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:223D 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 31337 1 0000000000000000
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20001 1 0000000000000000
   2: 0100007F:223D 0100007F:C001 01 00000000:00000000 00:00000000 00000000   998        0 40001 1 0000000000000000
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr …
   0: 00000000000000000000000001000000:223D 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1
   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 8 1
   2: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 9 1
"""  # noqa: E501 - the kernel's own lines


def test_listeners_of_ipv4() -> None:
    api, ssh = network.parse_listeners(TCP)
    assert (str(api), api.loopback, api.inode) == ("127.0.0.1:8765", True, 31337)
    assert (str(ssh), ssh.loopback) == ("0.0.0.0:22", False)


def test_listeners_of_ipv6() -> None:
    found = [(str(listener), listener.loopback) for listener in network.parse_listeners(TCP6)]
    assert found == [("[::1]:8765", True), ("[::]:80", False), ("[::ffff:127.0.0.1]:8080", True)] or found[2] == (
        "[::ffff:7f00:1]:8080",
        True,
    )


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_any_ipv4_listener_comes_back(address: object, port: int) -> None:
    digits = "".join(f"{int(part):02X}" for part in reversed(str(address).split(".")))
    row = f"   0: {digits}:{port:04X} 00000000:0000 0A 0:0 0:0 0 0 0 5 1 0\n"
    assert [str(listener) for listener in network.parse_listeners("header\n" + row)] == [f"{address}:{port}"]


def test_journal_times() -> None:
    text = "-- Boot 1 --\n1795385593.123456 vps systemd[1]: local-llm.service: killed\n1795385600.5 vps systemd[1]: …\n"
    assert journal.parse_times(text) == [1795385593.123456, 1795385600.5]
    assert journal.parse_times("-- No entries --\n") == []
