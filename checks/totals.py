"""Running totals of what the samples count in their windows: they only grow, as Prometheus wants its counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from checks import words
from checks.samples import Histogram, Sample, histograms


@dataclass(frozen=True)
class Totals:
    """Everything since the history began; keys as in `Sample`, `runs` by ok and failed, `probes` by `Sample.probe`."""

    requests: Mapping[str, int] = field(default_factory=dict)
    responses: Mapping[str, Histogram] = field(default_factory=dict)
    first_bytes: Mapping[str, Histogram] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)
    probes: Mapping[str, int] = field(default_factory=dict)
    heals: int = 0

    def plus(self, sample: Sample) -> Totals:
        """With a health run's sample."""
        return Totals(
            requests=_sum(self.requests, sample.requests),
            responses=_merged(self.responses, sample.responses),
            first_bytes=_merged(self.first_bytes, sample.first_bytes),
            runs=_sum(self.runs, {"ok" if sample.ok else "failed": 1}),
            probes=_sum(self.probes, {sample.probe: 1} if sample.probe else {}),
            heals=self.heals + (1 if sample.healed else 0),
        )

    def since(self, earlier: Totals) -> Totals:
        """What was counted after earlier totals of the same history; of another history, everything."""
        if any(self.requests.get(key, 0) < count for key, count in earlier.requests.items()):
            return self
        return Totals(
            requests=_difference(self.requests, earlier.requests),
            responses=_histograms(self.responses, earlier.responses),
            first_bytes=_histograms(self.first_bytes, earlier.first_bytes),
            runs=_difference(self.runs, earlier.runs),
            probes=_difference(self.probes, earlier.probes),
            heals=max(0, self.heals - earlier.heals),
        )

    def as_text(self) -> str:
        data = {
            "requests": self.requests,
            "responses": {key: each.as_json() for key, each in self.responses.items()},
            "first_bytes": {key: each.as_json() for key, each in self.first_bytes.items()},
            "runs": self.runs,
            "probes": self.probes,
            "heals": self.heals,
        }
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str | None) -> Totals:
        """From `as_text`; without any or from something else, totals of nothing.

        Keys that are of no closed list (`words`) are not kept, whatever wrote them.
        """
        try:
            data: dict[str, Any] = json.loads(text or "{}")
            return cls(
                requests=words.requests(data.get("requests", {})),
                responses=histograms(data.get("responses", {})),
                first_bytes=histograms(data.get("first_bytes", {})),
                runs=data.get("runs", {}),
                probes=data.get("probes", {}),
                heals=data.get("heals", 0),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def _difference(later: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
    rest = {key: count - earlier.get(key, 0) for key, count in later.items()}
    return {key: count for key, count in rest.items() if count > 0}


def _merged(one: Mapping[str, Histogram], other: Mapping[str, Histogram]) -> dict[str, Histogram]:
    return {key: one.get(key, Histogram()) + other.get(key, Histogram()) for key in {**one, **other}}


def _histograms(later: Mapping[str, Histogram], earlier: Mapping[str, Histogram]) -> dict[str, Histogram]:
    rest = {key: each - earlier.get(key, Histogram()) for key, each in later.items()}
    return {key: each for key, each in rest.items() if each.count}
