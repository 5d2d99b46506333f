"""`local-llm status` and `local-llm version`: what is there, on one screen, as far as this user may see it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from checks import __version__, cgroup, cloud, drill, gateway, monitoring, probe, route
from checks.contract.paths import CURRENT
from checks.host import MIB
from checks.service import duration, read_manifest

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host
    from checks.systemd import Unit


def lines(config: Config, host: Host) -> list[str]:
    """The screen; a part that this user may not see says so."""
    rows = [(unit.name, _unit(host, unit)) for unit in _units(config, host)]
    rows += [
        ("API", _api(config)),
        ("cloud", _cloud(config, host)),
        ("memory", _memory(config, host)),
        ("model", _model(config, host)),
        ("release", _release(config, host)),
        ("last health check", _last_health(config, host)),
        ("last fallback drill", _last_drill(host)),
    ]
    width = max(len(label) for label, _ in rows)
    screen = [f"{label:{width}}  {text}" for label, text in rows]
    if not host.is_root:
        screen += ["", "Some facts need root: sudo local-llm status. All checks: sudo local-llm test"]
    return screen


def versions(config: Config, host: Host) -> dict[str, Any]:
    """Versions of everything deployed; null where this user may not look or nothing is installed."""
    try:
        manifest = read_manifest(host)
    except OSError:
        manifest = {}
    return {
        "checks": __version__,
        "release": manifest.get("release"),
        "llama_cpp_commit": manifest.get("commit"),
        "llama_server": _server_version(host),
        "model": {
            "name": config.model.name,
            "path": config.model.path,
            "sha256": config.model.sha256,
            "size_bytes": config.model.size_bytes,
        },
    }


def _server_version(host: Host) -> str | None:
    try:
        done = host.run(str(host.path(f"{CURRENT}/bin/llama-server")), "--version", timeout_seconds=10)
    except OSError:
        return None
    said = (done.stdout + done.stderr).strip().splitlines()
    return said[0].removeprefix("version: ") if said and done.code == 0 else None


def _units(config: Config, host: Host) -> list[Unit]:
    return host.units(config.service_unit, config.gateway_unit)


def _unit(host: Host, unit: Unit) -> str:
    if unit.load_state == "not-found":
        return "not installed: deploy to this host"
    if not unit.active:
        reason = f", {unit.result}" if unit.result not in ("", "success") else ""
        return f"{unit.active_state} ({unit.sub_state}{reason}): sudo journalctl -u {unit.name} -n 50"
    parts = [unit.active_state]
    uptime = unit.uptime_seconds(host.monotonic())
    if uptime is not None:
        parts.append(f"up {duration(uptime)}")
    if unit.restarts:
        parts.append(f"restarted {unit.restarts} times after a crash")
    if unit.file_state != "enabled":
        parts.append(f"not started at boot: sudo systemctl enable {unit.name}")
    return ", ".join(parts)


def _api(config: Config) -> str:
    answer = probe.over_tcp(config.api_url, timeout_seconds=5)
    if answer.ok:
        return f"answers in {answer.milliseconds:.0f} ms at {config.api_url}"
    return f"{config.api_url}: {answer.detail}. More: sudo local-llm test"


def _cloud(config: Config, host: Host) -> str:
    """Up, down and why, or resting: the gateway tells every user the state, and root the reason."""
    if config.cloud is None:
        return "none configured: everything is answered on this machine"
    try:
        state = route.explain(config.api_url, b"{}").cloud
        if state != "down":
            return f"{route.cloud_words(state)}, {config.cloud.url}"
        found = cloud.diagnose(config, config.cloud, gateway.server(config, host, gateway.CLOUD))
    except PermissionError:
        return f"down, {config.cloud.url} (why: sudo local-llm status)"
    except (route.RouteError, OSError) as error:
        return f"not known: {error}"
    return f"{found.text}, {config.cloud.url}. {found.remedy}"


def _memory(config: Config, host: Host) -> str:
    unit = host.unit(config.service_unit)
    if not unit.pid:
        return f"not running (limit {config.memory_max_mib} MiB)"
    accounted = cgroup.read(host, unit)
    parts = []
    try:
        parts.append(f"{host.rss_bytes(unit.pid) / MIB:.0f} MiB resident")
    except OSError:
        parts.append("resident memory not visible")
    if accounted.current_bytes is not None:
        parts.append(f"{accounted.current_bytes / MIB:.0f} MiB with the file cache charged to it")
    if accounted.peak_bytes is not None:
        parts.append(f"{accounted.peak_bytes / MIB:.0f} MiB at its highest")
    if accounted.stalled_percent:
        parts.append(f"waited for memory for {accounted.stalled_percent:.0f} % of the last minute")
    return ", ".join(parts) + f" (goal {config.memory_goal_mib} MiB, limit {config.memory_max_mib} MiB)"


def _model(config: Config, host: Host) -> str:
    model = config.model
    try:
        state = "" if host.exists(model.path) else f", but {model.path} is missing: deploy again"
    except PermissionError:
        state = ""
    return f"{model.name}, {model.size_bytes / 1e6:.0f} MB, context {config.context_tokens} tokens{state}"


def _release(config: Config, host: Host) -> str:
    try:
        manifest = read_manifest(host)
    except PermissionError:
        return f"{config.release} (as deployed; the installed one needs sudo)"
    if not manifest:
        return f"none installed at {CURRENT}: deploy to this host"
    return f"{manifest.get('release')}, llama.cpp {str(manifest.get('commit'))[:12]}"


def _last_health(config: Config, host: Host) -> str:
    try:
        record = monitoring.read_last_health(host)
    except PermissionError:
        return "the log needs sudo"
    if record is None:
        return f"none yet; cron writes one every {config.health_interval_minutes} minutes"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.time))
    age = duration(max(0.0, host.now() - record.time))
    reason = f": {record.values['reason']}" if "reason" in record.values else ""
    return f"{'OK' if record.ok else 'FAIL'}, {age} ago ({when}){reason}"


def _last_drill(host: Host) -> str:
    try:
        found = drill.read_record(host)
    except PermissionError:
        return "the record needs sudo"
    if found is None:
        return "none yet: sudo local-llm drill"
    age = duration(max(0.0, host.now() - found.time))
    wrong = [drill.sentence(side) for side in found.sides if not side.ok]
    return f"NOT OK, {age} ago: {'; '.join(wrong)}" if wrong else f"OK, {age} ago"
