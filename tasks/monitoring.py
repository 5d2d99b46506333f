"""Checks on the host: the `checks` package, its limits, what cron runs, the fallback drill, the logs' rotation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pyinfra.api import deploy

from checks.contract import paths
from checks.contract.config import Cloud, Config, FileMode, Healing, Model, dump
from operations import files, removal, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import alerts, prometheus, units
from tasks.gateway import BODY_READER_FILE, CONFIGURATION_FILE, ROUTE_WORDS_FILE
from tasks.preflight import Target
from tasks.rendering import rendered
from tasks.service import ENVIRONMENT_FILE

CHECKS_SOURCE = Path(__file__).resolve().parent.parent / "checks"
GATEWAY_EXPOSURE_LIMIT = 1.5
"""What `systemd-analyze security` may say at most of the gateway (measured: 0.6, with a cloud 1.2)."""


def service_exposure_limit(user: str) -> float:
    """What it may say of llama-server (measured): systemd counts `nobody` as exposed, because others run as it too."""
    return 0.6 if user == "nobody" else 0.3


def checks_package() -> list[ManagedFile]:
    """The `checks` package as it is in this checkout."""
    return [
        ManagedFile(f"{paths.CHECKS}/{source.relative_to(CHECKS_SOURCE)}", source.read_text())
        for source in sorted(CHECKS_SOURCE.rglob("*.py"))
    ]


def _parts_of_the_checks() -> list[str]:
    """The package's modules, and where Python keeps what it has read of them."""
    modules = [file.path for file in checks_package()]
    folders = dict.fromkeys(str(PurePosixPath(module).parent) for module in modules)
    return [*modules, *(f"{folder}/__pycache__" for folder in folders)]


def checks_configuration(target: Target) -> ManagedFile:
    """What the checks compare the host with."""
    return ManagedFile(paths.CHECKS_CONFIGURATION, dump(config(target)))


def config(target: Target) -> Config:
    """What the host is to be like."""
    settings = target.settings
    model = settings.selected_model
    return Config(
        api_url=f"http://127.0.0.1:{settings.api_port}",
        admin_socket=paths.GATEWAY_ADMIN_SOCKET,
        api_socket=paths.GATEWAY_API_SOCKET,
        cloud=_cloud(settings),
        drill_weekly=settings.drill_weekly,
        metrics_url=f"http://127.0.0.1:{settings.metrics_port}/metrics",
        socket=paths.SOCKET,
        service_unit=paths.SERVICE_UNIT,
        gateway_unit=paths.GATEWAY_UNIT,
        service_user=settings.service_user,
        service_group=settings.service_group,
        gateway_user=paths.GATEWAY_USER,
        model=Model(model.name, target.model_file, model.sha256, model.size_bytes),
        llama_cpp_commit=settings.llama_cpp_commit,
        release=target.release.id,
        context_tokens=settings.context_tokens,
        memory_max_mib=settings.memory_max_mib,
        memory_goal_mib=settings.memory_goal_mib,
        swap_file_mib=settings.swap_file_mib,
        response_limit_seconds=settings.response_limit_seconds,
        uptime_goal_percent=settings.uptime_goal_percent,
        alerts=alerts.thresholds(settings),
        healing=Healing(settings.heal_after_failures, settings.heal_restarts_per_hour),
        utility_goal_percent=settings.utility_goal_percent,
        prometheus=prometheus.watched(settings),
        exposure_limit_service=service_exposure_limit(settings.service_user),
        exposure_limit_gateway=GATEWAY_EXPOSURE_LIMIT,
        seen_of_run={unit: units.seen_of_run(unit) for unit in _running(settings)},
        firewall=settings.firewall,
        denied_ports=tuple(settings.loopback_ports.values()),
        health_interval_minutes=settings.health_interval_minutes,
        health_probe=settings.health_probe,
        samples_retention_days=settings.samples_retention_days,
        textfile_directory=settings.textfile_directory,
        log_retention_days=settings.log_retention_days,
        files=tuple(FileMode(path, mode, "root", "root") for path, mode in _watched(target).items()),
    )


def _watched(target: Target) -> dict[str, int]:
    """The files whose permissions the checks look at, with these."""
    plain = [
        "/etc/systemd/system/localllm.slice",
        f"/etc/systemd/system/{paths.SERVICE_UNIT}",
        f"/etc/systemd/system/{paths.GATEWAY_UNIT}",
        f"/etc/systemd/system/{paths.GATEWAY_SOCKET_UNIT}",
        paths.PUBLISH_SOCKET,
        ENVIRONMENT_FILE,
        CONFIGURATION_FILE,
        BODY_READER_FILE,
        ROUTE_WORDS_FILE,
        target.model_file,
        f"{paths.CURRENT}/bin/llama-server",
        paths.ROOT_RUNTIME,
    ]
    other = {paths.PUBLISH_SOCKET: 0o755, f"{paths.CURRENT}/bin/llama-server": 0o755, paths.ROOT_RUNTIME: 0o700}
    return {path: other.get(path, 0o644) for path in plain}


def _running(settings: Settings) -> list[str]:
    """The units that have a process at any time."""
    return [paths.SERVICE_UNIT, paths.GATEWAY_UNIT, *(paths.PROMETHEUS_UNITS if settings.prometheus else ())]


def cron_file(settings: Settings) -> ManagedFile:
    """What runs by itself: the health check, and where there is a cloud the drill, early on Sundays."""
    return rendered(
        "/etc/cron.d/local-llm",
        health_interval_minutes=settings.health_interval_minutes,
        drill=settings.drill_weekly and settings.cloud_url is not None,
    )


def _cloud(settings: Settings) -> Cloud | None:
    if settings.cloud_url is None:
        return None
    return Cloud(settings.cloud_url, settings.cloud_api, settings.cloud_models, settings.cloud_first_byte_seconds)


@deploy("Monitoring")
def install(target: Target) -> None:
    """Install the checks, the `local-llm` command, the cron job and the rotation of the logs."""
    settings = target.settings
    files.managed(
        name="Install the checks",
        files=[
            *checks_package(),
            checks_configuration(target),
            rendered("/usr/local/bin/local-llm", mode="0755", root=paths.ROOT),
            units.hardened(paths.DRILL_UNIT),
        ],
    )
    removal.removed(
        name="Remove what is no part of the checks any more", patterns=[paths.CHECKS], kept=_parts_of_the_checks()
    )
    systemd.loaded(name="Let systemd know the drill", unit=paths.DRILL_UNIT)
    alerts.install(settings=settings)
    files.managed(
        name="Rotate the logs",
        files=[
            rendered(
                "/etc/logrotate.d/local-llm",
                health_log=paths.HEALTH_LOG,
                metrics_log=paths.METRICS_LOG,
                log_retention_days=settings.log_retention_days,
            )
        ],
        validate="logrotate --debug --state /dev/null {}",
    )
    files.managed(
        name="Check health by cron",
        files=[cron_file(settings)],
    )
