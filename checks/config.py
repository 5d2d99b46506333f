"""The checks' configuration: /etc/local-llm/checks.json, written by the deployment.

Unknown keys are ignored, so that an older `checks` still reads a newer file after a rollback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

DEFAULT_PATH = Path("/etc/local-llm/checks.json")
CURRENT_RELEASE = "/opt/local-llm/current"
RELEASES = "/opt/local-llm/releases"
CRON_FILE = "/etc/cron.d/local-llm"
LOGROTATE_FILE = "/etc/logrotate.d/local-llm"
HEALTH_LOG = "/var/log/llm-health.log"
HEALTH_LOCK = "/run/local-llm-root/health.lock"
METRICS_LOG = "/var/log/llm-metrics.log"
METRICS_LOCK = "/run/local-llm-root/metrics.lock"
STATE = "/var/lib/local-llm"
SWAP_FILE = "/var/swap/local-llm"
SAMPLES = "/var/lib/local-llm/samples.db"
TEXTFILE_FALLBACK = "/var/lib/local-llm/metrics"
DEPLOY_LOCK = "/run/local-llm-root/deploy.lock"
DRILL_UNIT = "local-llm-drill.service"
DRILL_RECORD = "/var/lib/local-llm/drill.json"
DRILL_TAKEN_OUT = "/run/local-llm-drill/taken-out"
ALERT_UNITS = {"webhook": "local-llm-alert-webhook.service", "command": "local-llm-alert-command.service"}
ALERT_OUTBOX = "/var/lib/local-llm/outbox"
ALERT_RUNTIME = "/run/local-llm-alerts"
WEBHOOK_FILE = "/etc/local-llm/secrets/webhook"

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration is missing or wrong; the message is one line for a person."""


@dataclass(frozen=True)
class Model:
    name: str
    path: str
    sha256: str
    size_bytes: int

    @property
    def stamp_path(self) -> str:
        return self.path + ".stamp"


@dataclass(frozen=True)
class Cloud:
    """The cloud provider: its base address, what it speaks (openai or anthropic), its models by its own names."""

    url: str
    api: str
    models: tuple[str, ...]
    first_byte_seconds: int


@dataclass(frozen=True)
class Alerts:
    """When alerts are raised and cleared, and where they go besides log and journal.

    `webhook_format` is json, ntfy or slack, None without a webhook; its address is a secret and not here.
    """

    disk_free_percent: float
    restarts_per_hour: int
    after_checks: int
    clear_after_checks: int
    reminder_hours: int | None
    webhook_format: str | None
    command: str | None

    @property
    def channels(self) -> tuple[str, ...]:
        """The keys of ALERT_UNITS that are in use."""
        return tuple(name for name, used in (("webhook", self.webhook_format), ("command", self.command)) if used)


@dataclass(frozen=True)
class Healing:
    """When a service that runs but does not answer is restarted; 0 restarts an hour: never."""

    after_failures: int
    restarts_per_hour: int


@dataclass(frozen=True)
class Prometheus:
    """Where root reaches it, and the units that it works by."""

    socket: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class FileMode:
    """A file of the deployment, and who may do what with it."""

    path: str
    mode: int
    owner: str
    group: str


@dataclass(frozen=True)
class Config:
    api_url: str
    admin_socket: str
    api_socket: str
    cloud: Cloud | None
    drill_weekly: bool
    metrics_url: str
    socket: str
    service_unit: str
    gateway_unit: str
    service_user: str
    service_group: str
    gateway_user: str
    model: Model
    llama_cpp_commit: str
    release: str
    context_tokens: int
    memory_max_mib: int
    memory_goal_mib: int
    swap_file_mib: int
    response_limit_seconds: float
    uptime_goal_percent: float
    utility_goal_percent: float
    alerts: Alerts
    healing: Healing
    prometheus: Prometheus | None
    exposure_limit_service: float
    exposure_limit_gateway: float
    seen_of_run: Mapping[str, tuple[str, ...]]
    firewall: bool
    denied_ports: tuple[int, ...]
    health_interval_minutes: int
    health_probe: bool
    samples_retention_days: int
    textfile_directory: str
    log_retention_days: int
    files: tuple[FileMode, ...]

    @property
    def gateway_socket_unit(self) -> str:
        """The unit that holds the gateway's ports also while the gateway is down."""
        return self.gateway_unit.removesuffix(".service") + ".socket"

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports of the deployment: API and metrics."""
        return tuple(dict.fromkeys(_url_port(url) for url in (self.api_url, self.metrics_url)))


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read and validate the configuration; raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing, so there is nothing to check against. Deploy to this host first, "
            "or name another file with --config."
        ) from None
    except PermissionError:
        raise ConfigError(f"{path} may not be read by this user. Use sudo.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}). Deploy again to rewrite it.") from None
    try:
        return _config(_Section(data, ""))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}. Deploy again to rewrite it.") from None


class _Section:
    """One JSON object; every read names the key that is missing or wrong."""

    def __init__(self, data: object, name: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{name or 'the file'} is not a JSON object")
        self._data = data
        self._prefix = f"{name}." if name else ""

    def _value(self, key: str, kind: type[T]) -> T:
        label = self._prefix + key
        if key not in self._data:
            raise ConfigError(f"“{label}” is missing")
        value = self._data[key]
        # bool is an int to isinstance; `true` is no number here.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"“{label}” is {value!r}, expected {_KIND_NAMES.get(kind, kind.__name__)}")
        return value

    def text(self, key: str, pattern: str = r".+") -> str:
        value = self._value(key, str)
        if not re.fullmatch(pattern, value):
            raise ConfigError(f"“{self._prefix}{key}” is {value!r}, which is not a usable value")
        return value

    def text_or_null(self, key: str, pattern: str) -> str | None:
        return None if self._is_null(key) else self.text(key, pattern)

    def url(self, key: str) -> str:
        value = self.text(key, r"https?://\S+")
        try:
            _url_port(value)
        except ValueError:
            raise ConfigError(f"“{self._prefix}{key}” is {value!r}, which is not an address") from None
        return value.rstrip("/")

    def integer(self, key: str, minimum: int = 1) -> int:
        value = self._value(key, int)
        if value < minimum:
            raise ConfigError(f"“{self._prefix}{key}” is {value}, expected at least {minimum}")
        return value

    def integer_or_null(self, key: str) -> int | None:
        return None if self._is_null(key) else self.integer(key)

    def number(self, key: str) -> float:
        whole = type(self._data.get(key)) is int
        value = float(self._value(key, int)) if whole else self._value(key, float)
        if not value > 0:
            raise ConfigError(f"“{self._prefix}{key}” is {value}, expected more than 0")
        return value

    def flag(self, key: str) -> bool:
        return self._value(key, bool)

    def section(self, key: str) -> _Section:
        return _Section(self._value(key, dict), self._prefix + key)

    def section_or_null(self, key: str) -> _Section | None:
        return None if self._is_null(key) else self.section(key)

    def _is_null(self, key: str) -> bool:
        return key in self._data and self._data[key] is None

    def sections(self, key: str) -> list[_Section]:
        items = self._value(key, list)
        return [_Section(item, f"{self._prefix}{key}[{number}]") for number, item in enumerate(items)]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of at least one text."""
        items = self._value(key, list)
        if not items or not all(isinstance(item, str) and item for item in items):
            raise ConfigError(f"“{self._prefix}{key}” is {items!r}, expected a list of text")
        return tuple(items)

    def lists(self) -> dict[str, tuple[str, ...]]:
        """Every key of this object, with its list of text."""
        return {key: self.texts(key) for key in self._data}

    def port_numbers(self, key: str) -> tuple[int, ...]:
        ports = self._value(key, list)
        for port in ports:
            if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
                raise ConfigError(f"“{self._prefix}{key}” holds {port!r}, which is not a port")
        return tuple(ports)


_KIND_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _config(data: _Section) -> Config:
    model = data.section("model")
    return Config(
        api_url=data.url("api_url"),
        admin_socket=data.text("admin_socket", r"/.+"),
        api_socket=data.text("api_socket", r"/.+"),
        cloud=_cloud(data.section_or_null("cloud")),
        drill_weekly=data.flag("drill_weekly"),
        metrics_url=data.url("metrics_url"),
        socket=data.text("socket"),
        service_unit=data.text("service_unit", r"[\w@.:-]+\.service"),
        gateway_unit=data.text("gateway_unit", r"[\w@.:-]+\.service"),
        service_user=data.text("service_user"),
        service_group=data.text("service_group"),
        gateway_user=data.text("gateway_user"),
        model=Model(
            name=model.text("name"),
            path=model.text("path", r"/.+"),
            sha256=model.text("sha256", r"[0-9a-f]{64}"),
            size_bytes=model.integer("size_bytes"),
        ),
        llama_cpp_commit=data.text("llama_cpp_commit", r"[0-9a-f]{40}"),
        release=data.text("release", r"[\w.+-]+"),
        context_tokens=data.integer("context_tokens"),
        memory_max_mib=data.integer("memory_max_mib"),
        memory_goal_mib=data.integer("memory_goal_mib"),
        swap_file_mib=data.integer("swap_file_mib", minimum=0),
        response_limit_seconds=data.number("response_limit_seconds"),
        uptime_goal_percent=data.number("uptime_goal_percent"),
        utility_goal_percent=data.number("utility_goal_percent"),
        alerts=_alerts(data.section("alerts")),
        healing=_healing(data.section("healing")),
        prometheus=_prometheus(data.section_or_null("prometheus")),
        exposure_limit_service=data.number("exposure_limit_service"),
        exposure_limit_gateway=data.number("exposure_limit_gateway"),
        seen_of_run=data.section("seen_of_run").lists(),
        firewall=data.flag("firewall"),
        denied_ports=data.port_numbers("denied_ports"),
        health_interval_minutes=data.integer("health_interval_minutes"),
        health_probe=data.flag("health_probe"),
        samples_retention_days=data.integer("samples_retention_days"),
        textfile_directory=data.text("textfile_directory", r"/.+"),
        log_retention_days=data.integer("log_retention_days"),
        files=tuple(
            FileMode(
                path=item.text("path", r"/.+"),
                mode=int(item.text("mode", r"[0-7]{3,4}"), 8),
                owner=item.text("owner"),
                group=item.text("group"),
            )
            for item in data.sections("files")
        ),
    )


def _cloud(data: _Section | None) -> Cloud | None:
    if data is None:
        return None
    return Cloud(
        url=data.url("url"),
        api=data.text("api", r"openai|anthropic"),
        models=data.texts("models"),
        first_byte_seconds=data.integer("first_byte_seconds"),
    )


def _prometheus(data: _Section | None) -> Prometheus | None:
    return None if data is None else Prometheus(data.text("socket", r"/.+"), data.texts("units"))


def _alerts(data: _Section) -> Alerts:
    return Alerts(
        disk_free_percent=data.number("disk_free_percent"),
        restarts_per_hour=data.integer("restarts_per_hour"),
        after_checks=data.integer("after_checks"),
        clear_after_checks=data.integer("clear_after_checks"),
        reminder_hours=data.integer_or_null("reminder_hours"),
        webhook_format=data.text_or_null("webhook_format", r"json|ntfy|slack"),
        command=data.text_or_null("command", r"/.+"),
    )


def _healing(data: _Section) -> Healing:
    return Healing(data.integer("after_failures"), data.integer("restarts_per_hour", minimum=0))


def _url_port(url: str) -> int:
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
