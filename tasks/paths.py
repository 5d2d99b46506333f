"""Where things lie on the host, and the names of our units and accounts."""

from __future__ import annotations

ROOT = "/opt/local-llm"
CURRENT = f"{ROOT}/current"
MODELS = f"{ROOT}/models"
CHECKS = f"{ROOT}/checks"
CONFIGURATION = "/etc/local-llm"
STATE = "/var/lib/local-llm"
SCRATCH = "/var/cache/local-llm"
RUNTIME = "/run/local-llm"
OWN_SOCKET = f"{RUNTIME}/llama.sock"
"""Where llama-server makes its socket: nobody else resolves a name in there."""
PUBLISHED = "/run/local-llm-sockets"
SOCKET = f"{PUBLISHED}/llama.sock"
"""The same socket where root has put it, for everybody who connects."""
PUBLISH_SOCKET = f"{ROOT}/bin/publish-socket"
GATEWAY_RUNTIME = "/run/local-llm-gateway"
ROOT_RUNTIME = "/run/local-llm-root"
"""Sockets of the gateway for root alone. systemd makes them: the gateway's own user cannot reach them by name."""
GATEWAY_ADMIN_SOCKET = f"{ROOT_RUNTIME}/admin.sock"
GATEWAY_API_SOCKET = f"{ROOT_RUNTIME}/api.sock"
GATEWAY_SOCKETS_STAMP = f"{ROOT_RUNTIME}/stamp"
DRILL_RUNTIME = "/run/local-llm-drill"
ALERT_RUNTIME = "/run/local-llm-alerts"
SECRETS = f"{CONFIGURATION}/secrets"
CLOUD_KEY = f"{SECRETS}/cloud.env"
SWAP_FILE = "/var/swap/local-llm"
HEALTH_LOG = "/var/log/llm-health.log"
METRICS_LOG = "/var/log/llm-metrics.log"

SERVICE_UNIT = "local-llm.service"
GATEWAY_UNIT = "local-llm-gateway.service"
GATEWAY_SOCKET_UNIT = "local-llm-gateway.socket"
DRILL_UNIT = "local-llm-drill.service"
ALERT_UNITS = ("local-llm-alert-webhook.service", "local-llm-alert-command.service")
PROMETHEUS_UNITS = ("local-llm-prometheus.service", "local-llm-node-exporter.service")
PROMETHEUS_DISTRIBUTION_UNITS = ("prometheus.service", "prometheus-node-exporter.service")
PROMETHEUS_WAYS = ("local-llm-prometheus-out", "local-llm-prometheus-in")
"""Each a socket unit and a service: from Prometheus' own network to the gateway's metrics, and from outside to it."""
PROMETHEUS_SOCKET = f"{PUBLISHED}/prometheus.sock"
PROMETHEUS_PATH = "/prometheus"
"""Where the gateway serves it, on its metrics port; Prometheus itself answers below the same path."""
ALERT_RELAY = "local-llm-alert-relay"
GATEWAY_USER = "local-llm-gateway"
BUILD_USER = "local-llm-build"
"""Downloads, and compiles other people's source; owns nothing that runs."""


def model_file(name: str, sha256: str) -> str:
    """A model's file, named by its checksum so that two files of one model never share a name."""
    return f"{MODELS}/{name}-{sha256[:16]}.gguf"
