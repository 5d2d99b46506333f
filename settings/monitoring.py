"""Monitoring: measurements and what is expected of them."""

from __future__ import annotations

from typing import Literal

from settings.section import AbsolutePath, Section, setting


class MonitoringSettings(Section, title="Monitoring"):
    """What is measured, how often, how long it is kept, and what is warned of."""

    health_interval_minutes: Literal[1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30] = setting(
        5, "Minutes between health checks.", unit="min"
    )
    log_retention_days: int = setting(7, "Days that health logs are kept, compressed.", unit="days", ge=1, le=365)
    response_limit_seconds: float = setting(
        5.0, "Time of a short answer above which checks warn.", unit="s", gt=0, le=600
    )

    health_probe: bool = setting(
        True,
        "Let the health check ask the model for one token, where nobody asked it for anything since the check before.",
    )
    samples_retention_days: int = setting(90, "Days that measurements are kept.", unit="days", ge=7, le=3_650)
    textfile_directory: AbsolutePath = setting(
        "/var/lib/prometheus/node-exporter",
        "Where node_exporter looks for text files, if that directory exists; else they go to "
        "/var/lib/local-llm/metrics.",
    )
    utility_goal_percent: float = setting(
        90.0, "Share of utility requests that the host is to answer itself, in the report.", unit="%", gt=0, le=100
    )
