"""The words that may become a key of a sample, a label of a metric or a row of a report: closed lists.

What the gateway logs holds words of clients and of a cloud. None of them becomes a name that is kept: anything else
than these is "other", so that neither the history nor the text file grows by what somebody sends.
"""

from __future__ import annotations

from collections.abc import Mapping

OTHER = "other"
PROBE = "probe"
"""The reason of the health check's own requests."""
NOT_ROUTED = "not-routed"

RULES = {
    "local-model": "the request names the local model, so it never leaves this machine",
    "asked-local": "the header X-LLM-Route: local asks for it, so it never leaves this machine",
    "no-cloud": "no cloud is configured, so everything is answered here",
    "no-model": "it names no model, or not one alone, so it never leaves this machine",
    "unlisted-model": "its model is none of cloud_models (or cloud_model_aliases), so it never leaves this machine",
    "local-endpoint": "the cloud does not serve this path",
    "embeddings": "only the cloud makes embeddings",
    "asked-local-first": "the header X-LLM-Route: local-first asks for it",
    "asked-cloud-only": "the header X-LLM-Route: cloud-only asks for it",
    "asked-cloud": "the header X-LLM-Route: cloud asks for it",
    "priority": "its service_tier is one of route_priority_tiers",
    "reasoning": "its reasoning effort is none of route_low_efforts",
    "long-prompt": "its prompt is estimated above route_long_prompt_tokens",
    "long-answer": "it asks for more tokens than route_long_answer_tokens",
    "utility-task": "its header X-LLM-Task is one of route_utility_tasks",
    "short-prompt": "its prompt is estimated below route_short_prompt_tokens",
    "default": "no other rule fits",
}
"""Every reason that a rule of the gateway can have."""

BACKENDS = ("local", "cloud", "gateway")
REASONS = (*RULES, PROBE, NOT_ROUTED)
STATUSES = ("2xx", "3xx", "4xx", "5xx", "aborted", "broken")

_BACKENDS, _REASONS, _STATUSES = (frozenset((*words, OTHER)) for words in (BACKENDS, REASONS, STATUSES))


def backend(word: str) -> str:
    return word if word in _BACKENDS else OTHER


def request_key(by: str, reason: str, status: str) -> str:
    """The key of `Sample.requests`."""
    return f"{backend(by)}/{reason if reason in _REASONS else OTHER}/{status if status in _STATUSES else OTHER}"


def requests(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by such keys, those of other keys added up as "other"."""
    if KEYS.issuperset(counts):
        return dict(counts)
    closed: dict[str, int] = {}
    for key, count in counts.items():
        by, _, rest = key.partition("/")
        own = request_key(by, *rest.rpartition("/")[::2])
        closed[own] = closed.get(own, 0) + count
    return closed


KEYS = frozenset(f"{by}/{reason}/{status}" for by in _BACKENDS for reason in _REASONS for status in _STATUSES)
