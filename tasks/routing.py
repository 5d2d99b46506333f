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
from tasks.cloud_api import CLOUD_APIS, EMBEDDINGS

BACKENDS = ("local", "cloud", "gateway")
"""Values of X-LLM-Backend; the last for answers that the gateway gives itself."""


class Route(StrEnum):
    """Which side answers, and whether the other may."""

    LOCAL_ONLY = "local-only"
    LOCAL_FIRST = "local-first"
    CLOUD_FIRST = "cloud-first"
    CLOUD_ONLY = "cloud-only"


ROUTE_WORDS = {"local": Route.LOCAL_ONLY, "cloud": Route.CLOUD_FIRST} | {str(route): route for route in Route}
"""Values of X-LLM-Route, in any case: two words, and the routes themselves, as they are shown."""

FIELDS = {
    "model": "string",
    "max_tokens": "number",
    "max_completion_tokens": "number",
    "stream": "boolean",
    "cache_prompt": "boolean",
    "service_tier": "string",
    "reasoning_effort": "string",
    "reasoning.effort": "string",
    "output_config.effort": "string",
}
"""What is read of a request's body, by its place: HAProxy's variable txn.PLACE, where it is of that kind."""

_EFFORTS = tuple(place for place in FIELDS if place.endswith("effort"))

PROBE = "probe"
"""The reason of root's own requests, which come by a socket of their own and meet no rule."""


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
    """All rules in order; the first that matches decides, and the last matches everything.

    Those before `asked-local-first` say together what may leave: a request for one of the cloud's own models, by a path
    that the cloud serves, which nothing asks to stay.
    """
    local = [
        Rule("local-model", Route.LOCAL_ONLY, (f"{{ var(txn.model) -m str {settings.selected_model.name} }}",)),
        _asked("asked-local", Route.LOCAL_ONLY),
    ]
    if settings.cloud_url is None:
        return [*local, Rule("no-cloud", Route.LOCAL_ONLY, ("",))]
    api = CLOUD_APIS[settings.cloud_api]
    return [
        *local,
        Rule("no-model", Route.LOCAL_ONLY, ("!{ var(txn.model) -m found }",)),
        Rule("unlisted-model", Route.LOCAL_ONLY, ("!names_cloud_model",)),
        Rule("local-endpoint", Route.LOCAL_ONLY, (f"!{{ path {' '.join(api.paths)} }}",)),
        *([Rule("embeddings", Route.CLOUD_ONLY, (f"{{ path {EMBEDDINGS} }}",))] if api.makes_embeddings else ()),
        _asked("asked-local-first", Route.LOCAL_FIRST),
        _asked("asked-cloud-only", Route.CLOUD_ONLY),
        _asked("asked-cloud", Route.CLOUD_FIRST),
        *_rules_of_content(settings),
    ]


def _asked(reason: str, route: Route) -> Rule:
    words = " ".join(word for word, of_word in ROUTE_WORDS.items() if of_word is route)
    return Rule(reason, route, (f"{{ req.hdr(x-llm-route) -m str -i {words} }}",))


def _rules_of_content(settings: Settings) -> Iterator[Rule]:
    answer = settings.route_long_answer_tokens
    yield from _one_of("priority", Route.CLOUD_FIRST, "var(txn.service_tier)", settings.route_priority_tiers)
    # Providers think of new efforts; those that are none stay few.
    low = " ".join(settings.route_low_efforts)
    asks = (
        f"{{ var(txn.{place}) -m found }}" + (f" !{{ var(txn.{place}) -m str -i {low} }}" if low else "")
        for place in _EFFORTS
    )
    yield Rule("reasoning", Route.CLOUD_FIRST, tuple(asks))
    longest = f"{{ var(txn.prompt_tokens) -m int gt {settings.route_long_prompt_tokens} }}"
    yield Rule("long-prompt", Route.CLOUD_FIRST, (longest,))
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
        yield Rule(reason, route, (f"{{ {sample} -m str -i {' '.join(values)} }}",))


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
