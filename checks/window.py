"""What the journal tells of the time since the last health run: requests as the gateway logged them, and OOM kills.

The journal is read on from a cursor, so that every line counts once, whatever the clock did meanwhile. Imports little,
because the health check runs all day (see `probe`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from checks import journal, words
from checks.samples import Histogram

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_CLOUD_REFUSALS = ("401", "402", "403")
# These ask about the model, not the model.
_STATUS_PATHS = ("/health", "/v1/models")
_COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
_MILLISECONDS = re.compile(r"[0-9]{1,9}")
_HTTP_STATUS = re.compile(r"[1-5][0-9]{2}")


@dataclass(frozen=True)
class Window:
    """Counts as in `samples.Sample`; `local_answers` counts the local model's completions, and kills are the window's.

    `cursor` is where the next window begins; None if the journal has never been written. `cut`: more was said than is
    read at once, and the next window begins in the middle of it.
    """

    cursor: str | None = None
    cut: bool = False
    requests: Mapping[str, int] = field(default_factory=dict)
    responses: Mapping[str, Histogram] = field(default_factory=dict)
    first_bytes: Mapping[str, Histogram] = field(default_factory=dict)
    queue_seconds_max: float | None = None
    local_answers: int = 0
    cloud_refusals: Mapping[str, int] = field(default_factory=dict)
    oom_kills: int = 0
    gateway_oom_kills: int = 0


@dataclass(frozen=True)
class Request:
    """A line of the gateway's access log; `status` as in `samples.Sample.requests`, None for a duration without end."""

    path: str
    backend: str
    reason: str
    status: str
    queue_seconds: float | None
    first_byte_seconds: float | None
    total_seconds: float | None

    @property
    def by_user(self) -> bool:
        """Whether it asked the model, or tried to. The gateway answers well only where it explains a route."""
        explained = self.backend == "gateway" and self.status == "2xx"
        return self.path not in _STATUS_PATHS and self.reason != words.PROBE and not explained

    @property
    def completed(self) -> bool:
        """Whether it was answered with a whole text by a model."""
        return self.status == "2xx" and self.path in _COMPLETION_PATHS and self.backend in words.BACKENDS


def read(config: Config, host: Host, cursor: str | None) -> Window:
    """The window from the cursor on; without one it begins, empty, at the journal's end. Raises OSError."""
    units = (config.service_unit, config.gateway_unit)
    told = journal.since(host, [journal.by(config.gateway_unit), "+", *journal.oom_kills(*units)], cursor)
    kills: Counter[str] = Counter()
    refusals: Counter[str] = Counter()

    def requests() -> Iterator[Request]:
        for entry in told.entries:
            # All that systemd says of those that were asked for is a kill.
            if entry.by_systemd:
                kills[entry.about] += 1
            elif entry.unit == config.gateway_unit:
                if status := cloud_refusal(entry.message):
                    refusals[status] += 1
                if (request := parse_line(entry.message)) and request.by_user:
                    yield request

    found = summary(requests())
    return replace(
        found,
        cursor=told.cursor,
        cut=told.cut,
        # An answer of long ago proves nothing of the model now.
        local_answers=0 if told.cut else found.local_answers,
        cloud_refusals=dict(refusals),
        oom_kills=kills[config.service_unit],
        gateway_oom_kills=kills[config.gateway_unit],
    )


def summary(requests: Iterable[Request]) -> Window:
    """The requests, counted."""
    counts: Counter[str] = Counter()
    totals: dict[str, list[float]] = defaultdict(list)
    first_bytes: dict[str, list[float]] = defaultdict(list)
    queued: list[float] = []
    for request in requests:
        counts[words.request_key(request.backend, request.reason, request.status)] += 1
        if request.queue_seconds is not None:
            queued.append(request.queue_seconds)
        if request.completed and request.total_seconds is not None:
            totals[request.backend].append(request.total_seconds)
        if request.completed and request.first_byte_seconds is not None:
            first_bytes[request.backend].append(request.first_byte_seconds)
    return Window(
        requests=dict(counts),
        responses={backend: Histogram.of(durations) for backend, durations in totals.items()},
        first_bytes={backend: Histogram.of(durations) for backend, durations in first_bytes.items()},
        queue_seconds_max=max(queued, default=None),
        local_answers=len(totals.get("local", ())),
    )


def cloud_refusal(line: str) -> str:
    """The status by which the cloud refused a key, or wants to be paid; empty for any other line of the gateway's."""
    status = _values(line).get("provider_status", "") if line.startswith("cloud ") else ""
    return status if status in _CLOUD_REFUSALS else ""


def parse_line(line: str) -> Request | None:
    """A line of the access log, or None for anything else that the gateway says."""
    if not line.startswith("client="):
        return None
    values = _values(line)
    if not {"path", "status", "reason", "backend", "end"} <= values.keys():
        return None
    return Request(
        path=values["path"],
        backend=words.backend(_known(values["backend"], "gateway")),
        reason=_known(values["reason"], words.NOT_ROUTED),
        status=_status(values["status"], values["end"]),
        queue_seconds=_seconds(values.get("queue_ms")),
        first_byte_seconds=_seconds(values.get("first_byte_ms")),
        total_seconds=_seconds(values.get("total_ms")),
    )


def _values(line: str) -> dict[str, str]:
    # No value holds a space: HAProxy escapes them.
    return dict(part.split("=", 1) for part in line.split(" ") if "=" in part)


def _status(status: str, end: str) -> str:
    """2xx only for a whole answer. `end` is HAProxy's termination state: who broke it off, and when."""
    if status == "-1":
        return "aborted"
    if not _HTTP_STATUS.fullmatch(status):
        return words.OTHER
    if not status.startswith("2") or end[:1] in ("-", "L"):
        return f"{status[0]}xx"
    return "aborted" if end[:1] in ("C", "c") else "broken"


def _known(value: str, otherwise: str) -> str:
    return otherwise if value in ("-", "") else value


def _seconds(milliseconds: str | None) -> float | None:
    """HAProxy writes -1 for what did not happen."""
    return int(milliseconds) / 1000 if milliseconds and _MILLISECONDS.fullmatch(milliseconds) else None
