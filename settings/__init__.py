"""Every setting of a deploy, once: type, default, bounds, unit and reason.

`Settings` is built once per host, from the inventory and group_data, before anything runs; nothing reads
`host.data` after that. Its fields stand in sections, one module each, with what they demand of each other; what
sections demand of each other stands here. docs/SETTINGS.md is generated from them (`make docs`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError, model_validator

from settings.alerts import AlertSettings
from settings.build import BuildSettings
from settings.catalogue import CATALOGUE, CUSTOM, Model
from settings.cloud import CloudSettings
from settings.firewall import FirewallSettings, opened_by
from settings.gateway import GatewaySettings
from settings.host import HostSettings
from settings.model import ModelSettings
from settings.monitoring import MonitoringSettings
from settings.openclaw import OpenClawSettings
from settings.prometheus import PrometheusSettings
from settings.routing import RoutingSettings
from settings.section import OTHER_ACCOUNTS, Section
from settings.service import ServiceSettings
from settings.uninstall import UninstallSettings

__all__ = ["CATALOGUE", "SECTIONS", "Model", "Settings", "allowed_values", "is_connector_data", "parse"]


class Settings(
    # From the last section to the first: pydantic collects the fields of bases from right to left.
    UninstallSettings,
    HostSettings,
    PrometheusSettings,
    AlertSettings,
    MonitoringSettings,
    FirewallSettings,
    OpenClawSettings,
    RoutingSettings,
    CloudSettings,
    GatewaySettings,
    ServiceSettings,
    ModelSettings,
    BuildSettings,
    title="Settings",
):
    """What one host is to become. Immutable and complete."""

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """group_data and `--data` give lists; a frozen model holds tuples."""
        if not isinstance(data, Mapping):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}

    @model_validator(mode="after")
    def _is_consistent(self) -> Settings:
        problems = list(self.problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def problems(self) -> Iterator[str]:
        for section in SECTIONS:
            yield from section.problems(self)
        yield from _problems_between_sections(self)


SECTIONS = tuple(section for section in reversed(Settings.__bases__) if issubclass(section, Section))
"""From the first to the last, as docs/SETTINGS.md has them."""


def _problems_between_sections(settings: Settings) -> Iterator[str]:
    """What settings of different sections demand of each other."""
    for name in ("llama_cpp_repository", "model_url"):
        url = getattr(settings, name) or ""
        if re.match(r"[a-z]+://[^/?#]*@", url):
            # Not shown: it may be a password.
            yield f"{name}: allowed: an address without user and password, which every user of the host could read"
        elif url and not settings.allow_insecure_downloads and not url.startswith("https://"):
            yield f"{name} = {url!r}: allowed: https:// addresses (or allow_insecure_downloads = True)"
    own_names = {settings.model_name if settings.model == CUSTOM else settings.model, *CATALOGUE}
    for field in ("cloud_models", "cloud_model_aliases"):
        # Also of a model that the host served before: programs that name it mean to stay on the host.
        for own in [own for own in getattr(settings, field) if own in own_names]:
            yield f"{field} contains {own!r}: that name is a model of the host's own"
    if settings.openclaw_primary and settings.cloud_url is None:
        yield "openclaw_primary = True: only with cloud_url"
    if settings.openclaw_user in (settings.service_user, *OTHER_ACCOUNTS):
        yield f"openclaw_user = {settings.openclaw_user!r}: allowed: the user that OpenClaw is installed for"
    # In Prometheus' network the gateway's metrics have the port that they have on the host.
    ports = settings.loopback_ports | settings.prometheus_ports
    for name, number in list(ports.items())[1:]:
        earlier = [other for other in itertools.takewhile(name.__ne__, ports) if ports[other] == number]
        if earlier:
            yield f"{name} = {number}: allowed: a port other than {earlier[0]}"
    for port in settings.firewall_allowed_ports:
        if any(own in opened_by(port) for own in settings.loopback_ports.values()):
            yield f"firewall_allowed_ports contains {port!r}: the API's ports are never opened; use an SSH tunnel"


def is_connector_data(name: str) -> bool:
    """Whether a host's datum belongs to pyinfra (how to connect, `_sudo` and the like) and not to us."""
    return name.startswith(("_", "ssh_", "docker_", "podman_", "local_"))


def parse(data: Mapping[str, Any]) -> tuple[Settings | None, list[str]]:
    """Build settings from one host's data.

    Returns the settings, or None and every problem as one line each: the setting's name, its value and what is
    allowed.
    """
    own = {name: value for name, value in data.items() if not is_connector_data(name)}
    try:
        return Settings(**own), []
    except ValidationError as error:
        details = error.errors()
    wrong = {str(detail["loc"][0]): _problem(detail) for detail in details if detail["loc"]}
    problems = list(wrong.values())
    # Pydantic compares settings with each other only once each is right by itself; look at the right ones now.
    if wrong and (right := {name: value for name, value in own.items() if name not in wrong}):
        problems += [line for line in parse(right)[1] if not any(name in line for name in wrong)]
    return None, problems or [line for detail in details for line in str(detail["ctx"]["error"]).splitlines()]


def _problem(detail: Any) -> str:
    name, value = str(detail["loc"][0]), detail["input"]
    if detail["type"] == "extra_forbidden":
        close = get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "docs/SETTINGS.md lists them all"
        return f"{name} = {value!r}: no such setting; {hint}"
    return f"{name} = {value!r}: allowed: {allowed_values(name)}"


def allowed_values(name: str) -> str:
    """What a setting accepts, in words: for error messages and for docs/SETTINGS.md."""
    schema = _schema()[name]
    kinds = schema.get("anyOf", [schema])
    words = schema.get("allowed") or " or ".join(_allowed(kind, schema["unit"]) for kind in kinds)
    return words if schema.get("default", "") is not None or words.endswith("None") else f"{words} or None"


@cache
def _schema() -> dict[str, Any]:
    properties: dict[str, Any] = Settings.model_json_schema()["properties"]
    return properties


def _allowed(schema: Mapping[str, Any], unit: str) -> str:
    if "allowed" in schema:
        return str(schema["allowed"])
    suffix = f" {unit}" if unit else ""
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"]) + suffix
    match schema["type"]:
        case "boolean":
            return "True or False"
        case "null":
            return "None"
        case kind:
            noun = {"integer": "a whole number", "number": "a number"}[kind]
            low = schema["minimum"] if "minimum" in schema else f"above {schema['exclusiveMinimum']}"
            high = schema["maximum"] if "maximum" in schema else f"below {schema['exclusiveMaximum']}"
            return f"{noun} from {low} to {high}{suffix}"
