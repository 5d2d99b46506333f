"""llama-server as a sandboxed systemd service on a unix socket."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from facts.systemd import STAMP_VARIABLE
from operations import files, systemd
from operations.files import ManagedFile
from tasks import units
from tasks.planning import compute_threads
from tasks.preflight import Target
from tasks.rendering import rendered

ENVIRONMENT_FILE = f"{paths.CONFIGURATION}/llama-server.env"
READY = f"curl -fsS -m 2 -o /dev/null --unix-socket {paths.SOCKET} http://localhost/health 2>/dev/null"
READY_SECONDS = 180
"""Loading a model is reading its file: enough for 2 GB at 12 MB/s."""
SOCKET_SECONDS = 60
"""llama-server makes its socket before it loads the model. systemd itself waits 90 s for a start."""


def unit_files(target: Target) -> list[ManagedFile]:
    """The unit and its slice."""
    settings = target.settings
    return [
        rendered("/etc/systemd/system/localllm.slice", cpu_weight=settings.cpu_weight),
        units.hardened(
            paths.SERVICE_UNIT,
            model_name=settings.selected_model.name,
            own_socket=paths.OWN_SOCKET,
            socket=paths.SOCKET,
            publish_socket=paths.PUBLISH_SOCKET,
            service_user=settings.service_user,
            service_group=settings.service_group,
            memory_max_mib=settings.memory_max_mib,
            cpu_quota_percent=settings.cpu_quota_percent,
        ),
    ]


def environment_file(target: Target, stamp: str) -> ManagedFile:
    """llama-server's options, with the stamp that the running process is compared by."""
    settings = target.settings
    return rendered(
        ENVIRONMENT_FILE,
        model_file=target.model_file,
        model_name=settings.selected_model.name,
        socket=paths.OWN_SOCKET,
        context_tokens=settings.context_tokens,
        kv_cache_type=settings.kv_cache_type,
        prompt_cache_mib=settings.reusable_prompts_mib,
        share_prompt_cache=settings.share_prompt_cache,
        repack_weights=settings.repack_weights,
        parallel=settings.parallel,
        threads=compute_threads(settings, target.machine),
        max_output_tokens=settings.max_output_tokens,
        request_timeout_seconds=settings.request_timeout_seconds,
        stamp_variable=STAMP_VARIABLE,
        stamp=stamp,
    )


def publish_script() -> ManagedFile:
    """What root runs to put llama-server's socket where the gateway finds it."""
    return rendered(
        paths.PUBLISH_SOCKET,
        mode="0755",
        directory=paths.PUBLISHED,
        gateway_user=paths.GATEWAY_USER,
        wait_seconds=SOCKET_SECONDS,
    )


def service_stamp(target: Target) -> str:
    """A digest of all that llama-server must be restarted for: units, publishing, options, binary and model."""
    options = environment_file(target, stamp="").content
    units = (file.content for file in (publish_script(), *unit_files(target)))
    return systemd.stamp(*units, options, target.release.id)


@deploy("Service")
def run(target: Target) -> None:
    """Write unit and options, restart at most once and only if something changed, and wait for its health."""
    stamp = service_stamp(target)
    files.managed(
        name="Write unit and options",
        files=[publish_script(), *unit_files(target), environment_file(target, stamp)],
    )
    systemd.service(
        name="Run llama-server",
        unit=paths.SERVICE_UNIT,
        stamp=stamp,
        ready=READY,
        ready_timeout_seconds=READY_SECONDS,
    )
