"""A Docker engine that answers: the one that runs already, or on a bare Debian or Ubuntu machine one that is
installed and started here.

A machine whose `docker info` answers is left exactly as it is.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sandbox.common import SandboxError, cache_dir, fail, in_background, last_lines, only_one, run, say

START_TIMEOUT_SECONDS = 60
INFO_TIMEOUT_SECONDS = 20
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def engine_problem() -> str | None:
    """Why `docker info` does not answer; None if it does."""
    if shutil.which("docker") is None:
        return "the docker command is not installed"
    # Without a template that uses the server's data, `docker info` exits 0 even when no server answers.
    result = run(
        ["docker", "info", "--format", "{{.ServerVersion}}"], timeout_seconds=INFO_TIMEOUT_SECONDS, check=False
    )
    if result.returncode == 0 and result.stdout.strip():
        return None
    return last_lines(result.stderr, 1)


def ensure_engine() -> None:
    """Make sure that a Docker engine answers.

    Installs and starts one only as root on Debian or Ubuntu. Raises SandboxError with the way to install
    Docker elsewhere.
    """
    with only_one("engine"):
        problem = engine_problem()
        if problem is not None:
            _set_up_engine(problem)


def _set_up_engine(problem: str) -> None:
    if not is_root_on_debian():
        raise SandboxError(
            f"Docker does not answer ({problem}). Install and start it (https://docs.docker.com/engine/install/), "
            "check that `docker info` works as this user, and run this again."
        )
    say(f"  Docker does not answer here ({problem}); this is root on Debian or Ubuntu, so it is set up now.")
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        install_packages(docker_packages())
    start_engine()


def ensure_debootstrap() -> None:
    """Make sure that debootstrap can run (it needs root); SandboxError where it cannot."""
    if os.geteuid() != 0:
        raise SandboxError(
            "Making a Debian image takes root (debootstrap). Run this as root, or let Docker reach its registry: "
            "ubuntu24.04 needs no root."
        )
    if shutil.which("debootstrap") and Path(DEBIAN_KEYRING).exists():
        return
    if not is_root_on_debian():
        raise SandboxError("debootstrap or Debian's archive keyring is missing. Install both and run this again.")
    install_packages(["debootstrap", "debian-archive-keyring"])


def is_root_on_debian() -> bool:
    """Whether apt-get may be used here without asking anyone."""
    return os.geteuid() == 0 and Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def install_packages(packages: list[str]) -> None:
    """apt-get install, without recommended packages."""
    say(f"  Installing {', '.join(packages)} with apt-get.")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    argv = [
        "apt-get",
        "install",
        "-q",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *packages,
    ]
    with only_one("apt-get"):
        run(["apt-get", "update", "-q"], timeout_seconds=600, env=env)
        run(argv, timeout_seconds=1200, env=env)


def docker_packages() -> list[str]:
    """The distribution's engine. Debian 13 ships the docker command as a package of its own."""
    split = run(["apt-cache", "show", "docker-cli"], check=False).returncode == 0
    return ["docker.io", "iptables", *(["docker-cli"] if split else [])]


def start_engine() -> None:
    """Start dockerd, through systemd where that runs, else in the background; wait until it answers."""
    if Path("/run/systemd/system").exists():
        run(["systemctl", "start", "docker"], timeout_seconds=START_TIMEOUT_SECONDS)
        _wait_for_engine(None, None)
        return
    log = cache_dir() / "dockerd.log"
    argv = ["dockerd", f"--mtu={uplink_mtu()}"]
    say(f"  Starting {' '.join(argv)} in the background (log: {log}).")
    _wait_for_engine(in_background(argv, log), log)


def _wait_for_engine(process: subprocess.Popen[bytes] | None, log: Path | None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if engine_problem() is None:
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.5)
    hint = (
        f"Last lines of {log}: {last_lines(log.read_text(errors='replace'))}" if log else "See `journalctl -u docker`."
    )
    raise SandboxError(f"dockerd does not answer after {START_TIMEOUT_SECONDS} s at most. {hint}")


def uplink_mtu(route_table: Path = Path("/proc/net/route"), devices: Path = Path("/sys/class/net")) -> int:
    """MTU of the default route's interface; 1500 if there is none.

    Containers' packets larger than the uplink's MTU vanish where ICMP is filtered: downloads then hang.
    """
    for line in route_table.read_text().splitlines()[1:]:
        interface, destination = line.split()[:2]
        if destination == "00000000":
            return int((devices / interface / "mtu").read_text())
    return 1500


def main() -> int:
    """`python -m sandbox.engine`: make sure that a Docker engine answers."""
    try:
        ensure_engine()
    except SandboxError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
