"""HAProxy between programs on this machine and the models: queue, limits, routing, errors, access log, counters."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pyinfra.api import deploy

from checks.contract import paths
from facts.base import read
from facts.files import FileDigests
from facts.haproxy import CONFIGURATION_VARIABLE
from facts.systemd import STAMP_VARIABLE
from operations import files, haproxy, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import refusals, units
from tasks.cloud_api import CLOUD_APIS
from tasks.cloud_key import KEY_VARIABLE, environment_file, operators_key
from tasks.preflight import Target
from tasks.rendering import rendered
from tasks.routing import FIELDS, PROBE, ROUTE_WORDS, cloud_address, model_list, request_metrics, rules

CONFIGURATION_FILE = f"{paths.CONFIGURATION}/haproxy.cfg"
BODY_READER_FILE = f"{paths.CONFIGURATION}/body.lua"
ROUTE_WORDS_FILE = f"{paths.CONFIGURATION}/routes.map"
HEADER_BYTES = 32 * 1024
ROOT_CONNECTIONS = 4
"""Places for root's own requests beside those of the API."""
CLIENT_SECONDS = 30
"""How long a client may stop in the middle of its request or its answer: HAProxy 3.0 keeps the connection of one whose
request it refused unread for so long."""
READY_SECONDS = 30
CLOUD_REST_SECONDS = 10
"""How long the cloud is left alone after a 429 that names no time, after a silence, and after three hollow answers."""
CLOUD_UNREAD_REST_SECONDS = 60
"""The same after a 429 that names a date, which HAProxy cannot read, or 0."""
CLOUD_LONGEST_REST_SECONDS = 3600
"""The same where a 429 names a longer time: it may be over sooner than its provider thinks."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
"""glibc's malloc keeps up to 64 MiB that are free. HAProxy keeps 512 KiB (CONFIG_HAP_POOL_CACHE_SIZE) and frees all
else, which would be faulted in anew for each request: 0.2 ms of the 0.3 that the gateway added to 2 kB."""
PROMETHEUS_QUERIES = ("query", "query_range", "query_exemplars", "series", "labels", "format_query")
"""What may also be asked by POST, below /api/v1: all of it reads."""
PROMETHEUS_PAGES = (
    *("graph", "alerts", "rules", "targets", "status", "flags", "config", "service-discovery", "tsdb-status"),
    *("favicon.ico", "manifest.json", "-/healthy", "-/ready"),
)
PROMETHEUS_API = tuple(
    f"api/v1/{page}"
    for page in (
        *("metadata", "targets", "targets/metadata", "rules", "alerts"),
        *(f"status/{what}" for what in ("buildinfo", "runtimeinfo", "flags", "tsdb", "walreplay", "config")),
    )
)
PROMETHEUS_FOLDERS = ("static", "classic/static", "api/v1/label")
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


def buffer_bytes(settings: Settings) -> int:
    """One buffer holds a request's headers and its whole body, so that limits apply to bodies of any encoding."""
    return settings.max_body_kib * 1024 + HEADER_BYTES


def max_connections(settings: Settings) -> int:
    """Requests at once, so that three quarters of the gateway's memory hold three times the largest body for each.

    Measured with 60 at once of 1 MiB each: 1.05 buffers while its last byte does not come or nobody takes it, as much
    again while it is read.
    """
    return max(8, min(256, settings.gateway_memory_max_mib * 1024**2 * 3 // 4 // (3 * buffer_bytes(settings))))


def longest_request_seconds(settings: Settings) -> int:
    """Silence that a client may see before the side that serves it has given up."""
    silence = max(settings.request_timeout_seconds, settings.cloud_silence_seconds if settings.cloud_url else 0)
    return settings.queue_timeout_seconds + silence + 10


def fallback_tokens(settings: Settings) -> int:
    """Estimated prompts below this are the host's to answer when the cloud fails."""
    return min(settings.context_tokens, settings.fallback_prompt_tokens or settings.context_tokens)


def addresses(settings: Settings, *, has_ipv6: bool) -> list[str]:
    """Where API and metrics are served. `localhost` is IPv6's address first, so no other user may have that one."""
    hosts = ("127.0.0.1", "[::1]") if has_ipv6 else ("127.0.0.1",)
    return [f"{host}:{port}" for host in hosts for port in (settings.api_port, settings.metrics_port)]


def socket_unit_file(settings: Settings, stamp: str, *, has_ipv6: bool) -> ManagedFile:
    """The unit that holds the gateway's sockets, with the stamp that it leaves where they were made."""
    return rendered(
        f"/etc/systemd/system/{paths.GATEWAY_SOCKET_UNIT}",
        api_port=settings.api_port,
        metrics_port=settings.metrics_port,
        more_addresses=addresses(settings, has_ipv6=has_ipv6)[2:],
        admin_socket=paths.GATEWAY_ADMIN_SOCKET,
        api_socket=paths.GATEWAY_API_SOCKET,
        gateway_user=paths.GATEWAY_USER,
        published=paths.PUBLISHED,
        stamp_file=paths.GATEWAY_SOCKETS_STAMP,
        stamp=stamp,
    )


def unit_file(settings: Settings, stamp: str) -> ManagedFile:
    """The gateway's unit, with the stamp that its running process is compared by."""
    return units.hardened(
        paths.GATEWAY_UNIT,
        resolves=settings.cloud_url is not None,
        api_port=settings.api_port,
        socket_unit=paths.GATEWAY_SOCKET_UNIT,
        gateway_user=paths.GATEWAY_USER,
        service_group=settings.service_group,
        gateway_memory_max_mib=settings.gateway_memory_max_mib,
        key_file=paths.CLOUD_KEY if settings.cloud_url else None,
        allocator=ALLOCATOR,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
    )


def reader_files(settings: Settings) -> list[ManagedFile]:
    """What haproxy.cfg loads: the reader of bodies, and the words of X-LLM-Route."""
    return [
        rendered(BODY_READER_FILE, fields=FIELDS, largest_bytes=settings.max_body_kib * 1024),
        ManagedFile(ROUTE_WORDS_FILE, "".join(f"{word} {route}\n" for word, route in ROUTE_WORDS.items())),
    ]


def configuration_file(settings: Settings, stamp: str) -> ManagedFile:
    """haproxy.cfg, with the stamp that the running worker is asked for."""
    own_rules = rules(settings)
    taken_over = fallback_tokens(settings)
    return rendered(
        CONFIGURATION_FILE,
        configuration_variable=CONFIGURATION_VARIABLE,
        stamp=stamp,
        runtime=paths.GATEWAY_RUNTIME,
        socket=paths.SOCKET,
        body_reader=BODY_READER_FILE,
        route_words=ROUTE_WORDS_FILE,
        maxconn=max_connections(settings),
        root_maxconn=ROOT_CONNECTIONS,
        buffer_bytes=buffer_bytes(settings),
        client_seconds=CLIENT_SECONDS,
        longest_request_seconds=longest_request_seconds(settings),
        retry_after_seconds=refusals.RETRY_AFTER_SECONDS,
        fallback_tokens=taken_over,
        most_prompts=refusals.most_prompts(settings),
        status_paths=refusals.STATUS_PATHS,
        model_paths=refusals.MODEL_PATHS,
        rules=own_rules,
        header_refusals=list(refusals.of_headers(settings)),
        body_refusals=list(refusals.of_body(settings)),
        routing_refusals=list(refusals.of_routing(settings, taken_over)),
        rate_limit=refusals.rate_limit(settings),
        over_context=refusals.over_context(settings, ""),
        queue_full=refusals.queue_full(settings, ""),
        outage=refusals.outage(settings, taken_over, ""),
        model_failures=refusals.MODEL_FAILURES,
        model_refusals=list(refusals.of_local_model(settings)),
        credentials=CLIENTS_CREDENTIALS,
        probe_reason=PROBE,
        prometheus=_prometheus() if settings.prometheus else None,
        request_metrics=request_metrics([PROBE, *(rule.reason for rule in own_rules)]),
        cloud=_cloud(settings),
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
            }
        ),
    )


def _prometheus() -> dict[str, Any]:
    return {
        "socket": paths.PROMETHEUS_SOCKET,
        "path": paths.PROMETHEUS_PATH,
        "queries": PROMETHEUS_QUERIES,
        "pages": [*PROMETHEUS_PAGES, "classic/", *(f"classic/{page}" for page in PROMETHEUS_PAGES), *PROMETHEUS_API],
        "folders": PROMETHEUS_FOLDERS,
    }


def _cloud(settings: Settings) -> dict[str, Any] | None:
    if settings.cloud_url is None:
        return None
    api = CLOUD_APIS[settings.cloud_api]
    key_header, key_value = api.key_header
    return {
        **asdict(address := cloud_address(settings.cloud_url)),
        "authority": address.authority,
        "names": (*settings.cloud_models, *settings.cloud_model_aliases),
        "models": model_list(settings),
        "key_header": f'{key_header} "{key_value.format(f"%[env({KEY_VARIABLE})]")}"',
        "headers": api.headers,
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


@deploy("Gateway")
def run(target: Target) -> None:
    """Write key, unit and configuration, and see that what runs is what they say.

    A changed configuration is judged by `haproxy -c` before it takes the old one's place, and reloaded without
    dropping a request; only a changed unit or key restarts the gateway.
    """
    settings, has_ipv6 = target.settings, target.machine.has_ipv6
    key_stamp = _place_key(settings)
    sockets_stamp = systemd.stamp(socket_unit_file(settings, stamp="", has_ipv6=has_ipv6).content)
    # A process keeps the sockets that it was given.
    unit_stamp = systemd.stamp(unit_file(settings, stamp="").content, key_stamp, sockets_stamp)
    readers = reader_files(settings)
    configuration_stamp = systemd.stamp(
        configuration_file(settings, stamp="").content, *(file.content for file in readers)
    )
    files.managed(name="Write what the gateway's configuration loads", files=readers)
    files.managed(
        name="Write the gateway's configuration",
        files=[configuration_file(settings, configuration_stamp)],
        validate="haproxy -c -q -f {}",
    )
    files.managed(
        name="Write the gateway's units",
        files=[socket_unit_file(settings, sockets_stamp, has_ipv6=has_ipv6), unit_file(settings, unit_stamp)],
    )
    systemd.sockets(
        name="Hold the gateway's ports",
        unit=paths.GATEWAY_SOCKET_UNIT,
        service=paths.GATEWAY_UNIT,
        stamp=sockets_stamp,
        stamp_file=paths.GATEWAY_SOCKETS_STAMP,
        addresses=addresses(settings, has_ipv6=has_ipv6),
    )
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
        on_host = read(FileDigests, paths=(paths.CLOUD_KEY,)).get(paths.CLOUD_KEY)
        # Without one preflight has stopped the host before anything is done with this.
        return on_host.sha256 if on_host else ""
    secret = ManagedFile(paths.CLOUD_KEY, environment_file(key), mode="0600")
    files.secret(name="Write the cloud's key", file=secret)
    return secret.sha256
