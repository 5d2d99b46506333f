"""The hourly measurement: what the hour was like, in one sample and one logfmt line.

    2026-11-22T11:02:00Z window_s=3600 cpu_s=212 cpu_percent=5.9 rss_mib=1204 … requests=31 local=29 … p95_ms=2870 …

Requests and their durations are those that the health runs of the hour counted. A value that is not known is "-".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from checks import cgroup, health, machine
from checks.host import MIB
from checks.samples import METRICS, Histogram, Sample, increase, window_seconds
from checks.totals import Totals

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host


def measure(config: Config, host: Host, counted: Totals | None, seen: Sample | None, before: Sample | None) -> Sample:
    """The hour's sample; where systemd does not answer, that is its reason to fail, and what needs it is not known.

    `counted` is what the health runs counted since `before`, the metrics sample that was stored last, and `seen` what
    the latest of them found.
    """
    sample = Sample(
        time=int(host.now()),
        kind=METRICS,
        memory_limit_bytes=config.memory_max_mib * MIB,
        oom_kills=seen.oom_kills if seen else None,
        gateway_oom_kills=seen.gateway_oom_kills if seen else None,
        cloud=seen.cloud if seen else None,
        drill_ok=seen.drill_ok if seen else None,
        **machine.look(host),
    )
    sample = replace(sample, window_seconds=window_seconds(sample, before), **_of_the_units(config, host))
    if counted is None:
        return sample
    return replace(sample, requests=counted.requests, responses=counted.responses, first_bytes=counted.first_bytes)


def _of_the_units(config: Config, host: Host) -> dict[str, Any]:
    try:
        service, front = host.units(config.service_unit, config.gateway_unit)
    except (OSError, TimeoutError) as error:
        return {"service": "unknown", "gateway": "unknown", "ok": False, "reasons": (str(error),)}
    found: dict[str, Any] = {
        "service": service.active_state,
        "gateway": front.active_state,
        "restarts": service.restarts,
        "gateway_restarts": front.restarts,
    }
    if service.active:
        found |= machine.tokens(config)
    if service.pid:
        memory = cgroup.read(host, service)
        found |= {
            "cpu_seconds": machine.cpu_seconds(host, service.pid),
            "rss_bytes": health.resident_bytes(host, service),
            "memory_bytes": memory.current_bytes,
            "memory_peak_bytes": memory.peak_bytes,
        }
    return found


def format_line(sample: Sample, before: Sample | None) -> str:
    """The sample as one line, without the line break."""
    before = before or Sample(time=0)
    cpu = increase(before.cpu_seconds, sample.cpu_seconds)
    written = increase(before.tokens_out, sample.tokens_out)
    writing = increase(before.generation_seconds, sample.generation_seconds)
    durations = sum(sample.responses.values(), Histogram())
    values: dict[str, object] = {
        "window_s": _rounded(sample.window_seconds),
        "cpu_s": _rounded(cpu, 1),
        "cpu_percent": _rounded(_percent(cpu, sample.window_seconds), 1),
        "rss_mib": health.mib(sample.rss_bytes),
        "cgroup_mib": health.mib(sample.memory_bytes),
        "peak_mib": health.mib(sample.memory_peak_bytes),
        "limit_mib": health.mib(sample.memory_limit_bytes),
        "swap_mib": health.mib(sample.swap_used_bytes),
        "load": sample.load1,
        "disk_free_mib": health.mib(sample.disk_free_bytes),
        "requests": sum(sample.requests.values()),
        **{backend: _answered(sample, backend) for backend in ("local", "cloud")},
        "failed": sum(count for key, count in sample.requests.items() if not key.endswith("/2xx")),
        "mean_ms": health.ms(durations.mean_seconds),
        **{f"p{percent}_ms": health.ms(durations.quantile(percent / 100)) for percent in (50, 95, 99)},
        "tokens_in": increase(before.tokens_in, sample.tokens_in),
        "tokens_out": written,
        "tokens_per_s": _rounded(written / writing, 1) if written and writing else None,
        "restarts": sample.restarts,
        "oom_kills": sample.oom_kills,
    }
    if sample.reasons:
        values["reason"] = "; ".join(sample.reasons)
    return f"{health.timestamp(sample.time)} {health.logfmt(values)}"


def _answered(sample: Sample, backend: str) -> int:
    return sum(
        count for key, count in sample.requests.items() if key.startswith(f"{backend}/") and key.endswith("/2xx")
    )


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole


def _rounded(value: float | None, digits: int | None = None) -> float | None:
    return None if value is None else round(value, digits)
