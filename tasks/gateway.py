"""HAProxy between programs on this machine and llama-server: queue, limits, errors, access log, counters."""

from __future__ import annotations

from pyinfra.api import deploy

from facts.haproxy import CONFIGURATION_VARIABLE
from facts.systemd import STAMP_VARIABLE
from operations import files, haproxy, systemd
from operations.files import ManagedFile
from settings import Settings
from tasks import paths
from tasks.rendering import rendered

CONFIGURATION_FILE = f"{paths.CONFIGURATION}/haproxy.cfg"
RETRY_AFTER_SECONDS = 5
HEADER_BYTES = 32 * 1024
READY_SECONDS = 30


def buffer_bytes(settings: Settings) -> int:
    """One buffer holds a request's headers and its whole body, so that limits apply to bodies of any encoding."""
    return settings.max_body_kib * 1024 + HEADER_BYTES


def max_connections(settings: Settings) -> int:
    """Connections whose two buffers each take at most half of the gateway's memory."""
    return max(16, min(256, settings.gateway_memory_max_mib * 1024**2 // 2 // (2 * buffer_bytes(settings))))


def unit_file(settings: Settings, stamp: str) -> ManagedFile:
    """The gateway's unit, with the stamp that its running process is compared by."""
    return rendered(
        f"/etc/systemd/system/{paths.GATEWAY_UNIT}",
        api_port=settings.api_port,
        gateway_user=paths.GATEWAY_USER,
        service_group=settings.service_group,
        gateway_memory_max_mib=settings.gateway_memory_max_mib,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
    )


def configuration_file(settings: Settings, stamp: str) -> ManagedFile:
    """haproxy.cfg, with the stamp that the running worker is asked for."""
    return rendered(
        CONFIGURATION_FILE,
        configuration_variable=CONFIGURATION_VARIABLE,
        stamp=stamp,
        admin_socket=paths.GATEWAY_ADMIN_SOCKET,
        socket=paths.SOCKET,
        maxconn=max_connections(settings),
        buffer_bytes=buffer_bytes(settings),
        api_port=settings.api_port,
        metrics_port=settings.metrics_port,
        parallel=settings.parallel,
        queue_length=settings.queue_length,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
        retry_after_seconds=RETRY_AFTER_SECONDS,
        max_body_kib=settings.max_body_kib,
    )


@deploy("Gateway")
def run(settings: Settings) -> None:
    """Write unit and configuration, and see that what runs is what they say.

    A changed configuration is judged by `haproxy -c` before it takes the old one's place, and reloaded without
    dropping a request; only a changed unit restarts the gateway.
    """
    unit_stamp = systemd.stamp(unit_file(settings, stamp="").content)
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
