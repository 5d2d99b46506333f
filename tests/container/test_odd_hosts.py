"""Hosts that are not as a provider hands them over: other login shells, greetings, a narrow umask, a sudo that asks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from facts.base import BEGIN, END
from tests.container.machine import Machine, Run

VISITOR = "visitor"
HOME = f"/home/{VISITOR}"
START_FILES = {
    "bash": (".bashrc", "/bin/bash"),
    "dash": (None, "/bin/dash"),
    "zsh": (".zshenv", "/usr/bin/zsh"),
    "fish": (".config/fish/config.fish", "/usr/bin/fish"),
    "tcsh": (".tcshrc", "/usr/bin/tcsh"),
}
NOISE = (
    "@os",
    "Welcome to the box! You have $5 and 100% of `date`",
    "{}",
    "0 0 0 /etc/passwd",
    f"not {BEGIN} yet",
    "ActiveState=active",
    END,
)


@pytest.fixture(scope="module")
def visitor(deployed: Machine) -> Iterator[Machine]:
    """The deployed machine as another user with sudo sees it, whose shell and start files a test may change."""
    deployed.sh("apt-get install -q -y --no-install-recommends zsh fish tcsh >/dev/null")
    deployed.sh(
        f"useradd --create-home --shell /bin/bash {VISITOR}\n"
        f"echo '{VISITOR} ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/{VISITOR}\n"
        f"cp -r /home/{deployed.host.ssh_user}/.ssh {HOME}/.ssh && chown -R {VISITOR}: {HOME}"
    )
    yield replace(deployed, settings={**deployed.settings, "ssh_user": VISITOR})
    deployed.sh(f"rm -f /etc/sudoers.d/{VISITOR}; userdel --remove {VISITOR} 2>/dev/null", check=False)


@pytest.fixture(autouse=True)
def plain_again(request: pytest.FixtureRequest, deployed: Machine) -> Iterator[None]:
    yield
    deployed.sh(
        f"cd {HOME} && rm -rf .bashrc .zshenv .config .tcshrc /etc/sudoers.d/odd; usermod -s /bin/bash {VISITOR}",
        check=False,
    )


def write_start_file(machine: Machine, name: str, lines: list[str]) -> None:
    file = f"{HOME}/{name}"
    text = "\n".join(lines) + "\n"
    machine.sh(f"mkdir -p $(dirname {file}) && printf %s {shlex.quote(text)} > {file} && chown -R {VISITOR}: {HOME}")


@dataclass
class Pair(Machine):
    """An inventory of two hosts: the machine by its usual user, and by the visitor with other settings."""

    odd: dict[str, object] = field(default_factory=dict)

    def inventory(self) -> str:
        found: dict[str, list[tuple[str, dict[str, object]]]] = {}
        exec(super().inventory(), found)
        [(_, data)] = found["hosts"]
        return f"hosts = [('good', {data!r}), ('odd', {data | {'ssh_user': VISITOR} | self.odd!r})]\n"


def pair(machine: Machine, **odd: object) -> Pair:
    settings = {name: value for name, value in machine.settings.items() if name != "ssh_user"}
    return Pair(machine.host, machine.source, settings, odd=odd)


def assert_only_the_odd_one_failed(run: Run, *words: str) -> None:
    assert run.status == 1, run.output
    assert "Traceback" not in run.output, run.output
    assert "[good]" in run.output
    odd = [line for line in run.output.splitlines() if "[odd]" in line and all(word in line for word in words)]
    assert len(odd) == 1, run.output


@pytest.mark.parametrize("shell", START_FILES)
def test_a_deploy_takes_any_login_shell_with_all_that_it_says(visitor: Machine, shell: str) -> None:
    file, path = START_FILES[shell]
    visitor.sh(f"usermod --shell {path} {VISITOR}")
    if file:
        said = [f"echo {shlex.quote(line)}" for line in NOISE]
        latin1 = r"printf 'Gr\374\337 Gott\n'; printf '\374' >&2" if shell != "tcsh" else r"printf 'Gr\374\337 Gott\n'"
        write_start_file(visitor, file, ["umask 077", *said, latin1, "printf 'no end of a line'"])
    visitor.sh("printf 'Defaults umask=0077\nDefaults umask_override\n' > /etc/sudoers.d/odd")
    visitor.sh("hostname nobody-knows-this-name")
    try:
        run = visitor.deploy()
    finally:
        visitor.sh("hostname sandbox")
    assert run.succeeded, run.output
    assert run.changed == 0, run.output


@pytest.mark.distribution(0)
def test_all_that_a_deploy_makes_is_there_for_every_user_whatever_the_umask(visitor: Machine) -> None:
    visitor.sh("printf 'Defaults umask=0077\nDefaults umask_override\n' > /etc/sudoers.d/odd")
    visitor.sh("rm -rf /opt/local-llm /etc/local-llm /usr/local/bin/local-llm /etc/cron.d/local-llm")
    run = visitor.deploy()
    assert run.succeeded, run.output
    assert visitor.answers()
    assert "0c1e57098bba" in visitor.sh(f"su {VISITOR} -c 'local-llm version'")
    closed = visitor.sh(
        r"find /opt/local-llm /etc/local-llm \( -type d ! -perm -0005 -o ! -type l ! -perm -0004 \) -printf '%P\n'"
    )
    assert set(closed.split()) == {"models/incoming", "secrets"}


@pytest.mark.parametrize("mount", ["noexec", "size=64k"], ids=["runs no programs", "full"])
def test_a_deploy_needs_no_tmp(visitor: Machine, mount: str) -> None:
    visitor.sh(f"mount -t tmpfs -o {mount} tmpfs /tmp; head -c 1M /dev/zero > /tmp/full 2>/dev/null || true")
    try:
        run = visitor.deploy()
    finally:
        visitor.sh("umount -l /tmp")
    assert run.succeeded, run.output
    assert run.changed == 0, run.output


def test_a_locale_that_does_not_exist_is_only_noise(visitor: Machine) -> None:
    write_start_file(visitor, ".bashrc", ["export LC_ALL=xx_XX.UTF-8 LANG=nowhere LANGUAGE=; unset HOME TERM USER"])
    run = visitor.deploy("checks.py")
    assert run.succeeded, run.output


LOGIN_SHELLS = {
    "says that it is none": "/usr/sbin/nologin",
    "fails without a word": "/bin/false",
    "does nothing": "/bin/true",
    "ends in the middle": '#!/bin/sh\n/bin/sh "$@" | head -c 60',
    "shouts": '#!/bin/sh\n/bin/sh "$@" | tr a-z A-Z',
    "turns lines around": '#!/bin/sh\n/bin/sh "$@" | tac',
}


@pytest.mark.parametrize("shell", LOGIN_SHELLS.values(), ids=LOGIN_SHELLS.keys())
def test_a_host_that_does_not_answer_as_one_fails_alone_in_one_line(visitor: Machine, shell: str) -> None:
    if shell.startswith("#!"):
        visitor.sh(
            f"printf '%s\n' {shlex.quote(shell)} > /usr/local/bin/odd-shell; chmod 0755 /usr/local/bin/odd-shell"
        )
        shell = "/usr/local/bin/odd-shell"
    visitor.sh(f"usermod --shell {shell} {VISITOR}")
    run = pair(visitor).deploy("checks.py")
    visitor.sh("rm -f /usr/local/bin/odd-shell")
    assert_only_the_odd_one_failed(run, "The login shell has to run commands")


WATCHER = """
import os, pathlib
password = pathlib.Path("/run/password").read_bytes().strip()
seen = False
while not seen:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                seen = seen or password in line.read()
        except OSError:
            pass
pathlib.Path("/run/seen").touch()
"""


def test_a_sudo_that_asks_is_refused_before_a_password_is_sent(visitor: Machine) -> None:
    password = "seen-by-everybody"
    visitor.sh(f"echo '{VISITOR}:{password}' | chpasswd; mv /etc/sudoers.d/{VISITOR} /tmp/; usermod -aG sudo {VISITOR}")
    visitor.sh(f"echo {password} > /run/password")
    write_start_file(visitor, ".bashrc", ["sleep 0.2"])  # so long the shell's own command line is there to be read
    visitor.sh(f"systemd-run --quiet --unit=watch-command-lines python3 -c {shlex.quote(WATCHER)}")
    try:
        run = pair(visitor, _sudo_password=password).deploy("checks.py")
        seen = visitor.sh("ls /run/seen", check=False)
        accepted = replace(
            visitor, settings={**visitor.settings, "_sudo_password": password, "allow_sudo_password": True}
        )
        with_password = accepted.deploy("checks.py")
        seen_then = visitor.sh("ls /run/seen", check=False)
    finally:
        visitor.sh(
            f"systemctl stop watch-command-lines; rm -f /run/seen /run/password\n"
            f"mv /tmp/{VISITOR} /etc/sudoers.d/; gpasswd -d {VISITOR} sudo"
        )
    assert_only_the_odd_one_failed(run, "allow_sudo_password = True", "NOPASSWD")
    assert not seen
    assert with_password.succeeded, with_password.output
    assert seen_then, "the watcher sees nothing at all"
