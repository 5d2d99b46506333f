"""A deploy changes nothing that is not its own, and uninstall.py takes away all that is: seen by comparison."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from sandbox.host import CCACHE_FOLDER, SandboxHost
from tests.container.conftest import IMAGES, SWAP_FOLDER, with_settings
from tests.container.machine import Machine, Source, eventually
from tests.container.snapshot import differences, snapshot
from tests.container.test_swap import is_somebodys_machine

pytestmark = pytest.mark.xdist_group("uninstall")

APT = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0"
RULE = "-A INPUT -p tcp -m tcp --dport 4242 -j DROP"
WITHOUT_UFW: dict[str, object] = {"firewall": False}
ALL: dict[str, object] = {"uninstall_models": True, "uninstall_logs": True, "uninstall_history": True}
MOUNTED = tuple(CCACHE_FOLDER[: CCACHE_FOLDER.rindex("/") + length] for length in (0, len(CCACHE_FOLDER)))
"""The compiler's cache of the sandbox is another disk's, and stays with its directory."""
EVERYTHING: dict[str, object] = {
    "prometheus": True,
    "swap_file_mib": 0 if is_somebodys_machine() else 32,
    "cloud_url": "https://api.example.com/v1",
    "cloud_models": ["large"],
    "alert_webhook_url": "http://127.0.0.1:9999/hook",
    "openclaw_slim": True,
    "firewall_allowed_ports": ["443/tcp"],
}
# Debian's package leaves its account behind.
ACCOUNT = r"(user|group) prometheus$|/etc/(passwd|group|shadow|gshadow)$"
KEPT = r"/opt/local-llm(/models(/.*)?)?$|/var/lib/local-llm(/samples\.db)?$|/var/log/(llm-|local-llm)"


@pytest.fixture(scope="module")
def machine(source: Source) -> Iterator[Machine]:
    """A machine of its own, with what a user had on it before."""
    with SandboxHost(IMAGES[-1], volumes=[SWAP_FOLDER]) as host:
        found = Machine(host, source, environment={"LOCAL_LLM_CLOUD_KEY": "key"})
        found.sh(
            f"{APT} update && {APT} upgrade && {APT} install curl >/dev/null 2>&1; "
            "mkdir /opt/mine /etc/mine && echo mine >/opt/mine/file && echo mine >/etc/cron.d/mine; "
            "echo '* * * * * root true' >/etc/cron.d/local-llm-mine; "
            f"head -c 40960 /dev/zero >{SWAP_FOLDER}/mine; "
            f"echo '{SWAP_FOLDER}/mine none swap sw,nofail 0 0' >>/etc/fstab; "
            "groupadd --system local-llm"
        )
        yield found


def left(machine: Machine, before: dict[str, str]) -> list[str]:
    """What is not as it was."""
    mounted = tuple(f"{path}: " for path in MOUNTED)
    return [line for line in differences(before, snapshot(machine)) if not line.startswith(mounted)]


def has_rule(machine: Machine) -> bool:
    return RULE in machine.sh("cat /etc/iptables/rules.v4") and "ii" in machine.sh("dpkg -l iptables-persistent")


def test_another_manager_of_the_firewall_is_refused_by_name(machine: Machine) -> None:
    # The one whose package makes no account: those of a deploy have the same numbers on every machine, by which all of
    # them share the compiler's cache.
    machine.sh(f"{APT} install nftables 2>&1; systemctl enable nftables 2>&1")
    run = machine.deploy()
    machine.sh(f"systemctl disable nftables 2>&1; {APT} purge nftables 2>&1; {APT} autoremove --purge 2>&1")
    assert run.status == 1
    assert "other firewall: nftables.service; needed" in run.output
    assert "Nothing was changed on this host." in run.output


def test_a_users_own_firewall_is_refused_by_name_and_stays(machine: Machine) -> None:
    machine.sh(f"{APT} install iptables-persistent >/dev/null 2>&1; iptables {RULE} && netfilter-persistent save 2>&1")
    before = snapshot(machine)
    run = machine.deploy()
    assert run.status == 1
    assert "packages: apt would remove iptables-persistent, netfilter-persistent;" in run.output
    assert "other firewall: netfilter-persistent.service;" in run.output
    assert "firewall = False" in run.output
    assert "Nothing was changed on this host." in run.output
    assert differences(before, snapshot(machine)) == []


def test_what_preflight_cannot_know_is_refused_by_the_installation(machine: Machine) -> None:
    machine.sh("systemctl disable --quiet --now netfilter-persistent; rm -rf /var/lib/apt/lists/*")
    before = snapshot(machine)
    try:
        run = machine.deploy()
        assert run.status == 1
        assert "apt would remove for that: iptables-persistent netfilter-persistent" in run.output
        assert has_rule(machine)
        # The lock of the deploy, in /run.
        assert differences(before, snapshot(machine)) in ([], ["running local-llm-root: nothing -> "])
    finally:
        machine.sh("systemctl enable --quiet --now netfilter-persistent")


def test_a_deploy_that_broke_off_goes_without_a_trace(machine: Machine) -> None:
    before = snapshot(machine)
    process = with_settings(machine, **WITHOUT_UFW).start()
    eventually(lambda: machine.show("local-llm-build", "SubState") == "running", 300, "a running build")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert machine.show("local-llm-build", "SubState") == "running"
    run = with_settings(machine, **WITHOUT_UFW).deploy("uninstall.py")
    assert run.succeeded, run.output
    assert machine.show("local-llm-build", "ActiveState") == "inactive"
    # The logs of fetch and build stay with the others.
    assert [line for line in left(machine, before) if "/var/log/local-llm" not in line] == []
    assert with_settings(machine, **ALL).deploy("uninstall.py").succeeded
    assert left(machine, before) == []


def test_beside_another_firewall_a_deploy_leaves_it_and_goes_again(machine: Machine) -> None:
    before = snapshot(machine)
    run = with_settings(machine, **WITHOUT_UFW).deploy()
    assert run.succeeded, run.output
    assert machine.answers()
    assert has_rule(machine)
    assert RULE in machine.sh("iptables -S INPUT")
    assert machine.sh("command -v ufw", check=False) == ""
    run = with_settings(machine, **ALL).deploy("uninstall.py")
    assert run.succeeded, run.output
    assert left(machine, before) == []
    assert with_settings(machine, **ALL).deploy("uninstall.py").changed == 0


def test_all_that_can_be_deployed_goes_whatever_state_it_is_in(machine: Machine) -> None:
    machine.sh(
        f"{APT} purge iptables-persistent netfilter-persistent >/dev/null 2>&1; iptables -F; {APT} install ufw "
        ">/dev/null 2>&1; ufw allow 5432/tcp comment mine; ufw allow 8765/tcp; ufw limit 22/tcp; "
        "ufw default deny outgoing; ufw allow out 53"
    )
    before = snapshot(machine)
    everything = with_settings(machine, **EVERYTHING)
    run = everything.deploy()
    assert run.succeeded, run.output
    assert everything.deploy().changed == 0
    # Cron writes the first sample when its minute comes.
    eventually(lambda: "samples.db" in machine.sh("ls /var/lib/local-llm"), 90, "a history")
    # As a host may be: a unit masked and its file gone, one that failed, one that runs without a file, files gone.
    machine.sh(
        "cd /etc/systemd/system; rm local-llm-drill.service; ln -s /dev/null local-llm-drill.service; "
        "kill -9 $(systemctl show local-llm-prometheus -p MainPID --value); rm local-llm-node-exporter.service; "
        "systemctl kill -s KILL local-llm-gateway; rm /etc/local-llm/haproxy.cfg /usr/local/bin/local-llm; "
        "rm -r /opt/local-llm/checks; touch /etc/cron.d/.local-llm.new; systemctl daemon-reload"
    )
    run = everything.deploy("uninstall.py")
    assert run.succeeded, run.output
    for what in ("models", "logs", "history"):
        assert re.search(rf"{what} +│ stays", run.output)
    changed = left(machine, before)
    assert [
        line for line in changed if not re.match(rf"(content of )?({KEPT}|{ACCOUNT})", line.partition(": ")[0])
    ] == []
    assert any("/opt/local-llm/models/tiny" in line for line in changed)
    assert any("/var/lib/local-llm/samples.db" in line for line in changed)
    assert everything.deploy("uninstall.py").changed == 0


def test_it_deploys_anew_without_a_download_and_without_records_what_is_unknown_stays(machine: Machine) -> None:
    machine.source.hub.clear()
    run = machine.deploy()
    assert run.succeeded, run.output
    assert machine.answers()
    assert machine.source.hub.requests_for("tiny") == []
    # A deploy of another time kept none.
    machine.sh("cd /var/lib/local-llm && rm packages accounts firewall.json")
    run = with_settings(machine, **ALL).deploy("uninstall.py")
    assert run.succeeded, run.output
    assert "no record says which of them a deploy brought" in run.output
    assert "UFW was set up by a deploy that kept" in run.output
    assert "Status: active" in machine.sh("ufw status")
    assert "limit 22/tcp" in machine.sh("ufw show added")
    assert "8766" not in machine.sh("ufw show added")
    assert machine.sh("command -v haproxy cmake") != ""
    assert machine.show("haproxy.service", "UnitFileState") == "masked"
    assert machine.sh("ls -d /opt/local-llm /etc/local-llm /var/lib/local-llm /var/log/*llm*", check=False) == ""
    assert machine.sh("getent passwd local-llm local-llm-gateway local-llm-build", check=False) == ""
    assert with_settings(machine, **ALL).deploy("uninstall.py").changed == 0
