"""Prometheus and what it asks."""

from __future__ import annotations

from settings.section import Port, Section, setting


class PrometheusSettings(Section, title="Prometheus"):
    """A Prometheus on the host; without `prometheus` the others have no effect."""

    prometheus: bool = setting(
        False,
        "Run the distribution's Prometheus and node exporter, served by the gateway, beside the model and never at "
        "its cost. Off again: removed, with its data.",
    )
    prometheus_port: Port = setting(9090, "Port of Prometheus in its own network; none of the host.")
    alertmanager_port: Port = setting(9093, "Without effect: no Alertmanager runs. A line that sets it may go.")
    node_exporter_port: Port = setting(9100, "Port of the node exporter in the same network; none of the host.")
    prometheus_scrape_seconds: int = setting(30, "Time between two samples of every metric.", unit="s", ge=5, le=120)
    prometheus_retention_days: int = setting(15, "Days that Prometheus keeps samples.", unit="days", ge=1, le=365)
    prometheus_storage_mib: int = setting(
        512, "Disk that its samples may take; the oldest go first.", unit="MiB", ge=64, le=65_536
    )
    prometheus_memory_max_mib: int = setting(
        272,
        "Hard memory limit of both and the ways to them. Measured with 1,100 series: Prometheus at most 94 MB, "
        "the node exporter 26; a large query takes more.",
        unit="MiB",
        ge=256,
        le=8_192,
    )

    @property
    def prometheus_ports(self) -> dict[str, int]:
        """Ports in Prometheus' own network, by the setting's name; none where it does not run."""
        names = ("prometheus_port", "node_exporter_port") if self.prometheus else ()
        return {name: getattr(self, name) for name in names}
