"""Prometheus and node exporter beside the model, as units of ours: the distribution's stay off.

The packages bring services that listen on every address. They are masked before they are installed, and what runs are
our units, with our configuration, data and limits: nothing of the packages is changed, and all of it can go again.

The two share a network of their own. Out of it leads one way, to the gateway's metrics; into it another one, for root
and the gateway, which serves Prometheus to people behind its rules about hosts, origins and methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyinfra import host
from pyinfra.api import deploy

from checks.alerts import RELAYED_KEY
from checks.contract import paths
from checks.contract.config import Prometheus
from checks.memory import STALLED_PERCENT
from facts.systemd import STAMP_VARIABLE
from operations import files, packages, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import units
from tasks.packages import PROMETHEUS as PACKAGES
from tasks.planning import NODE_EXPORTER_MIB, PROXY_MIB
from tasks.rendering import rendered

CONFIGURATION_FILE = f"{paths.CONFIGURATION}/prometheus.yml"
RULES_FILE = f"{paths.CONFIGURATION}/prometheus-rules.yml"
RECORD = f"{paths.STATE}/prometheus-packages"
"""Names of the packages that were not there before: only these are ever removed."""
SLICE = "localllmprometheus.slice"
KEPT_OFF = dict(zip(PACKAGES, paths.PROMETHEUS_DISTRIBUTION_UNITS, strict=True))
READY_SECONDS = 60
"""Prometheus first reads what it wrote last, some seconds after a crash; 5 s later it knows what it is to ask."""
GO_MEMORY_PERCENT = 85
"""Share of a unit's limit from which Go collects garbage all the time rather than grow."""
RELAY_TIMER = f"{paths.ALERT_RELAY}.timer"
ALERTMANAGER_UNIT = "local-llm-alertmanager.service"
ALERTMANAGER_FILE = f"{paths.SECRETS}/alertmanager.yml"
ALERTMANAGER_KEPT_OFF = {"prometheus-alertmanager": "prometheus-alertmanager.service"}
"""What a host may have of a deploy that ran an Alertmanager: it would show the webhook to every user, and it goes."""


@dataclass(frozen=True)
class Watcher:
    """A service: its unit, its memory limit, and a shell command that succeeds once it answers."""

    unit: str
    memory_max_mib: int
    ready: str = "true"


@dataclass(frozen=True)
class Way:
    """A way out of or into the network: a socket unit, and the service that passes bytes on."""

    name: str
    service: Watcher

    @property
    def socket_unit(self) -> str:
        """The unit that holds the socket."""
        return f"{self.name}.socket"

    @property
    def stamp_file(self) -> str:
        """Where the socket's stamp is."""
        return f"{paths.ROOT_RUNTIME}/{self.name}.stamp"


def watchers(settings: Settings) -> tuple[Watcher, Watcher]:
    """Prometheus and node exporter: what the last one and the ways are known to need, and the rest for the first."""
    rest = settings.prometheus_memory_max_mib - NODE_EXPORTER_MIB - PROXY_MIB * len(paths.PROMETHEUS_WAYS)
    url = f"http://localhost{paths.PROMETHEUS_PATH}/api/v1/targets"
    asked = f"curl -fsS -m 2 --unix-socket {paths.PROMETHEUS_SOCKET} {url} 2>/dev/null"
    return (
        Watcher(paths.PROMETHEUS_UNITS[0], rest, f"""{asked} | grep -qF -- '"job":"gateway"'"""),
        Watcher(paths.PROMETHEUS_UNITS[1], NODE_EXPORTER_MIB),
    )


def ways() -> tuple[Way, ...]:
    """The way out, whose socket unit makes the network, and the way in."""
    return tuple(Way(name, Watcher(f"{name}.service", PROXY_MIB)) for name in paths.PROMETHEUS_WAYS)


def watched(settings: Settings) -> Prometheus | None:
    """How the checks find it."""
    if not settings.prometheus:
        return None
    sockets = [way.socket_unit for way in ways()]
    return Prometheus(paths.PROMETHEUS_SOCKET, (*paths.PROMETHEUS_UNITS, *sockets, RELAY_TIMER))


def configuration_file(settings: Settings, host_name: str) -> ManagedFile:
    """prometheus.yml: what is scraped, on this machine alone."""
    return rendered(
        CONFIGURATION_FILE,
        host_name=host_name,
        scrape_seconds=settings.prometheus_scrape_seconds,
        prometheus_path=paths.PROMETHEUS_PATH,
        **settings.model_dump(include={"metrics_port", "prometheus_port", "node_exporter_port"}),
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


def slice_file(settings: Settings) -> ManagedFile:
    """The slice of the services, which holds them to their limit together."""
    return rendered(f"/etc/systemd/system/{SLICE}", memory_max_mib=settings.prometheus_memory_max_mib)


def relay_files(settings: Settings) -> list[ManagedFile]:
    """The unit that tells what only Prometheus sees, and the timer that starts it."""
    return [
        units.hardened(f"{paths.ALERT_RELAY}.service"),
        rendered(f"/etc/systemd/system/{RELAY_TIMER}", health_interval_minutes=settings.health_interval_minutes),
    ]


def stamped_sockets(settings: Settings) -> list[tuple[Way, str, ManagedFile]]:
    """Each way with its socket's stamp and unit, the one that makes the network first."""
    found = []
    for way in ways():
        stamp = systemd.stamp(_socket_file(way, settings, "").content)
        found.append((way, stamp, _socket_file(way, settings, stamp)))
    return found


def _socket_file(way: Way, settings: Settings, stamp: str) -> ManagedFile:
    return rendered(
        f"/etc/systemd/system/{way.socket_unit}",
        metrics_port=settings.metrics_port,
        socket=paths.PROMETHEUS_SOCKET,
        directory=paths.PUBLISHED,
        gateway_user=paths.GATEWAY_USER,
        stamp_file=way.stamp_file,
        stamp=stamp,
    )


def stamped_units(settings: Settings, host_name: str) -> list[tuple[Watcher, str, ManagedFile]]:
    """Each service with its stamp and its unit, those that are asked before the one that asks."""
    prometheus, node_exporter = watchers(settings)
    asks = rules_file(settings).content + configuration_file(settings, host_name).content
    sockets = [stamp for _, stamp, _ in stamped_sockets(settings)]
    found = []
    for watcher, configured in (*((way.service, "") for way in ways()), (node_exporter, ""), (prometheus, asks)):
        blank = _unit_file(watcher, "", settings)
        stamp = systemd.stamp(blank.content, slice_file(settings).content, configured, *sockets)
        found.append((watcher, stamp, _unit_file(watcher, stamp, settings)))
    return found


def _unit_file(watcher: Watcher, stamp: str, settings: Settings) -> ManagedFile:
    prometheus, node_exporter = paths.PROMETHEUS_UNITS
    own: dict[str, dict[str, Any]] = {
        prometheus: {
            "port": settings.prometheus_port,
            "external_url": f"http://127.0.0.1:{settings.metrics_port}{paths.PROMETHEUS_PATH}/",
            "retention_days": settings.prometheus_retention_days,
            "storage_mib": settings.prometheus_storage_mib,
        },
        node_exporter: {"port": settings.node_exporter_port, "textfile_directory": settings.textfile_directory},
    }
    ports = {"metrics_port": settings.metrics_port, "prometheus_port": settings.prometheus_port}
    return units.hardened(
        watcher.unit,
        memory_max_mib=watcher.memory_max_mib,
        go_memory_mib=watcher.memory_max_mib * GO_MEMORY_PERCENT // 100,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
        **own.get(watcher.unit, ports),
    )


@deploy("Prometheus")
def run(settings: Settings) -> None:
    """Run the services with their configuration, or where `prometheus` is off, leave nothing of them."""
    if settings.prometheus:
        _install(settings)
    else:
        _remove(settings)


def _install(settings: Settings) -> None:
    systemd.removed(name="Remove Alertmanager", units=[ALERTMANAGER_UNIT])
    files.absent(name="Remove Alertmanager's configuration", paths=[ALERTMANAGER_FILE])
    packages.removed(
        name="Remove Alertmanager's package",
        packages=tuple(ALERTMANAGER_KEPT_OFF),
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=ALERTMANAGER_KEPT_OFF,
        record=RECORD,
        others_stay=True,
    )
    packages.installed(
        name="Install Prometheus",
        packages=PACKAGES,
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=KEPT_OFF,
        record=RECORD,
    )
    files.managed(name="Write Prometheus' rules", files=[rules_file(settings)], validate="promtool check rules {}")
    files.managed(
        name="Write Prometheus' configuration",
        files=[configuration_file(settings, host.name)],
        validate="promtool check config {}",
    )
    sockets, services = stamped_sockets(settings), stamped_units(settings, host.name)
    unit_files = [file for _, _, file in (*sockets, *services)]
    files.managed(
        name="Write the units of Prometheus", files=[slice_file(settings), *unit_files, *relay_files(settings)]
    )
    for way, stamp, _ in sockets:
        systemd.sockets(
            name=f"Hold {way.socket_unit}",
            unit=way.socket_unit,
            service=way.service.unit,
            stamp=stamp,
            stamp_file=way.stamp_file,
            addresses=[],
        )
    for watcher, stamp, _ in services:
        systemd.service(
            name=f"Run {watcher.unit.removesuffix('.service')}",
            unit=watcher.unit,
            stamp=stamp,
            ready=watcher.ready,
            ready_timeout_seconds=READY_SECONDS,
        )
    systemd.loaded(name="Let systemd know the relay of alerts", unit=f"{paths.ALERT_RELAY}.service")
    systemd.timer(name="Tell what only Prometheus sees", unit=RELAY_TIMER)


@deploy("Prometheus")
def remove(settings: Settings) -> None:
    """Leave nothing of the three services."""
    _remove(settings)


def _remove(settings: Settings) -> None:
    systemd.removed(name="Remove the services of Prometheus", units=list(_own_units()))
    packages.removed(
        name="Remove Prometheus' packages",
        packages=(*PACKAGES, *ALERTMANAGER_KEPT_OFF),
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=KEPT_OFF | ALERTMANAGER_KEPT_OFF,
        record=RECORD,
    )
    stamps = [way.stamp_file for way in ways()]
    told = f"{paths.ALERT_RUNTIME}/{RELAYED_KEY}.json"
    own_files = [CONFIGURATION_FILE, RULES_FILE, ALERTMANAGER_FILE, told, *stamps]
    files.absent(name="Remove Prometheus' configuration", paths=own_files)


def _own_units() -> Iterator[str]:
    """Every unit of this task, who starts others first."""
    yield RELAY_TIMER
    yield f"{paths.ALERT_RELAY}.service"
    for way in reversed(ways()):
        yield from (way.socket_unit, way.service.unit)
    yield from (*paths.PROMETHEUS_UNITS, ALERTMANAGER_UNIT, SLICE)
