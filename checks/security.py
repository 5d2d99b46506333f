"""Security: who listens where, the firewall, the sandbox of both units, and who may read which file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from checks import mounts, network, systemd, ufw
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_WORLD = 0o007

_SHARED = ("/run", "/run/lock", "/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp")  # noqa: S108 - looked at, not written to
"""Where programs of a machine meet, by sockets and by files."""


def listeners(config: Config, host: Host) -> Iterator[Result]:
    """API and metrics are reachable from this machine alone."""
    found = network.listeners(host)
    for port in config.ports:
        here = [listener for listener in found if listener.port == port]
        yield judge(
            f"port {port}",
            bool(here) and all(listener.loopback for listener in here),
            ", ".join(str(listener) for listener in here) or "nothing listens",
            "loopback only",
            f"Others than this machine may reach it. Stop it now: sudo systemctl stop {config.gateway_socket_unit} "
            f"{config.gateway_unit}; then deploy again"
            if here
            else f"Nobody holds it, so any user may take it. Start both: sudo systemctl start "
            f"{config.gateway_socket_unit} {config.gateway_unit}",
        )


def service_network(config: Config, host: Host) -> Iterator[Result]:
    """llama-server listens on no TCP port, and its own network has no way out."""
    unit = host.unit(config.service_unit)
    remedy = f"The sandbox is not in force. Look: systemctl cat {unit.name}; put it right: deploy again"
    if not unit.pid:
        for name in ("TCP ports of the service", "network of the service"):
            yield Result(
                name,
                Status.FAIL,
                "not running",
                "none",
                f"{unit.name} has no process to look at. Start it: sudo systemctl start {unit.name}",
            )
        return
    host.require_root("the sockets of a process")
    held = network.process_listeners(host, unit.pid)
    yield judge(
        "TCP ports of the service",
        not held,
        ", ".join(str(listener) for listener in held) or "none",
        "none",
        remedy,
    )
    private = host.link(f"/proc/{unit.pid}/ns/net") != host.link("/proc/self/ns/net")
    interfaces = network.interfaces(host, unit.pid)
    yield judge(
        "network of the service",
        private and set(interfaces) <= {"lo"},
        ("private: " if private else "shared with the host: ") + ", ".join(interfaces),
        "private: lo",
        remedy,
    )


def shared_places(config: Config, host: Host) -> Iterator[Result]:
    """Each unit has places of its own where programs of a machine meet, and sees of /run what it needs.

    `systemd-analyze security` does not rate this. Through /run, a unit without network could ask others to use theirs.
    """
    host.require_root("the mounts of a process")
    outside = mounts.of_process(host, pid=1)
    for unit in host.units(*config.seen_of_run):
        name = f"{unit.name} shares"
        seen = config.seen_of_run[unit.name]
        if not unit.pid:
            remedy = f"{unit.name} has no process to look at. Start it: sudo systemctl start {unit.name}"
            yield Result(name, Status.FAIL, "not running", "nothing else", remedy)
            continue
        inside = mounts.of_process(host, unit.pid)
        shared = [place for place in _SHARED if mounts.origin(inside, place) == mounts.origin(outside, place)]
        # systemd gives each unit with a mount namespace a directory there.
        more = mounts.below(inside, "/run") - {*seen, "/run/systemd/incoming"}
        if "/run" in shared:
            more.clear()  # these are the host's own
        yield judge(
            name,
            not shared and not more,
            " ".join(dict.fromkeys([*shared, *sorted(more)])) or "nothing else",
            "nothing else",
            "Code inside may talk to other programs of this machine, and through them leave its sandbox. Look: "
            f"systemctl cat {unit.name}; put it right: deploy again",
        )


def firewall(config: Config, host: Host) -> Iterator[Result]:
    """UFW drops what is not allowed, and names the ports of the deployment as denied."""
    if not config.firewall:
        yield Result("firewall", Status.PASS, "not managed", "not managed")
        return
    host.require_root("ufw")
    done = host.run("ufw", "status", "verbose")
    if done.code != 0:
        raise OSError(f"ufw does not answer: {done.message}")
    state = ufw.parse_status(done.stdout)
    yield judge(
        "firewall",
        state.active and state.default_incoming in ("deny", "reject"),
        f"active, incoming: {state.default_incoming}" if state.active else "inactive",
        "active, incoming: deny",
        "Ports of this machine are open to the network. Deploy again; it allows SSH before it enables ufw",
    )
    if not state.active:
        return
    for port in config.denied_ports:
        yield judge(
            f"firewall, port {port}",
            state.denies(port),
            "denied" if state.denies(port) else "no rule denies it, or another allows it first",
            "denied",
            f"See the rules in order: sudo ufw status numbered; close the port: sudo ufw insert 1 deny {port}/tcp",
        )


def exposure(config: Config, host: Host) -> Iterator[Result]:
    """How open each unit's sandbox is, by systemd's own measure (0 closed, 10 open)."""
    limits = {
        config.service_unit: config.exposure_limit_service,
        config.gateway_unit: config.exposure_limit_gateway,
    }
    for unit, limit in limits.items():
        done = host.run("systemd-analyze", "security", "--no-pager", unit)
        if "Overall exposure level" not in done.stdout:
            raise OSError(f"systemd-analyze does not rate {unit}: {done.message}")
        level = systemd.parse_exposure(done.stdout)
        yield judge(
            f"{unit} exposure",
            level <= limit,
            f"{level:.1f}",
            f"at most {limit:.1f}",
            f"The sandbox is weaker than deployed. What opens it: systemd-analyze security {unit}",
        )


def files(config: Config, host: Host) -> Iterator[Result]:
    """Mode and owner of each file of the deployment."""
    for wanted in config.files:
        limit = f"{wanted.mode:04o} {wanted.owner}:{wanted.group}"
        try:
            found = host.status(wanted.path)
        except FileNotFoundError:
            yield Result(wanted.path, Status.FAIL, "missing", limit, "A part of the deployment is gone. Deploy again.")
            continue
        except PermissionError:
            yield Result(
                wanted.path, Status.WARN, "not visible to this user", limit, "Ask as root: sudo local-llm test"
            )
            continue
        yield judge(
            wanted.path,
            (found.mode, found.owner, found.group) == (wanted.mode, wanted.owner, wanted.group),
            f"{found.mode:04o} {found.owner}:{found.group}",
            limit,
            f"Others may read or change it. Put it right: sudo chown {wanted.owner}:{wanted.group} {wanted.path} "
            f"&& sudo chmod {wanted.mode:04o} {wanted.path}",
        )


def socket(config: Config, host: Host) -> Iterator[Result]:
    """Only the gateway reaches llama-server's socket, in a directory where nobody but root can exchange it."""
    try:
        directory = host.status(str(PurePosixPath(config.socket).parent))
    except FileNotFoundError:
        pass  # nor is there a socket
    else:
        yield judge(
            "directory of the socket",
            (directory.mode, directory.owner, directory.group) == (0o750, "root", config.gateway_user),
            f"{directory.mode:04o} {directory.owner}:{directory.group}",
            f"0750 root:{config.gateway_user}",
            "Others may reach the model past the gateway, or put something else in the socket's place. Put it right: "
            f"sudo systemctl restart {config.service_unit}",
        )
    limit = f"socket, no access for others, {config.service_user}:{config.service_group}"
    try:
        found = host.status(config.socket)
    except FileNotFoundError:
        yield Result(
            "socket",
            Status.FAIL,
            "missing",
            limit,
            f"llama-server made no socket, or it was refused. Why: sudo journalctl -u {config.service_unit} -n 50",
        )
        return
    yield judge(
        "socket",
        found.is_socket
        and not found.mode & _WORLD
        and (found.owner, found.group) == (config.service_user, config.service_group),
        f"{'' if found.is_socket else 'not a socket, '}{found.mode:04o} {found.owner}:{found.group}",
        limit,
        "Any user of this machine may go around the gateway and its limits. Put it right: "
        f"sudo systemctl restart {config.service_unit}; if it stays, deploy again",
    )
