"""Alerts and healing: their limits, where alerts are sent, and the units that send them."""

from __future__ import annotations

import re

from pyinfra.api import deploy

from checks.contract import paths
from checks.contract.config import Alerts
from operations import files, systemd
from operations.files import ManagedFile
from settings import Settings
from settings.alerts import WEBHOOK_ADDRESS
from tasks import units
from tasks.rendering import rendered
from tasks.secret_files import SecretError, operators_file

_HEADER = re.compile(r"[A-Za-z0-9-]+: ?[ -~]+")


def thresholds(settings: Settings) -> Alerts:
    """When the checks raise alerts, and where these go."""
    return Alerts(
        disk_free_percent=settings.alert_disk_free_percent,
        restarts_per_hour=settings.alert_restarts_per_hour,
        after_checks=settings.alert_after_checks,
        clear_after_checks=settings.alert_clear_after_checks,
        reminder_hours=settings.alert_reminder_hours,
        webhook_format=settings.alert_webhook_format if _has_webhook(settings) else None,
        command=settings.alert_command,
    )


def operators_webhook(settings: Settings) -> str | None:
    """The webhook as the host's file holds it: a line with the address, then one a header; None where none is set.

    Raises SecretError.
    """
    if settings.alert_webhook_file is None:
        return None if settings.alert_webhook_url is None else f"{settings.alert_webhook_url}\n"
    source = f"alert_webhook_file = {settings.alert_webhook_file!r}"
    text = operators_file(settings.alert_webhook_file, source)
    address, *headers = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if not re.fullmatch(WEBHOOK_ADDRESS, address):
        raise SecretError(f"{source}: allowed in its first line: an https:// address, or http:// to 127.0.0.1")
    if not all(_HEADER.fullmatch(header) for header in headers):
        raise SecretError(f"{source}: allowed after its first line: headers such as Authorization: Bearer …")
    return "".join(f"{line}\n" for line in (address, *headers))


def unit_files() -> list[ManagedFile]:
    """The units that send alerts; started by the health check, never enabled."""
    return [
        units.hardened(paths.ALERT_UNITS["webhook"], resolves=True),
        rendered(f"/etc/systemd/system/{paths.ALERT_UNITS['command']}"),
    ]


@deploy("Alerts")
def install(settings: Settings) -> None:
    """Place the webhook where only root reads it, and the units that send alerts."""
    webhook = operators_webhook(settings)
    if webhook is None:
        files.absent(name="Remove the webhook of alerts", paths=[paths.WEBHOOK_FILE])
    else:
        files.secret(name="Write the webhook of alerts", file=ManagedFile(paths.WEBHOOK_FILE, webhook, mode="0600"))
    files.managed(name="Write the units that send alerts", files=unit_files())
    for unit in paths.ALERT_UNITS.values():
        systemd.loaded(name=f"Let systemd know {unit}", unit=unit)


def _has_webhook(settings: Settings) -> bool:
    return (settings.alert_webhook_url or settings.alert_webhook_file) is not None
