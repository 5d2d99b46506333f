"""What the build, the gateway, the firewall and the checks need from the distribution."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import packages
from settings import Settings

BUILD = ("ca-certificates", "ccache", "cmake", "curl", "g++", "git", "ninja-build")
RUN = (
    "cron",
    "haproxy",
    "logrotate",
    "python3",
    "python3-prometheus-client",
    "python3-psutil",
    "python3-requests",
)
FIREWALL = ("ufw",)
PROMETHEUS = ("prometheus", "prometheus-node-exporter")
RECORD = f"{paths.STATE}/packages"
"""Names of the packages that were not there before: only these are ever removed."""
KEPT_OFF = {"haproxy": "haproxy.service"}


def wanted(settings: Settings) -> tuple[str, ...]:
    """All that the settings need, Prometheus' packages included."""
    return (*_base(settings), *(PROMETHEUS if settings.prometheus else ()))


def _base(settings: Settings) -> tuple[str, ...]:
    return (*BUILD, *RUN, *(FIREWALL if settings.firewall else ()))


@deploy("Packages")
def install(settings: Settings) -> None:
    """Install them; the distribution's own haproxy.service never starts, ours is another unit."""
    packages.installed(
        name="Install packages",
        packages=_base(settings),
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        record=RECORD,
        kept_off=KEPT_OFF,
    )


@deploy("Packages")
def remove(settings: Settings) -> None:
    """Remove those that a deploy brought and nothing else needs, and give haproxy.service back to the distribution."""
    packages.removed(
        name="Remove the packages that a deploy brought",
        packages=[*BUILD, *RUN, *FIREWALL],
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off=KEPT_OFF,
        record=RECORD,
    )
