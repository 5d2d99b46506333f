"""Alerts and healing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from settings.section import AbsolutePath, OperatorsFile, Section, setting

WEBHOOK_ADDRESS = r"^(https://[^\s'\"\\@/]+|http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?)(/[^\s\x00-\x1f\x7f]*)?$"
"""Of a webhook, in a setting and in a file: without user and password, and in clear text only to the host itself."""


class AlertSettings(Section, title="Alerts and healing"):
    """What raises an alert (as `memory_goal_mib` and `response_limit_seconds` do), where it goes, what is restarted."""

    uptime_goal_percent: float = setting(
        99.0, "Share of time, over a day and over a week, below which an alert is raised.", unit="%", gt=0, lt=100
    )
    alert_disk_free_percent: float = setting(
        10.0, "Free disk space below which an alert is raised.", unit="%", gt=0, le=90
    )
    alert_restarts_per_hour: int = setting(
        3, "Crashes of a service within an hour that count as a restart loop.", ge=1, le=1_000
    )
    alert_after_checks: int = setting(
        2,
        "Bad health checks in a row that raise an alert. A dead service, a kill for lack of memory, a restart loop and "
        "a failed drill raise theirs at once.",
        unit="checks",
        ge=1,
        le=100,
    )
    alert_clear_after_checks: int = setting(
        2,
        "Good health checks in a row that clear an alert; twice as many with every time it came back within a day.",
        unit="checks",
        ge=1,
        le=100,
    )
    alert_reminder_hours: int | None = setting(
        None, "Hours after which an open alert is sent again. Unset: one message when it is raised, one when it is "
        "cleared.", unit="h", ge=1, le=720,
    )  # fmt: skip
    alert_webhook_url: str | None = setting(
        None,
        "Where alerts are posted, beside log and journal. An address that is a secret, such as Slack's, belongs into "
        "`alert_webhook_file`.",
        allowed="an https:// address, or http:// to 127.0.0.1 or localhost",
        pattern=WEBHOOK_ADDRESS,
    )
    alert_webhook_file: OperatorsFile | None = setting(
        None,
        "Instead: a file on the computer that deploys, whose first line is the address and whose further lines are "
        "headers to send, such as `Authorization: Bearer …`.",
    )
    alert_webhook_format: Literal["json", "ntfy", "slack"] = setting(
        "json",
        "What is posted: a JSON object, a message for ntfy, or what Slack, Mattermost and Discord (/slack) take.",
    )
    alert_command: AbsolutePath | None = setting(
        None,
        "A program on the host, root's own, that is run as root for each alert with the JSON object on its standard "
        "input.",
    )
    heal_after_failures: int = setting(
        2,
        "Health checks in a row that a running service leaves unanswered before it is restarted.",
        unit="checks",
        ge=1,
        le=100,
    )
    heal_restarts_per_hour: int = setting(
        3, "Such restarts of a service within an hour at most; 0: never restart.", ge=0, le=60
    )

    def problems(self) -> Iterator[str]:
        if self.alert_webhook_url is not None and self.alert_webhook_file is not None:
            yield "alert_webhook_file: only without alert_webhook_url"
