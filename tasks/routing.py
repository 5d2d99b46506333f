"""Who answers a request: the rules and the cloud's address, as the gateway's configuration wants them.

Knows no pyinfra. The rules are stated here once; docs/OPENCLAW.md explains them, and `local-llm route` asks the running
gateway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from settings import Settings

BACKENDS = ("local", "cloud", "gateway")
"""Values of X-LLM-Backend; the last for answers that the gateway gives itself."""


class Route(StrEnum):
    """Which side answers, and whether the other may."""

    LOCAL_ONLY = "local-only"
    LOCAL_FIRST = "local-first"
    CLOUD_FIRST = "cloud-first"
    CLOUD_ONLY = "cloud-only"


@dataclass(frozen=True)
class Rule:
    """Requests that meet one of the conditions (ACL expressions of HAProxy) go this way, and X-LLM-Reason says why."""

    reason: str
    route: Route
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class CloudAddress:
    """`cloud_url` in parts. `authority` is the Host header, `prefix` what replaces /v1 in a path."""

    host: str
    port: int
    tls: bool
    prefix: str

    @property
    def authority(self) -> str:
        return self.host if self.port == (443 if self.tls else 80) else f"{self.host}:{self.port}"


def cloud_address(url: str) -> CloudAddress:
    """The parts of a base address that `Settings` has accepted."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return CloudAddress(parts.hostname or "", parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def rules(settings: Settings) -> list[Rule]:
    """All rules in order; the first that matches decides, and the last matches everything."""
    local = [
        # The host's own checks, which are no user's requests.
        Rule("probe", Route.LOCAL_ONLY, ("{ req.hdr(x-llm-probe) -m found }",)),
        Rule("local-model", Route.LOCAL_ONLY, (f"{{ var(txn.model) -m str {settings.selected_model.name} }}",)),
        Rule("asked-local", Route.LOCAL_ONLY, ("{ req.hdr(x-llm-route) -m str -i local }",)),
    ]
    if settings.cloud_url is None:
        return [*local, Rule("no-cloud", Route.LOCAL_ONLY, ("",))]
    return [*local, *_endpoint_rules(settings), *_cloud_rules(settings)]


def _endpoint_rules(settings: Settings) -> Iterator[Rule]:
    served = {
        "openai": "/v1/messages /tokenize",
        "anthropic": "/v1/chat/completions /v1/completions /v1/embeddings /tokenize",
    }
    # Without a name no cloud could serve it; with one that cannot be read it might be the local model's.
    yield Rule("no-model", Route.LOCAL_ONLY, ("!{ var(txn.model) -m found }",))
    yield Rule("local-endpoint", Route.LOCAL_ONLY, (f"{{ path {served[settings.cloud_api]} }}",))
    if settings.cloud_api == "openai":
        yield Rule("embeddings", Route.CLOUD_ONLY, ("is_embedding",))


def _cloud_rules(settings: Settings) -> Iterator[Rule]:
    answer = settings.route_long_answer_tokens
    yield Rule("asked-cloud", Route.CLOUD_FIRST, ("{ req.hdr(x-llm-route) -m str -i cloud }",))
    yield from _one_of("priority", Route.CLOUD_FIRST, "var(txn.service_tier)", settings.route_priority_tiers)
    yield from _one_of("reasoning", Route.CLOUD_FIRST, "var(txn.reasoning_effort)", settings.route_reasoning_efforts)
    longest = f"{{ var(txn.prompt_tokens) -m int gt {settings.route_long_prompt_tokens} }}"
    yield Rule("long-prompt", Route.CLOUD_FIRST, (longest, "is_oversized"))
    yield Rule(
        "long-answer",
        Route.CLOUD_FIRST,
        tuple(f"{{ var(txn.{name}) -m int gt {answer} }}" for name in ("max_tokens", "max_completion_tokens")),
    )
    yield from _one_of("utility-task", Route.LOCAL_FIRST, "req.hdr(x-llm-task)", settings.route_utility_tasks)
    shortest = f"{{ var(txn.prompt_tokens) -m int lt {settings.route_short_prompt_tokens} }}"
    yield Rule("short-prompt", Route.LOCAL_FIRST, (shortest,))
    yield Rule("default", Route.CLOUD_FIRST, ("",))


def _one_of(reason: str, route: Route, sample: str, values: tuple[str, ...]) -> Iterator[Rule]:
    if values:
        yield Rule(reason, route, (f"{{ {sample} -m str {' '.join(values)} }}",))


def model_list(settings: Settings) -> str:
    """The answer of /v1/models with a cloud: the local model first, then the cloud's."""
    owners = {settings.selected_model.name: "local-llm", **dict.fromkeys(settings.cloud_models, "cloud")}
    data = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in owners.items()]
    return json.dumps({"object": "list", "data": data})


def request_metrics(reasons: Iterable[str]) -> str:
    """The body of /requests in Prometheus' text format, as a log-format string in HAProxy's double quotes."""
    name = "local_llm_requests_total"
    lines = [f"# HELP {name} Completions by who answered and why.", f"# TYPE {name} counter"]
    lines += [
        f'{name}{{backend="{backend}",reason="{reason}"}} %[str({backend}:{reason}),table_gpc0(requests)]'
        for reason in reasons
        for backend in BACKENDS
    ]
    return "".join(f"{line}\\n" for line in lines).replace('"', '\\"')
