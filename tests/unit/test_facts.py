"""Facts: what hosts print, read back."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.result import Result, Status
from facts.files import parse_file_contents
from facts.llama_cpp import Installed, Releases
from facts.machine import Disk, Login, parse_machine
from facts.model import parse_model_file
from facts.systemd import Unit, UnitState
from facts.ufw import parse_ufw
from facts.verification import parse_report

MACHINE = """@os
ubuntu
24.04
Ubuntu 24.04.3 LTS
@architecture
x86_64
@init
systemd
@cores
2
@cpu
model name	: AMD EPYC 7003
flags		: fpu avx2 fma
@memory
MemTotal:        8123456 kB
MemAvailable:    6123456 kB
@disk
/opt 40000000 /
/usr
/var 30000000 /var
@listeners
0.0.0.0:22 users:(("sshd",pid=1,fd=3))
[::]:2222 users:(("sshd",pid=1,fd=4))
127.0.0.1:8765 users:(("haproxy",pid=9,fd=5))
@ssh
22
@gateway
9
  10
@gateway_ports
8765
8766
@ipv6
yes
@own
1048576000""".splitlines()


def test_a_machine_is_read() -> None:
    machine = parse_machine(MACHINE)
    assert (machine.os_id, machine.os_version, machine.architecture, machine.init) == (
        "ubuntu", "24.04", "x86_64", "systemd",
    )  # fmt: skip
    assert machine.cpu_model == "AMD EPYC 7003"
    assert "avx2" in machine.cpu_flags
    assert (machine.memory_total_mib, machine.memory_available_mib) == (7933, 5979)
    assert machine.disks == {"/opt": Disk("/", 39062), "/var": Disk("/var", 29296)}
    assert set(machine.listeners) == {22, 2222, 8765}
    assert machine.ssh_ports == {22, 2222}
    assert machine.gateway_pids == {9, 10}
    assert machine.gateway_ports == {8765, 8766}
    assert machine.has_ipv6
    assert machine.llama_memory_mib == 1000


def test_a_machine_that_says_nothing_is_still_a_machine() -> None:
    machine = parse_machine([])
    assert machine.os_name == "unknown"
    assert not machine.has_ipv6
    assert machine.ssh_ports == frozenset()


@pytest.mark.parametrize("own", ["[not set]", "18446744073709551615", ""])
def test_memory_that_systemd_does_not_count_is_none(own: str) -> None:
    assert parse_machine(["@own", own]).llama_memory_mib == 0


def test_login_over_ssh_and_without() -> None:
    over_ssh = Login().parse(["ubuntu 1000 2222", "sudo"])
    assert (over_ssh.user, over_ssh.is_root, over_ssh.sudo_without_password, over_ssh.ssh_port) == (
        "ubuntu", False, True, 2222,
    )  # fmt: skip
    assert Login().parse(["root 0 ", "none"]).ssh_port is None


@given(st.binary(max_size=200), st.sampled_from(["0", "644", "4755"]))
def test_files_are_read_as_they_are(content: bytes, mode: str) -> None:
    line = f"{mode} root adm {base64.b64encode(content).decode()} /etc/a b.conf"
    [(path, state)] = parse_file_contents([line]).items()
    assert path == "/etc/a b.conf"
    assert (state.content, state.mode, state.owner, state.group) == (content, mode.zfill(4), "root", "adm")


def test_a_stamp_proves_only_the_file_it_was_made_for() -> None:
    stamp = json.dumps({"sha256": "ab", "size_bytes": 10, "mtime_ns": 1700000000123456789})
    assert parse_model_file(f"10 1700000000.123456789 m.gguf {stamp}").sha256 == "ab"
    assert parse_model_file(f"11 1700000000.123456789 m.gguf {stamp}").sha256 is None
    assert parse_model_file(f"10 1700000000.123456788 m.gguf {stamp}").sha256 is None


@pytest.mark.parametrize("stamp", ["", "{", "[]", "null", '{"sha256": "ab"}'])
def test_a_broken_stamp_proves_nothing(stamp: str) -> None:
    file = parse_model_file(f"10 1.000000000 m.gguf {stamp}")
    assert (file.name, file.size_bytes, file.sha256) == ("m.gguf", 10, None)


def test_releases_and_the_current_one() -> None:
    assert Releases().parse(["current b", "b", "a"]) == Installed(("b", "a"), "b")
    assert Releases().parse(["current "]) == Installed((), None)


def test_a_unit_and_its_stamp() -> None:
    output = (
        "ActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\nMainPID=7\nLOCAL_LLM_STAMP=abc".splitlines()
    )
    assert Unit().parse(output) == UnitState(active=True, enabled=True, needs_reload=False, stamp="abc")
    assert Unit().parse([*output, "Program=/usr/sbin/haproxy (deleted)"]).stamp is None
    assert Unit().parse(["ActiveState=inactive", "UnitFileState=", "NeedDaemonReload=no"]) == UnitState()


UFW = """@status
Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), deny (routed)
@added
Added user rules (see 'ufw status' for running firewall):
ufw allow 22/tcp comment 'local-llm'
ufw allow from 10.0.0.0/8 to any port 5432 proto tcp
@defaults
DEFAULT_INPUT_POLICY="DROP"
DEFAULT_OUTPUT_POLICY="ACCEPT"
""".splitlines()


def test_ufw_is_read() -> None:
    firewall = parse_ufw(UFW)
    assert (firewall.active, firewall.default_incoming, firewall.default_outgoing) == (True, "deny", "allow")
    assert firewall.rules == (
        "allow 22/tcp comment 'local-llm'",
        "allow from 10.0.0.0/8 to any port 5432 proto tcp",
    )


def test_an_inactive_ufw_is_inactive() -> None:
    assert not parse_ufw(["@status", "Status: inactive", "@added", "Added user rules:", "(None)", "@defaults"]).active


def test_a_report_that_is_no_json_is_a_failure_that_quotes_it() -> None:
    assert parse_report(" \n") is None
    for text in ("Traceback: no module named psutil", "{}", '{"results": []}', "[" * 100_000, '{"results": 5}'):
        found = parse_report(text)
        assert found is not None
        [result] = found
        assert (result.status, result.value) == (Status.FAIL, text[:300])


@pytest.mark.parametrize("change", [{"status": "OK"}, {"status": "PASS "}, {"value": 5}, {"name": None}])
def test_a_word_or_kind_of_the_host_s_own_is_a_failure(change: dict[str, object]) -> None:
    good = {"group": "api", "name": "health", "status": "PASS", "value": "3 ms", "limit": "", "remedy": ""}
    assert parse_report(json.dumps({"results": [good]})) == [Result("health", Status.PASS, "3 ms", group="api")]
    found = parse_report(json.dumps({"results": [good, {**good, **change}]}))
    assert found is not None
    assert [result.status for result in found] == [Status.FAIL]
