"""HAProxy between programs on this machine and the models: queue, limits, routing, errors, access log, counters."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pyinfra import host
from pyinfra.api import deploy

from facts.files import FileDigests
from facts.haproxy import CONFIGURATION_VARIABLE
from facts.systemd import STAMP_VARIABLE
from operations import files, haproxy, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import paths
from tasks.cloud_key import KEY_VARIABLE, environment_file, operators_key
from tasks.rendering import rendered
from tasks.routing import cloud_address, model_list, request_metrics, rules

CONFIGURATION_FILE = f"{paths.CONFIGURATION}/haproxy.cfg"
RETRY_AFTER_SECONDS = 5
HEADER_BYTES = 32 * 1024
READY_SECONDS = 30
OUTAGE_RETRY_AFTER_SECONDS = 61
"""OpenClaw goes on to its next model where it is told to wait for more than a minute, and waits otherwise."""
CLOUD_REST_SECONDS = 10
"""How long the cloud is left alone after a 429 that names no time, or after a silence."""
CLOUD_UNREAD_REST_SECONDS = 60
"""The same after a 429 that names a date, which HAProxy cannot read, or 0."""
CLOUD_LONGEST_REST_SECONDS = 3600
"""The same where a 429 names a longer time: it may be over sooner than its provider thinks."""
CERTAIN_BYTES_PER_TOKEN = 16
"""No text but long runs of one character has so many bytes a token (benchmarks/token_estimate.py: at most 13.5)."""
CLIENTS_CREDENTIALS = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "openai-organization",
    "openai-project",
)
"""Headers by which clients prove who they are to some provider; the gateway's cloud gets the operator's key alone."""
ANTHROPIC_VERSION = "2023-06-01"
"""Sent where the client names none: the version that every client of the API sends."""


def buffer_bytes(settings: Settings) -> int:
    """One buffer holds a request's headers and its whole body, so that limits apply to bodies of any encoding."""
    return settings.max_body_kib * 1024 + HEADER_BYTES


def max_connections(settings: Settings) -> int:
    """Requests at once, of which each takes two buffers at the API and two at the side that serves it: at most half
    of the gateway's memory."""
    return max(8, min(256, settings.gateway_memory_max_mib * 1024**2 // 2 // (4 * buffer_bytes(settings))))


def longest_request_seconds(settings: Settings) -> int:
    """Silence that a client may see before the side that serves it has given up."""
    silence = max(settings.request_timeout_seconds, settings.cloud_silence_seconds if settings.cloud_url else 0)
    return settings.queue_timeout_seconds + silence + 10


def fallback_tokens(settings: Settings) -> int:
    """Estimated prompts below this are the host's to answer when the cloud fails."""
    return min(settings.context_tokens, settings.fallback_prompt_tokens or settings.context_tokens)


def unit_file(settings: Settings, stamp: str) -> ManagedFile:
    """The gateway's unit, with the stamp that its running process is compared by."""
    return rendered(
        f"/etc/systemd/system/{paths.GATEWAY_UNIT}",
        api_port=settings.api_port,
        gateway_user=paths.GATEWAY_USER,
        service_group=settings.service_group,
        gateway_memory_max_mib=settings.gateway_memory_max_mib,
        key_file=paths.CLOUD_KEY if settings.cloud_url else None,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
    )


def configuration_file(settings: Settings, stamp: str) -> ManagedFile:
    """haproxy.cfg, with the stamp that the running worker is asked for."""
    own_rules = rules(settings)
    return rendered(
        CONFIGURATION_FILE,
        configuration_variable=CONFIGURATION_VARIABLE,
        stamp=stamp,
        admin_socket=paths.GATEWAY_ADMIN_SOCKET,
        runtime=paths.GATEWAY_RUNTIME,
        socket=paths.SOCKET,
        maxconn=max_connections(settings),
        buffer_bytes=buffer_bytes(settings),
        longest_request_seconds=longest_request_seconds(settings),
        retry_after_seconds=RETRY_AFTER_SECONDS,
        certain_context_bytes=settings.context_tokens * CERTAIN_BYTES_PER_TOKEN,
        fallback_tokens=fallback_tokens(settings),
        rules=own_rules,
        credentials=CLIENTS_CREDENTIALS,
        request_metrics=request_metrics(rule.reason for rule in own_rules),
        cloud=_cloud(settings),
        **_outage(settings),
        **settings.model_dump(
            include={
                "api_port",
                "metrics_port",
                "parallel",
                "queue_length",
                "queue_timeout_seconds",
                "request_timeout_seconds",
                "max_body_kib",
                "requests_per_minute",
                "context_tokens",
                "bytes_per_token",
                "outage_status",
            }
        ),
    )


def _cloud(settings: Settings) -> dict[str, Any] | None:
    if settings.cloud_url is None:
        return None
    return {
        **asdict(address := cloud_address(settings.cloud_url)),
        "authority": address.authority,
        "api": settings.cloud_api,
        "models": model_list(settings),
        "key_variable": KEY_VARIABLE,
        "anthropic_version": ANTHROPIC_VERSION,
        "rest_seconds": CLOUD_REST_SECONDS,
        "unread_rest_seconds": CLOUD_UNREAD_REST_SECONDS,
        "longest_rest_seconds": CLOUD_LONGEST_REST_SECONDS,
        "check_path": settings.cloud_check_path,
        "check_seconds": settings.cloud_check_seconds,
        "check_timeout_seconds": min(10, settings.cloud_first_byte_seconds),
        "first_byte_seconds": settings.cloud_first_byte_seconds,
        "silence_seconds": settings.cloud_silence_seconds,
        "requests_per_minute": settings.cloud_requests_per_minute,
    }


def _outage(settings: Settings) -> dict[str, str]:
    """What a request is told that only the cloud could serve, while it does not."""
    # OpenClaw reads the words: "too long", "too large" or "exceeds the context" would end the turn instead of the try.
    unserved = "The cloud provider does not serve this now, and the local model does not take it over"
    reason = f"longer than {fallback_tokens(settings)} tokens, or embeddings"
    kind = {404: ("invalid_request_error", "model_not_found"), 503: ("server_error", "cloud_unavailable")}
    type_, code = kind[settings.outage_status]
    return {
        "outage_type": type_,
        "outage_code": code,
        "outage_message": f"{unserved}: {reason}. On the server: local-llm status",
        "outage_header": "" if settings.outage_status == 404 else f"hdr Retry-After {OUTAGE_RETRY_AFTER_SECONDS}",
    }


@deploy("Gateway")
def run(settings: Settings) -> None:
    """Write key, unit and configuration, and see that what runs is what they say.

    A changed configuration is judged by `haproxy -c` before it takes the old one's place, and reloaded without
    dropping a request; only a changed unit or key restarts the gateway.
    """
    key_stamp = _place_key(settings)
    unit_stamp = systemd.stamp(unit_file(settings, stamp="").content, key_stamp)
    configuration_stamp = systemd.stamp(configuration_file(settings, stamp="").content)
    files.managed(
        name="Write the gateway's configuration",
        files=[configuration_file(settings, configuration_stamp)],
        validate="haproxy -c -q -f {}",
    )
    files.managed(name="Write the gateway's unit", files=[unit_file(settings, unit_stamp)])
    systemd.service(
        name="Run the gateway",
        unit=paths.GATEWAY_UNIT,
        stamp=unit_stamp,
        ready=f"curl -fsS -m 2 -o /dev/null http://127.0.0.1:{settings.api_port}/health 2>/dev/null",
        ready_timeout_seconds=READY_SECONDS,
    )
    haproxy.reloaded(
        name="Load the gateway's configuration",
        unit=paths.GATEWAY_UNIT,
        socket=paths.GATEWAY_ADMIN_SOCKET,
        stamp=configuration_stamp,
    )


def _place_key(settings: Settings) -> str:
    """Put the cloud's key where only root reads it; returns its digest, which is all that anything else learns."""
    if settings.cloud_url is None:
        files.absent(name="Remove the cloud's key", paths=[paths.CLOUD_KEY])
        return ""
    key = operators_key(settings, os.environ)
    if key is None:
        on_host = host.get_fact(FileDigests, paths=(paths.CLOUD_KEY,)).get(paths.CLOUD_KEY)
        # Without one preflight has stopped the host before anything is done with this.
        return on_host.sha256 if on_host else ""
    secret = ManagedFile(paths.CLOUD_KEY, environment_file(key), mode="0600")
    files.secret(name="Write the cloud's key", file=secret)
    return secret.sha256
