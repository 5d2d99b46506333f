"""Which rule of the gateway fires for a request, asked of the running gateway itself: nothing is served.

The rules are the gateway's alone. What is said here about them is words for their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from checks import probe
from checks.probe import PostError, Reply
from checks.words import OTHER, RULES

DEFAULT_PATH = "/v1/chat/completions"
EXPLAIN = "X-LLM-Explain"
# They frame the request, or decide whether it is served at all.
_OWN_HEADERS = (EXPLAIN.lower(), "content-length", "transfer-encoding", "connection", "expect")
_LONGEST_WORDS = 300

_ROUTES = {
    "local-only": "local, and nowhere else",
    "local-first": "local; the cloud where local is down, its queue is full, or it refuses",
    "cloud-first": "cloud; on its outage local",
    "cloud-only": "cloud, and nowhere else",
}
_CLOUD = {
    "up": "up",
    "down": "down (why: sudo local-llm status)",
    "resting": "resting: it asked for fewer requests, was silent or gave no answers, and is tried again in a moment",
    "limited": "limited: cloud_requests_per_minute is used up",
    "none": "none configured",
}
_SIDES = ("local", "cloud", "gateway")
_LOCAL = {"up": "up", "full": "full: its queue takes no more", "down": "down (why: sudo local-llm status)"}


class RouteError(Exception):
    """The gateway explained nothing; the message is one line for a person."""


class HeaderError(ValueError):
    """A header on the command line is none, or not the user's to set; the message is one line."""


@dataclass(frozen=True)
class Explanation:
    """The gateway's answer: the rule, the route, where the request would go now, and what it was decided on."""

    rule: str
    route: str
    would_use: str
    prompt_tokens: int
    max_tokens: int | None
    fits_local: bool
    cloud: str
    local: str
    raw: dict[str, Any]


def explain(
    api_url: str, body: bytes, path: str = DEFAULT_PATH, headers: Sequence[tuple[str, str]] = ()
) -> Explanation:
    """Ask what the gateway would do with this body; raises RouteError.

    A gateway that explains nothing would serve the request. So it is asked with an empty one first, and only one
    that explains that is shown the body.
    """
    kind = () if any(name.lower() == "content-type" for name, _ in headers) else (("Content-Type", "application/json"),)
    headers = (*kind, *headers, (EXPLAIN, "1"))
    _explained(api_url, path, _post(api_url, path, headers, b"{}"))
    return _explained(api_url, path, _post(api_url, path, headers, body))


def parse_header(text: str) -> tuple[str, str]:
    """A header as curl's -H takes it, "Name: value"; raises HeaderError."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name or not all(char.isalnum() or char in "-_" for char in name) or not name.isascii():
        raise HeaderError(f"{text!r} is not a header such as 'X-LLM-Task: utility'")
    if not value.isprintable() or not value.isascii():
        raise HeaderError(f"the value of {name} holds more than printable ASCII")
    if name.lower() in _OWN_HEADERS:
        raise HeaderError(f"{name} is set by this command")
    return name, value


def lines(found: Explanation) -> Iterator[str]:
    """The explanation for a person."""
    rows = {
        "rule": f"{found.rule}: {RULES.get(found.rule, 'a rule of the gateway')}",
        "prompt": f"about {found.prompt_tokens} tokens, "
        + ("fits the local context" if found.fits_local else "does not fit the local context"),
        "answer": "no limit set" if found.max_tokens is None else f"at most {found.max_tokens} tokens",
        "route": _route(found),
        "now": "refused by the gateway: nothing can serve it" if found.would_use == "gateway" else found.would_use,
        "cloud": _CLOUD.get(found.cloud, found.cloud),
        "local": _LOCAL.get(found.local, found.local),
    }
    return (f"{label:6}  {text}" for label, text in rows.items())


def cloud_words(state: str) -> str:
    """The state of the cloud for a person."""
    return _CLOUD.get(state, state)


def _route(found: Explanation) -> str:
    words = f"{found.route}: {_ROUTES.get(found.route, 'as the gateway says')}"
    if found.route == "cloud-first" and not found.fits_local:
        return f"{words}, but this one is too long for it"
    return words


def _post(api_url: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> Reply:
    try:
        return probe.post(api_url, path, headers, body)
    except PostError as error:
        raise RouteError(
            f"The gateway does not answer at {api_url} ({error}). See what is down: local-llm status; "
            "start it: sudo systemctl start local-llm-gateway"
        ) from None


def _explained(api_url: str, path: str, reply: Reply) -> Explanation:
    data = _object(reply.body)
    if reply.status != 200:
        raise RouteError(f"The gateway refuses the request (HTTP status {reply.status}): {_said(reply, data)}")
    try:
        return _explanation(data)
    except (KeyError, TypeError):
        raise RouteError(
            f"{api_url}{path} did not explain: it answered with something else (HTTP status 200, from "
            f"{reply.backend or 'an unnamed server'}). The gateway is older than this command; deploy again."
        ) from None


def _explanation(data: dict[str, Any]) -> Explanation:
    words = {key: data[key] for key in ("rule", "route", "would_use", "cloud", "local")}
    tokens, limit, fits = data["estimated_prompt_tokens"], data["max_tokens"], data["fits_local"]
    known = {"rule": RULES, "route": _ROUTES, "would_use": _SIDES, "cloud": _CLOUD, "local": _LOCAL}
    if not all(isinstance(word, str) for word in words.values()):
        raise TypeError
    words = {name: word if word in known[name] else OTHER for name, word in words.items()}
    if not isinstance(tokens, int) or not isinstance(limit, int | None) or not isinstance(fits, bool):
        raise TypeError
    raw = {**words, **{key: data[key] for key in ("estimated_prompt_tokens", "max_tokens", "fits_local")}}
    return Explanation(**words, prompt_tokens=tokens, max_tokens=limit, fits_local=fits, raw=raw)


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _said(reply: Reply, data: dict[str, Any]) -> str:
    error = data.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else reply.body[:200].decode(errors="replace")
    return " ".join(text[:_LONGEST_WORDS].split()) or "without a word"
