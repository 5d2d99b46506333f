"""What the build, the gateway, the firewall and the checks need from the distribution."""

from __future__ import annotations

from pyinfra.api import deploy

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


@deploy("Packages")
def install(settings: Settings) -> None:
    """Install them; the distribution's own haproxy.service never starts, ours is another unit."""
    packages.installed(
        name="Install packages",
        packages=[*BUILD, *RUN, *(["ufw"] if settings.firewall else [])],
        lock_timeout_seconds=settings.apt_lock_timeout_seconds,
        kept_off={"haproxy": "haproxy.service"},
    )
