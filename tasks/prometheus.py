"""Prometheus, node exporter and Alertmanager beside the model, as units of ours: the distribution's stay off.

The packages bring services that listen on every address. They are masked before they are installed, and what runs are
our units, with our configuration, data and limits: nothing of the packages is changed, and all of it can go again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyinfra import host
from pyinfra.api import deploy

from checks.memory import STALLED_PERCENT
from facts.systemd import STAMP_VARIABLE
from operations import files, packages, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import paths, units
from tasks.alerts import operators_webhook
from tasks.packages import PROMETHEUS as PACKAGES
from tasks.planning import ALERTMANAGER_MIB, NODE_EXPORTER_MIB
from tasks.rendering import rendered

CONFIGURATION_FILE = f"{paths.CONFIGURATION}/prometheus.yml"
RULES_FILE = f"{paths.CONFIGURATION}/prometheus-rules.yml"
ALERTMANAGER_FILE = f"{paths.SECRETS}/alertmanager.yml"
RECORD = f"{paths.STATE}/prometheus-packages"
"""Names of the packages that were not there before: only these are ever removed."""
SLICE = "localllmprometheus.slice"
KEPT_OFF = dict(zip(PACKAGES, paths.PROMETHEUS_DISTRIBUTION_UNITS, strict=True))
READY_SECONDS = 60
"""Prometheus first reads what it wrote last, some seconds after a crash; 5 s later it knows what it is to ask."""
GO_MEMORY_PERCENT = 85
"""Share of a unit's limit from which Go collects garbage all the time rather than grow."""
NO_REMINDER_HOURS = 24 * 365


@dataclass(frozen=True)
class Watcher:
    """One of the three services: its unit, port and memory limit. Ready is once the answer at a path has some text."""

    unit: str
    port: int
    memory_max_mib: int
    ready_path: str
    ready_text: str = ""

    @property
    def ready(self) -> str:
        """A shell command that succeeds once it is ready."""
        url = f"http://127.0.0.1:{self.port}{self.ready_path}"
        return f"curl -fsS -m 2 '{url}' 2>/dev/null | grep -qF -- '{self.ready_text}'"


def watchers(settings: Settings) -> tuple[Watcher, Watcher, Watcher]:
    """Prometheus, Alertmanager and node exporter: what the last two are known to need, and the rest for the first."""
    rest = settings.prometheus_memory_max_mib - ALERTMANAGER_MIB - NODE_EXPORTER_MIB
    return (
        Watcher(paths.PROMETHEUS_UNITS[0], settings.prometheus_port, rest, "/api/v1/targets", '"job":"gateway"'),
        Watcher(paths.PROMETHEUS_UNITS[1], settings.alertmanager_port, ALERTMANAGER_MIB, "/-/ready"),
        Watcher(paths.PROMETHEUS_UNITS[2], settings.node_exporter_port, NODE_EXPORTER_MIB, "/"),
    )


def listening(settings: Settings) -> list[dict[str, object]]:
    """The services and their ports, Prometheus first, in the format that checks/config.py reads."""
    return [{"unit": each.unit, "port": each.port} for each in watchers(settings)] if settings.prometheus else []


def configuration_file(settings: Settings, host_name: str) -> ManagedFile:
    """prometheus.yml: what is scraped, on this machine alone."""
    return rendered(
        CONFIGURATION_FILE,
        host_name=host_name,
        scrape_seconds=settings.prometheus_scrape_seconds,
        **settings.model_dump(
            include={"metrics_port", "prometheus_port", "alertmanager_port", "node_exporter_port"},
        ),
    )


def rules_file(settings: Settings) -> ManagedFile:
    """prometheus-rules.yml: the host's own alerts, from the same thresholds, and what these cannot tell."""
    return rendered(
        RULES_FILE,
        memory_stalled_percent=STALLED_PERCENT,
        **settings.model_dump(
            include={
                "memory_goal_mib",
                "response_limit_seconds",
                "health_interval_minutes",
                "uptime_goal_percent",
                "alert_disk_free_percent",
                "alert_restarts_per_hour",
                "alert_after_checks",
                "alert_clear_after_checks",
            }
        ),
    )


def alertmanager_file(settings: Settings, webhook: str | None) -> ManagedFile:
    """alertmanager.yml: to the webhook of the host's own alerts, where there is one, goes what these cannot tell.

    Of its headers only `Authorization` goes along: Debian 12's Alertmanager sends no other.
    """
    address, *headers = (webhook or "").strip().splitlines() or [""]
    pairs = (line.partition(":") for line in headers)
    authorization = {name.strip().lower(): value.strip() for name, _, value in pairs}.get("authorization", "")
    kind, _, credentials = authorization.partition(" ")
    return rendered(
        ALERTMANAGER_FILE,
        mode="0600",
        address=address,
        format=settings.alert_webhook_format,
        authorization={"type": kind, "credentials": credentials} if credentials else None,
        repeat_hours=_repeat_hours(settings),
    )


def slice_file(settings: Settings) -> ManagedFile:
    """The slice of the three services, which holds them to their limit together."""
    return rendered(f"/etc/systemd/system/{SLICE}", memory_max_mib=settings.prometheus_memory_max_mib)


def stamped_units(settings: Settings, host_name: str, webhook: str | None) -> list[tuple[Watcher, str, ManagedFile]]:
    """Each service with its stamp and its unit, those that are asked before the one that asks."""
    prometheus, alertmanager, node_exporter = watchers(settings)
    asks = rules_file(settings).content + configuration_file(settings, host_name).content
    own: dict[Watcher, tuple[str, dict[str, Any]]] = {
        node_exporter: ("", {"textfile_directory": settings.textfile_directory}),
        alertmanager: (
            alertmanager_file(settings, webhook).sha256,
            {
                "configuration_file": ALERTMANAGER_FILE,
                "sends": webhook is not None,
                "resolves": webhook is not None,
                # It has to remember what it has sent for longer than it waits to send it again.
                "retention_hours": 2 * _repeat_hours(settings),
            },
        ),
        prometheus: (
            asks,
            {
                "retention_days": settings.prometheus_retention_days,
                "storage_mib": settings.prometheus_storage_mib,
            },
        ),
    }
    units = []
    for watcher, (configured, variables) in own.items():
        blank = _unit_file(watcher, "", variables)
        stamp = systemd.stamp(blank.content, slice_file(settings).content, configured)
        units.append((watcher, stamp, _unit_file(watcher, stamp, variables)))
    return units


def _unit_file(watcher: Watcher, stamp: str, variables: dict[str, Any]) -> ManagedFile:
    return units.hardened(
        watcher.unit,
        port=watcher.port,
        memory_max_mib=watcher.memory_max_mib,
        go_memory_mib=watcher.memory_max_mib * GO_MEMORY_PERCENT // 100,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
        **variables,
    )


def _repeat_hours(settings: Settings) -> int:
    return settings.alert_reminder_hours or NO_REMINDER_HOURS


@deploy("Prometheus")
def run(settings: Settings) -> None:
    """Run the three services with their configuration, or where `prometheus` is off, leave nothing of them."""
    if settings.prometheus:
        _install(settings)
    else:
        _remove(settings)


def _install(settings: Settings) -> None:
    packages.installed(
        name="Install Prometheus",
        packages=PACKAGES,
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=KEPT_OFF,
        record=RECORD,
    )
    webhook = operators_webhook(settings)
    files.managed(name="Write Prometheus' rules", files=[rules_file(settings)], validate="promtool check rules {}")
    files.managed(
        name="Write Prometheus' configuration",
        files=[configuration_file(settings, host.name)],
        validate="promtool check config {}",
    )
    files.secret(name="Write Alertmanager's configuration", file=alertmanager_file(settings, webhook))
    units = stamped_units(settings, host.name, webhook)
    files.managed(name="Write the units of Prometheus", files=[slice_file(settings), *(file for _, _, file in units)])
    for watcher, stamp, _ in units:
        systemd.service(
            name=f"Run {watcher.unit.removesuffix('.service')}",
            unit=watcher.unit,
            stamp=stamp,
            ready=watcher.ready,
            ready_timeout_seconds=READY_SECONDS,
        )


@deploy("Prometheus")
def remove(settings: Settings) -> None:
    """Leave nothing of the three services."""
    _remove(settings)


def _remove(settings: Settings) -> None:
    systemd.removed(
        name="Remove the services of Prometheus", units=[*(watcher.unit for watcher in watchers(settings)), SLICE]
    )
    packages.removed(
        name="Remove Prometheus' packages",
        packages=PACKAGES,
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=KEPT_OFF,
        record=RECORD,
    )
    files.absent(name="Remove Prometheus' configuration", paths=[CONFIGURATION_FILE, RULES_FILE, ALERTMANAGER_FILE])
