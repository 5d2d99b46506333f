"""The two units, the user they run as, and the versions of what runs: build, model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from checks.contract.paths import CURRENT, RELEASES
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.systemd import Unit


def units(config: Config, host: Host) -> Iterator[Result]:
    """Both units and the gateway's sockets are there now and after a reboot, with the unit file that is on disk."""
    for unit in host.units(config.service_unit, config.gateway_unit, config.gateway_socket_unit):
        enabled = unit.file_state == "enabled"
        yield judge(
            unit.name,
            unit.active and enabled,
            f"{unit.active_state} ({unit.sub_state}), {unit.file_state or unit.load_state}",
            "active, enabled",
            f"It is down. Why: sudo journalctl -u {unit.name} -n 50; start it: sudo systemctl start {unit.name}"
            if not unit.active
            else f"It will not start after a reboot: sudo systemctl enable {unit.name}",
        )
        if unit.needs_reload:
            yield Result(
                f"{unit.name} unit file",
                Status.WARN,
                "changed since it was loaded",
                "as loaded",
                f"It runs with old settings: sudo systemctl daemon-reload && sudo systemctl restart {unit.name}",
            )


def restarts(config: Config, host: Host) -> Iterator[Result]:
    """Restarts by systemd after a crash, since the unit was last started on purpose; and how long it has run."""
    for unit in host.units(config.service_unit, config.gateway_unit):
        uptime = unit.uptime_seconds(host.monotonic())
        since = f", up {duration(uptime)}" if uptime is not None else ""
        yield judge(
            f"{unit.name} restarts",
            unit.restarts == 0,
            f"{unit.restarts}{since}",
            "0",
            f"It crashed and was started again. Why: sudo journalctl -u {unit.name} | grep -iE 'exit|kill|fail'",
            otherwise=Status.WARN,
        )


def users(config: Config, host: Host) -> Iterator[Result]:
    """Each process runs as its own unprivileged user."""
    for unit, expected in zip(
        host.units(config.service_unit, config.gateway_unit),
        (config.service_user, config.gateway_user),
        strict=True,
    ):
        name = f"{unit.name} user"
        if not unit.pid:
            yield _not_running(unit, name, expected)
            continue
        user = host.user(unit.pid)
        yield judge(
            name,
            user == expected and user != "root",
            user,
            expected,
            f"It runs with other rights than planned. Look: systemctl cat {unit.name}; put it right: deploy again",
        )


def release(config: Config, host: Host) -> Iterator[Result]:
    """`current` is the configured release, built from the configured commit, and it is what runs."""
    remedy = "The installed build is not the deployed one. Deploy again."
    if not host.exists(CURRENT):
        yield Result("release", Status.FAIL, f"{CURRENT} leads nowhere", config.release, remedy)
        return
    target = str(PurePosixPath(CURRENT).parent / host.link(CURRENT))
    wanted = f"{RELEASES}/{config.release}"
    yield judge("release", target == wanted, target.removeprefix(f"{RELEASES}/"), config.release, remedy)

    manifest = read_manifest(host)
    yield judge(
        "llama.cpp commit",
        manifest.get("commit") == config.llama_cpp_commit and manifest.get("release") == config.release,
        f"{str(manifest.get('commit'))[:12]} (release {manifest.get('release')})",
        config.llama_cpp_commit[:12],
        remedy,
    )

    unit = host.unit(config.service_unit)
    name = "running build"
    if not unit.pid:
        yield _not_running(unit, name, config.release)
        return
    running = host.link(f"/proc/{unit.pid}/exe")
    yield judge(
        name,
        running == f"{wanted}/bin/llama-server",
        running.removeprefix(f"{RELEASES}/"),
        config.release,
        f"The process was started from another build: sudo systemctl restart {unit.name}",
    )


def model_file(config: Config, host: Host) -> Iterator[Result]:
    """The model's stamp, left when its checksum was verified, still fits the file and the configuration.

    A gigabyte is not hashed again: size and modification time stand for it.
    """
    model = config.model
    found = host.status(model.path)
    try:
        stamp = json.loads(host.read(model.stamp_path))
        facts = {key: stamp[key] for key in ("sha256", "size_bytes", "mtime_ns")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        facts = {}
    wrong = []
    if not facts:
        wrong.append("no usable stamp")
    elif facts["sha256"] != model.sha256:
        wrong.append(f"stamp names sha256 {str(facts['sha256'])[:12]}…")
    elif (facts["size_bytes"], facts["mtime_ns"]) != (found.size_bytes, found.mtime_ns):
        wrong.append("changed since it was verified")
    if found.size_bytes != model.size_bytes:
        wrong.append(f"{found.size_bytes} bytes")
    yield judge(
        "model file",
        not wrong,
        ", ".join(wrong) or f"{found.size_bytes} bytes, sha256 {model.sha256[:12]}… when verified",
        f"{model.size_bytes} bytes, {model.sha256[:12]}…",
        f"The file may not be the published model. Compare: sha256sum {model.path}; deploy again to replace it",
    )


def running_model(config: Config, host: Host) -> Iterator[Result]:
    """The process was started with the configured model."""
    unit = host.unit(config.service_unit)
    name, wanted = "running model", PurePosixPath(config.model.path).name
    if not unit.pid:
        yield _not_running(unit, name, wanted)
        return
    host.require_root("the environment of a process")
    running = model_argument(
        host.read(f"/proc/{unit.pid}/cmdline").split("\0"), host.read(f"/proc/{unit.pid}/environ").split("\0")
    )
    yield judge(
        name,
        running is not None and _same_file(host, running, config.model.path),
        PurePosixPath(running).name if running else "none named",
        wanted,
        f"Another model is loaded: sudo systemctl restart {unit.name}",
    )


def model_argument(arguments: list[str], environment: list[str]) -> str | None:
    """The model path llama-server was given; an argument outranks LLAMA_ARG_MODEL, as in llama.cpp."""
    for position, argument in enumerate(arguments):
        if argument in ("-m", "--model") and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith("--model="):
            return argument.removeprefix("--model=")
    for variable in environment:
        if variable.startswith("LLAMA_ARG_MODEL="):
            return variable.removeprefix("LLAMA_ARG_MODEL=")
    return None


def read_manifest(host: Host) -> dict[str, object]:
    """release.json of the current release; empty if it is not a JSON object."""
    try:
        manifest = json.loads(host.read(f"{CURRENT}/release.json"))
    except (FileNotFoundError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def duration(seconds: float) -> str:
    """For a person: "3 d 4 h", "2 h 5 min", "40 s"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min"
    return f"{whole} s"


def _same_file(host: Host, path: str, other: str) -> bool:
    return path == other or host.path(path).resolve() == host.path(other).resolve()


def _not_running(unit: Unit, name: str, limit: str) -> Result:
    return Result(
        name,
        Status.FAIL,
        "not running",
        limit,
        f"{unit.name} has no process to look at. Start it: sudo systemctl start {unit.name}",
    )
