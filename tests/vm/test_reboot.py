"""Off and on again, in an orderly way and by a power cut: what was there is there, and no outage is made up."""

from __future__ import annotations

import json

from checks.contract import paths
from tests.container.machine import Machine, eventually
from tests.vm.conftest import SWAP_MIB, Watched, virtual

SAMPLES = "/var/lib/local-llm/samples.db"


def assert_all_is_up(machine: Machine) -> None:
    """systemd has no complaint, the model answers, the firewall is there."""
    eventually(lambda: machine.sh("systemctl is-system-running", check=False) == "running", 120, "a system that runs")
    assert machine.sh("systemctl --failed --plain --no-legend") == ""
    eventually(machine.answers, 60, "an answer")
    assert "Status: active" in machine.sh("ufw status")


def test_an_orderly_reboot_counts_as_no_down_time(swapping: Watched) -> None:
    machine = swapping.machine
    machine.sh("local-llm health --log", check=False)
    before = checks_down(machine)
    # One health check after the other, so that one is under way while the machine goes down, as cron's may be.
    machine.sh("systemd-run --quiet sh -c 'while :; do local-llm health --log; done'")
    virtual(machine).reboot()
    assert_all_is_up(machine)
    assert f"{paths.SWAP_FILE} file {SWAP_MIB * 1024 - 4} " in machine.sh("tr -s ' \\t' ' ' </proc/swaps")
    machine.sh("local-llm health --log", check=False)
    assert checks_down(machine) == before, machine.sh("grep -v ' OK ' /var/log/llm-health.log | tail -n 5")
    checks = machine.deploy("checks.py")
    assert checks.succeeded, checks.output
    run = machine.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def test_a_power_cut_loses_no_sample(swapping: Watched) -> None:
    machine = swapping.machine
    machine.sh("local-llm health --log; sync")
    before = samples(machine)
    machine.sh("systemd-run --quiet sh -c 'while :; do local-llm health --log; done'; sleep 8")
    virtual(machine).power_cut()
    virtual(machine).start()
    assert_all_is_up(machine)
    assert query(machine, "PRAGMA integrity_check") == ["ok"]
    assert samples(machine) >= before
    run = machine.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def query(machine: Machine, statement: str) -> list[str]:
    """The first column of an answer of the samples' database."""
    program = (
        "import sqlite3, sys; "
        f'[print(row[0]) for row in sqlite3.connect("file:{SAMPLES}?mode=ro", uri=True).execute(sys.argv[1])]'
    )
    return machine.sh(f"python3 -c '{program}' \"{statement}\"").splitlines()


def samples(machine: Machine) -> int:
    return int(query(machine, "SELECT count(*) FROM samples")[0])


def checks_down(machine: Machine) -> int:
    """How many health checks found the model down, as the report counts them."""
    whole = json.loads(machine.sh("local-llm report --json", check=False))["history"]["whole"]
    return int(whole["known"]) - int(whole["up"])
