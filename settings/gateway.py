"""The gateway, which stands before llama-server."""

from __future__ import annotations

from settings.section import Port, Section, setting


class GatewaySettings(Section, title="Gateway"):
    """The one way to llama-server for the host's programs: its ports, its queue and its limits."""

    api_port: Port = setting(8765, "Port of the API on 127.0.0.1.")
    metrics_port: Port = setting(8766, "Port of the Prometheus endpoint on 127.0.0.1.")
    queue_length: int = setting(
        8,
        "Requests that may wait for a slot; more are answered 503 at once.",
        unit="requests",
        ge=0,
        le=1_000,
    )
    queue_timeout_seconds: int = setting(
        120, "How long a request waits for a slot before it is answered 503.", unit="s", ge=1, le=3_600
    )
    request_timeout_seconds: int = setting(
        600,
        "Silence of llama-server after which a request is answered 504. A full context of 16,384 tokens takes "
        "about 6 minutes to read at 45 tokens/s.",
        unit="s",
        ge=5,
        le=7_200,
    )
    max_body_kib: int = setting(
        1_024,
        "Largest request body. The gateway reads each whole before it lets anything of it go anywhere; larger ones are "
        "answered 413. Pictures for a cloud want more, and more of `gateway_memory_max_mib`.",
        unit="KiB",
        ge=4,
        le=16_384,
    )
    requests_per_minute: int | None = setting(
        None, "Completions a minute; more are answered 429. Unset: no limit.", ge=1, le=100_000
    )
    gateway_memory_max_mib: int = setting(256, "Hard memory limit of the gateway.", unit="MiB", ge=64, le=4_096)

    @property
    def loopback_ports(self) -> dict[str, int]:
        """Ports of the host that the deploy's services listen on, by the setting's name: none is for the network."""
        return {name: getattr(self, name) for name in ("api_port", "metrics_port")}
