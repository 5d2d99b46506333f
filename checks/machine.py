"""The machine around the service, and llama-server's own counters, with little CPU: read from /proc, not by psutil."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from checks import probe
from checks.contract.paths import STATE

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_TOKENS = {
    "tokens_in": ("llamacpp:prompt_tokens_total", int),
    "prompt_seconds": ("llamacpp:prompt_seconds_total", float),
    "tokens_out": ("llamacpp:tokens_predicted_total", int),
    "generation_seconds": ("llamacpp:tokens_predicted_seconds_total", float),
    "decodes": ("llamacpp:n_decode_total", int),
}
# An older llama-server tells between two steps of its work only; in the middle of a long prompt that can take longer.
_METRICS_SECONDS = 2.0


def look(host: Host) -> dict[str, Any]:
    """The fields of a sample that concern the machine; what cannot be read is left out."""
    found: dict[str, Any] = {}
    if boot_id := _text(host, "/proc/sys/kernel/random/boot_id"):
        found["boot_id"] = boot_id
    if uptime := _text(host, "/proc/uptime"):
        found["uptime_seconds"] = float(uptime.split()[0])
    if load := _text(host, "/proc/loadavg"):
        found["load1"] = float(load.split()[0])
    memory = dict(re.findall(r"^(SwapTotal|SwapFree):\s+(\d+) kB$", _text(host, "/proc/meminfo"), re.MULTILINE))
    if len(memory) == 2:
        found["swap_used_bytes"] = 1024 * (int(memory["SwapTotal"]) - int(memory["SwapFree"]))
    with suppress(OSError):
        found["disk_free_bytes"], found["disk_total_bytes"] = host.disk_bytes(STATE)
    return {**found, "cores": os.cpu_count()}


def cpu_seconds(host: Host, pid: int) -> float | None:
    """User and system time of a process since it started, its threads included."""
    # The name, in brackets, may hold anything; utime and stime are fields 14 and 15 of proc(5).
    values = _text(host, f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(values) < 13:
        return None
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def tokens(config: Config) -> dict[str, Any]:
    """llama-server's counters of tokens, of the seconds that they took, and of the steps of its work.

    Empty where it does not tell in time.
    """
    url = config.metrics_url.rpartition("/")[0] + "/llama/metrics"
    try:
        text = probe.get(url, _METRICS_SECONDS).decode(errors="replace")
    except OSError:
        return {}
    values = dict(re.findall(r"^(llamacpp:\w+) (\d[\d.e+]*)$", text, re.MULTILINE))
    return {name: kind(float(values[key])) for name, (key, kind) in _TOKENS.items() if key in values}


def _text(host: Host, path: str) -> str:
    try:
        return host.read(path).strip()
    except OSError:
        return ""
