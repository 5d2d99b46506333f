"""What the host is to be like: /etc/local-llm/checks.json, which the deploy writes and the checks read.

Unknown keys are ignored, so that an older `checks` still reads a newer file after a rollback.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from checks.contract import paths, reader
from checks.contract.reader import Address, DefectError, Matches, Octal, Within

DEFAULT_PATH = Path(paths.CHECKS_CONFIGURATION)

Url = Annotated[str, Address()]
AbsolutePath = Annotated[str, Matches(r"/.+")]
ServiceUnit = Annotated[str, Matches(r"[\w@.:-]+\.service")]
Count = Annotated[int, Within(1)]
CountOrNone = Annotated[int, Within(0)]
Port = Annotated[int, Within(1, 65535)]


class ConfigError(Exception):
    """The configuration is missing or wrong; the message is one line for a person."""


@dataclass(frozen=True)
class Model:
    name: str
    path: AbsolutePath
    sha256: Annotated[str, Matches(r"[0-9a-f]{64}")]
    size_bytes: Count

    @property
    def stamp_path(self) -> str:
        return self.path + ".stamp"


@dataclass(frozen=True)
class Cloud:
    """The cloud provider: its base address, what it speaks, its models by its own names."""

    url: Url
    api: Annotated[str, Matches(r"openai|anthropic")]
    models: tuple[str, ...]
    first_byte_seconds: Count


@dataclass(frozen=True)
class Alerts:
    """When alerts are raised and cleared, and where they go besides log and journal.

    `webhook_format` is None without a webhook; its address is a secret and not here.
    """

    disk_free_percent: float
    restarts_per_hour: Count
    after_checks: Count
    clear_after_checks: Count
    reminder_hours: Count | None
    webhook_format: Annotated[str, Matches(r"json|ntfy|slack")] | None
    command: AbsolutePath | None

    @property
    def channels(self) -> tuple[str, ...]:
        """The keys of ALERT_UNITS that are in use."""
        return tuple(name for name, used in (("webhook", self.webhook_format), ("command", self.command)) if used)


@dataclass(frozen=True)
class Healing:
    """When a service that runs but does not answer is restarted; 0 restarts an hour: never."""

    after_failures: Count
    restarts_per_hour: CountOrNone


@dataclass(frozen=True)
class Prometheus:
    """Where root reaches it, and the units that it works by."""

    socket: AbsolutePath
    units: tuple[str, ...]


@dataclass(frozen=True)
class FileMode:
    """A file of the deployment, and who may do what with it."""

    path: AbsolutePath
    mode: Annotated[int, Octal()]
    owner: str
    group: str


@dataclass(frozen=True)
class Config:
    api_url: Url
    admin_socket: AbsolutePath
    api_socket: AbsolutePath
    cloud: Cloud | None
    drill_weekly: bool
    metrics_url: Url
    socket: str
    service_unit: ServiceUnit
    gateway_unit: ServiceUnit
    service_user: str
    service_group: str
    gateway_user: str
    model: Model
    llama_cpp_commit: Annotated[str, Matches(r"[0-9a-f]{40}")]
    release: Annotated[str, Matches(r"[\w.+-]+")]
    context_tokens: Count
    memory_max_mib: Count
    memory_goal_mib: Count
    swap_file_mib: CountOrNone
    response_limit_seconds: float
    uptime_goal_percent: float
    alerts: Alerts
    healing: Healing
    utility_goal_percent: float
    prometheus: Prometheus | None
    exposure_limit_service: float
    exposure_limit_gateway: float
    seen_of_run: Mapping[str, tuple[str, ...]]
    firewall: bool
    denied_ports: tuple[Port, ...]
    health_interval_minutes: Count
    health_probe: bool
    samples_retention_days: Count
    textfile_directory: AbsolutePath
    log_retention_days: Count
    files: tuple[FileMode, ...]

    @property
    def gateway_socket_unit(self) -> str:
        """The unit that holds the gateway's ports also while the gateway is down."""
        return self.gateway_unit.removesuffix(".service") + ".socket"

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports of the deployment: API and metrics."""
        return tuple(dict.fromkeys(_port(url) for url in (self.api_url, self.metrics_url)))


def dump(config: Config) -> str:
    """The file's content."""
    return json.dumps(reader.dump(config), indent=2) + "\n"


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
        return reader.load(Config, data)
    except DefectError as error:
        raise ConfigError(f"{path}: {error}. Deploy again to rewrite it.") from None


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
