"""The last health run as a text file for node_exporter, so that one Prometheus sees what the logs say.

Names are Prometheus' own kind: base units, `_total` for counters, one help text each. The gateway's page /requests has
`local_llm_requests_total` with what HAProxy counts since its start; here `local_llm_logged_requests_total` is what its
log says, with the status, and goes on over restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from checks.contract.paths import TEXTFILE_FALLBACK
from checks.samples import BUCKETS_SECONDS, Histogram, Sample
from checks.totals import Totals

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

NAME = "local_llm.prom"
_MODE = 0o644


def path(config: Config, host: Host) -> str:
    """Where the file goes: node_exporter's directory if there is one."""
    folder = config.textfile_directory
    return f"{folder if host.exists(folder) else TEXTFILE_FALLBACK}/{NAME}"


def write(config: Config, host: Host, sample: Sample, totals: Totals | None) -> None:
    """Put the file in its place, whole; raises OSError."""
    target = path(config, host)
    if target.startswith(TEXTFILE_FALLBACK):
        host.path(TEXTFILE_FALLBACK).mkdir(mode=0o755, exist_ok=True)
    host.replace(target, render(sample, totals), _MODE)


def render(sample: Sample, totals: Totals | None) -> str:
    """The metrics in Prometheus' text format; what is not known is left out.

    Without totals, because the history cannot be read, there is no counter at all: one that fell would read as a reset.
    """
    counted = [] if totals is None else [*_counters(sample, totals), *_histograms(totals)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*_gauges(sample), *counted]))
    return generate_latest(registry).decode()


class _Families:
    """What a registry collects: ready-made families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _gauges(sample: Sample) -> Iterator[Metric]:
    probed = {"ok": 1, "failed": 0}
    values: dict[str, tuple[str, float | None]] = {
        "local_llm_up": ("Whether the API answered the last health run.", _flag(sample.api == "ok")),
        "local_llm_healthy": ("Whether the last health run found nothing wrong.", _flag(sample.ok)),
        "local_llm_service_active": ("Whether llama-server's unit is active.", _flag(sample.service == "active")),
        "local_llm_gateway_active": ("Whether the gateway's unit is active.", _flag(sample.gateway == "active")),
        "local_llm_last_check_timestamp_seconds": ("When the last health run was.", sample.time),
        "local_llm_api_seconds": ("Time of the API's answer to /health.", sample.api_seconds),
        "local_llm_probe_ok": (
            "Whether the model answered a request for one token; missing where it was not asked.",
            probed.get(sample.probe or ""),
        ),
        "local_llm_probe_seconds": ("Time of that answer.", sample.probe_seconds),
        "local_llm_memory_bytes": ("Resident memory of llama-server.", sample.rss_bytes),
        "local_llm_cgroup_memory_bytes": ("Memory of the service with its file cache.", sample.memory_bytes),
        "local_llm_cgroup_memory_peak_bytes": ("The most of that since its start.", sample.memory_peak_bytes),
        "local_llm_memory_limit_bytes": ("Memory at which the kernel kills it.", sample.memory_limit_bytes),
        "local_llm_memory_stalled_ratio": (
            "How much of the last minute all of the service waited for memory; missing where the kernel does not tell.",
            None if sample.memory_stalled_percent is None else sample.memory_stalled_percent / 100,
        ),
        "local_llm_swap_used_bytes": ("Swap in use on the machine.", sample.swap_used_bytes),
        "local_llm_disk_free_bytes": ("Free space of the disk with the history.", sample.disk_free_bytes),
        "local_llm_disk_total_bytes": ("Size of that disk.", sample.disk_total_bytes),
        "local_llm_load1": ("Runnable processes, averaged over a minute.", sample.load1),
        "local_llm_queue_length": ("Requests that waited for the model.", sample.queue),
        "local_llm_cloud_up": (
            "Whether the gateway takes the cloud for up; missing without one.",
            {"up": 1, "down": 0}.get(sample.cloud or ""),
        ),
        "local_llm_drill_ok": ("Whether the last fallback drill went well.", _flag(sample.drill_ok)),
    }
    for name, (text, value) in values.items():
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)


def _counters(sample: Sample, totals: Totals) -> Iterator[Metric]:
    plain: dict[str, tuple[str, float | None]] = {
        "local_llm_cpu_seconds": ("CPU time of llama-server since its start.", sample.cpu_seconds),
        "local_llm_restarts": ("Restarts of llama-server after a crash since its start on purpose.", sample.restarts),
        "local_llm_gateway_restarts": (
            "Restarts of the gateway after a crash since its start on purpose.",
            sample.gateway_restarts,
        ),
        "local_llm_oom_kills": ("Kills of llama-server for lack of memory.", sample.oom_kills),
        "local_llm_gateway_oom_kills": ("Kills of the gateway for lack of memory.", sample.gateway_oom_kills),
        "local_llm_memory_high_events": (
            "How often the kernel held llama-server up at memory.high, since its start.",
            sample.memory_high_events,
        ),
        "local_llm_memory_max_events": (
            "How often llama-server had to give memory back at its limit, since its start.",
            sample.memory_max_events,
        ),
        "local_llm_heals": ("Restarts of a service by the health check.", totals.heals),
        "local_llm_prompt_tokens": ("Tokens that llama-server has read since its start.", sample.tokens_in),
        "local_llm_generated_tokens": ("Tokens that it has written since its start.", sample.tokens_out),
        "local_llm_prompt_seconds": ("Seconds that it took to read.", sample.prompt_seconds),
        "local_llm_generation_seconds": ("Seconds that it took to write.", sample.generation_seconds),
    }
    for name, (text, value) in plain.items():
        if value is not None:
            yield CounterMetricFamily(name, text, value=value)
    yield _labelled("local_llm_health_runs", "Health runs by result.", "result", totals.runs)
    yield _labelled("local_llm_probes", "Requests for one token by result.", "result", _probes(totals, asked=True))
    yield _labelled(
        "local_llm_probe_skipped", "Such requests not made, by reason.", "why", _probes(totals, asked=False)
    )
    requests = CounterMetricFamily(
        "local_llm_logged_requests",
        "Requests of users by who answered, why, and how; from the gateway's log.",
        labels=("backend", "reason", "code"),
    )
    for key, count in sorted(totals.requests.items()):
        requests.add_metric(key.split("/", 2), count)
    yield requests


def _histograms(totals: Totals) -> Iterator[Metric]:
    families: dict[str, tuple[str, Mapping[str, Histogram]]] = {
        "local_llm_response_seconds": ("Time of whole answers by backend.", totals.responses),
        "local_llm_first_byte_seconds": ("Time to the first byte of answers by backend.", totals.first_bytes),
    }
    for name, (text, by_backend) in families.items():
        family = HistogramMetricFamily(name, text, labels=("backend",))
        for backend, histogram in sorted(by_backend.items()):
            family.add_metric((backend,), _cumulative(histogram), sum_value=histogram.sum_seconds)
        yield family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(str, BUCKETS_SECONDS), "+Inf"]
    counts = [*histogram.buckets, *[0] * (len(bounds) - len(histogram.buckets))]
    return [(bound, sum(counts[: index + 1])) for index, bound in enumerate(bounds)]


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in sorted(values.items()):
        family.add_metric((value,), count)
    return family


def _probes(totals: Totals, *, asked: bool) -> dict[str, int]:
    if asked:
        return {name: totals.probes.get(name, 0) for name in ("ok", "failed", "refused")}
    return {name: totals.probes.get(f"skipped-{name}", 0) for name in ("busy", "traffic")}


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)
