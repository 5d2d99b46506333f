"""Packages: nothing is removed for an installation, what it brings is known, and only that goes again."""

import subprocess
from pathlib import Path

import pytest

from facts.packages import PackagePlan, parse_plan
from operations.packages import _record, _remove
from settings import Settings
from tasks import packages
from tasks.planning import Status, package_findings

KEPT_OFF = {"ours": "ours.service"}


def run(tmp_path: Path, text: str, **commands: str) -> subprocess.CompletedProcess[str]:
    """Run a script with these commands in the place of the system's; each notes that it was called."""
    for name, body in commands.items():
        command = tmp_path / name.replace("_", "-")
        command.write_text(f'#!/bin/sh\necho "{command.name} $@" >>{tmp_path}/asked\n{body}\n')
        command.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-euc", text], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )


@pytest.mark.parametrize("text", [_record("a b", "/r"), _remove(["a"], KEPT_OFF, "/r", 5), _remove([], {}, "/r", 5)])
def test_scripts_are_shell(text: str) -> None:
    subprocess.run(["/bin/sh", "-n", "-c", text], check=True)


def test_only_new_packages_are_recorded(tmp_path: Path) -> None:
    record = tmp_path / "state" / "record"
    plan = "echo 'Inst upgraded [1.0] (2.0 Debian [amd64])'; echo 'Inst fresh (2.0 Debian)'; echo 'Conf fresh (2.0)'"
    for _ in range(2):
        assert run(tmp_path, _record("fresh", str(record)), apt_get=plan).returncode == 0
    assert record.read_text() == "fresh\n"


def test_an_installation_that_would_remove_something_is_refused_and_leaves_no_record(tmp_path: Path) -> None:
    record = tmp_path / "state" / "record"
    done = run(tmp_path, _record("fresh", str(record)), apt_get="echo 'Remv theirs [1.0]'; echo 'Inst fresh (2.0)'")
    assert done.returncode == 1
    assert "apt would remove for that: theirs\n" in done.stderr
    assert not record.parent.exists()


def test_what_apt_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = run(tmp_path, _record("fresh", str(tmp_path / "s" / "r")), apt_get="echo 'E: held packages' >&2; exit 100")
    assert (done.returncode, done.stderr) == (1, "E: held packages\n")


@pytest.mark.parametrize("gone", ["ours", "ours\nbrought"])
def test_what_is_not_ours_and_would_go_along_stops_the_removal(tmp_path: Path, gone: str) -> None:
    record = tmp_path / "record"
    record.write_text("brought\nours\n")
    plan = "\n".join(f"echo 'Purg {name} [1]'" for name in gone.split())
    done = run(
        tmp_path,
        _remove(["ours"], KEPT_OFF, str(record), 5),
        apt_get=f"{plan}\ncase $* in *purge*) echo 'Remv theirs [1]' ;; esac",
        apt_mark=":",
        dpkg_query="echo 'installed ours'",
    )
    assert done.returncode == 1
    assert "are not ours: theirs\n" in done.stderr
    assert "apt-get -q" not in (tmp_path / "asked").read_text()
    assert record.exists()


def test_what_others_need_stays_off_and_is_named(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text("ours\n")
    done = run(
        tmp_path,
        _remove(["ours"], KEPT_OFF, str(record), 5),
        apt_get=":",
        apt_mark=":",
        dpkg_query="echo 'installed ours'",
        systemctl=":",
    )
    assert done.stdout.splitlines() == [
        "Kept, because other packages need them: ours",
        "ours.service stays masked: sudo systemctl unmask ours.service",
    ]
    asked = (tmp_path / "asked").read_text()
    assert "apt-mark auto ours" in asked
    assert "systemctl unmask" not in asked
    assert not record.exists()


def test_where_others_stay_the_record_keeps_what_is_still_there(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text("gone\nours\n")
    run(
        tmp_path,
        _remove(["gone"], {}, str(record), 5, others_stay=True),
        apt_get=":",
        apt_mark=":",
        dpkg_query="echo 'installed ours'",
        systemctl=":",
    )
    assert record.read_text() == "ours\n"


def test_a_plan_is_read() -> None:
    assert parse_plan(["@missing", ""]) == PackagePlan()
    known = ["@missing", " ufw git", "@plan", "Remv iptables-persistent [1]", "Inst ufw (1)", "known"]
    assert parse_plan(known) == PackagePlan(("ufw", "git"), ("iptables-persistent",))
    assert parse_plan(["@missing", " ufw", "@plan", "Reading package lists..."]) == PackagePlan(("ufw",), (), False)


def test_preflight_says_what_would_be_removed_and_the_way_out() -> None:
    [finding] = package_findings(PackagePlan(("ufw",), ("iptables-persistent", "netfilter-persistent")))
    assert finding.status is Status.FAIL
    assert "iptables-persistent, netfilter-persistent" in finding.found
    assert "firewall = False" in finding.remedy
    [finding] = package_findings(PackagePlan(("git",), ("theirs",)))
    assert "firewall" not in finding.remedy
    for good in (PackagePlan(), PackagePlan(("git",)), PackagePlan(("git",), (), is_known=False)):
        [finding] = package_findings(good)
        assert finding.status is Status.PASS


def test_preflight_looks_at_all_that_is_installed() -> None:
    assert set(packages.wanted(Settings(prometheus=True))) == {
        *packages.BUILD,
        *packages.RUN,
        *packages.FIREWALL,
        *packages.PROMETHEUS,
    }
    assert "ufw" not in packages.wanted(Settings(firewall=False))
