"""What the gateway answers itself instead of a model, a row each: when, and in which words.

Knows no pyinfra. A message says what came and what would work; it is HAProxy's log-format, so a `%` is doubled and
`%[…]` is what it says. docs/API.md lists the codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from settings import Settings
from tasks.cloud_api import EMBEDDINGS
from tasks.routing import ROUTE_WORDS

STATUS_PATHS = ("/health", "/v1/models")
MODEL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", EMBEDDINGS)

RETRY_AFTER_SECONDS = 5
OUTAGE_RETRY_AFTER_SECONDS = 61
"""OpenClaw goes on to its next model where it is told to wait for more than a minute, and waits otherwise."""
CERTAIN_BYTES_PER_TOKEN = 16
"""No text but long runs of one character has so many bytes a token (benchmarks/token_estimate.py: at most 13.5)."""

HEADER_LENGTH, HEADERS_LENGTH, HEADERS_COUNT = 7_000, 24_000, 90
"""Bytes of one header and of all, and their number: llama-server takes no line above 8,192 bytes and no more than 100
headers (CPPHTTPLIB_HEADER_MAX_LENGTH, …_COUNT), and the gateway's buffer has 32 KiB for all of them."""

_SHOWN_PATH = "%[path,bytes(0,100),json(utf8s)]"


@dataclass(frozen=True)
class Refusal:
    """An answer of the gateway's own, in OpenAI's error format.

    `condition` is what stands behind HAProxy's `if`; `headers` are further ones.
    """

    status: int
    code: str
    condition: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def type(self) -> str:
        """OpenAI's class of errors, by which clients decide whether to try again."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> str:
        """As an argument in HAProxy's single quotes, in which nothing needs an escape but a quote, which none has."""
        assert "'" not in self.message, self.message
        return f'\'{{"error":{{"message":"{self.message}","type":"{self.type}","param":null,"code":"{self.code}"}}}}\''


def of_headers(settings: Settings) -> Iterator[Refusal]:
    """What is refused by its first line and headers, before anything of a body is read."""
    port = settings.api_port
    served = f"Served: GET {', '.join(STATUS_PATHS)}; POST {', '.join(MODEL_PATHS)}."
    bases = (
        f"The base URL is http://127.0.0.1:{port}/v1 for OpenAI clients, http://127.0.0.1:{port} for Anthropic clients."
    )
    yield Refusal(
        400,
        "host_missing",
        "!{ req.hdr(host) -m found }",
        f"The request has no Host header. Send Host: 127.0.0.1:{port}, as HTTP/1.1 wants it.",
    )
    yield Refusal(
        403,
        "browser_refused",
        "!is_local_name or { req.hdr(origin) -m found }",
        "This API serves programs on this machine, and no web pages: address it as 127.0.0.1 or localhost, not as "
        "%[req.hdr(host),bytes(0,100),json(utf8s)], and send no Origin header.",
    )
    yield Refusal(
        431,
        "headers_too_large",
        f"{{ req.fhdr() -m len gt {HEADER_LENGTH} }} or {{ req.hdrs -m len gt {HEADERS_LENGTH} }} "
        f"or {{ req.fhdr_cnt() gt {HEADERS_COUNT} }}",
        f"The headers are too large: at most {HEADER_LENGTH} bytes each, {HEADERS_LENGTH} bytes and {HEADERS_COUNT} "
        "headers in all.",
    )
    yield Refusal(404, "unknown_url", "!is_status !is_model", f"Unknown path {_SHOWN_PATH}. {bases} {served}")
    yield Refusal(
        405,
        "method_not_allowed",
        "is_status !{ method GET HEAD }",
        f"{_SHOWN_PATH} is asked by GET, not by %[method,json(utf8s)].",
        (("Allow", "GET"),),
    )
    yield Refusal(
        405,
        "method_not_allowed",
        "is_model !{ method POST }",
        f"{_SHOWN_PATH} is asked by POST, not by %[method,json(utf8s)].",
        (("Allow", "POST"),),
    )
    yield Refusal(
        400,
        "unexpected_body",
        "is_status { req.hdr_val(content-length) gt 0 } or is_status { req.hdr(transfer-encoding) -m found }",
        f"GET {_SHOWN_PATH} takes no body.",
    )
    yield Refusal(
        415,
        "encoding_unsupported",
        "{ req.hdr(content-encoding) -m found } !{ req.fhdr(content-encoding) -m str -i identity }",
        "Send the body without Content-Encoding: %[req.fhdr(content-encoding),bytes(0,100),json(utf8s)] came.",
    )
    yield Refusal(
        415,
        "content_type_unsupported",
        "is_model { req.hdr(content-type) -m beg -i multipart/ }",
        "Send JSON, with Content-Type: application/json: %[req.fhdr(content-type),bytes(0,60),json(utf8s)] came.",
    )
    known = ", ".join(ROUTE_WORDS)
    yield Refusal(
        400,
        "unknown_route",
        "is_model asks_unknown_route",
        f"X-LLM-Route is one of {known}: %[req.fhdr(x-llm-route),bytes(0,100),json(utf8s)] came.",
    )
    yield too_large(settings, f"is_model {{ req.hdr_val(content-length) gt {settings.max_body_kib * 1024} }}")


def too_large(settings: Settings, condition: str) -> Refusal:
    """What is not read whole: told by its length, or once so much of it has come."""
    return Refusal(
        413,
        "request_too_large",
        condition,
        f"The body is larger than {settings.max_body_kib} KiB. What cannot be read whole is neither answered here nor "
        "sent to a cloud; the setting max_body_kib raises the limit.",
    )


def of_body(settings: Settings) -> Iterator[Refusal]:
    """What is refused by its body, once it has come."""
    yield too_large(settings, f"{{ req.body_size gt {settings.max_body_kib * 1024} }}")
    at = "at byte %[var(txn.unread_at)]"
    words = {
        "empty": "The body is empty: send a JSON object.",
        "encoding": f"The body is not UTF-8 {at}: JSON is (RFC 8259).",
        "object": "The body is not a JSON object: it begins with something else than {.",
        "depth": f"The JSON is nested too deeply {at}: at most 256 levels.",
        "syntax": f"The body is not valid JSON {at}.",
    }
    for problem, message in words.items():
        yield Refusal(400, "invalid_json", f"{{ var(txn.unread) -m str {problem} }}", message)
    # Whatever kept it from being read: nothing goes on unread.
    yield Refusal(
        500, "gateway_error", "!{ var(txn.prompts) -m found }", "The gateway could not read the body. "
        "On the server: journalctl -u local-llm-gateway",
    )  # fmt: skip
    if not settings.share_prompt_cache:
        yield Refusal(
            400,
            "prompt_cache_off",
            "{ var(txn.cache_prompt) -m bool }",
            "cache_prompt is off on this host, so that its users cannot guess prompts of each other: leave it out.",
        )


def of_routing(settings: Settings, fallback_tokens: int) -> Iterator[Refusal]:
    """What nobody can answer now, or ever; the first that matches counts."""
    yield Refusal(
        400, "embeddings_unsupported", f"uses_local {{ path {EMBEDDINGS} }}", "The local model makes no embeddings."
    )
    yield over_context(
        settings,
        "uses_local !{ path /tokenize } "
        f"{{ var(txn.body_bytes) -m int gt {settings.context_tokens * CERTAIN_BYTES_PER_TOKEN} }}",
    )
    most = most_prompts(settings)
    yield Refusal(
        400,
        "too_many_prompts",
        f"uses_local {{ var(txn.prompts) -m int gt {most} }}",
        f"The list prompt holds %[var(txn.prompts)] prompts; the local model takes {most} in one request.",
    )
    yield Refusal(
        503,
        "model_unavailable",
        "uses_local { var(txn.local) -m str down }",
        "The local model is starting or stopped. On the server: local-llm status",
        _retry_after(),
    )
    yield queue_full(settings, "uses_local { var(txn.local) -m str full }")
    if settings.cloud_url is not None:
        yield outage(settings, fallback_tokens, "{ var(txn.use) -m str outage }")


def over_context(settings: Settings, condition: str) -> Refusal:
    """Too long for the local model."""
    message = f"The request is longer than the context of the local model, {settings.context_tokens} tokens."
    return Refusal(413, "context_length_exceeded", condition, message)


def queue_full(settings: Settings, condition: str) -> Refusal:
    """Back-pressure: told at once instead of after a wait."""
    message = f"The local model is busy and {settings.queue_length} requests wait already."
    return Refusal(503, "queue_full", condition, message, _retry_after())


def outage(settings: Settings, fallback_tokens: int, condition: str) -> Refusal:
    """What only the cloud could serve, while it does not."""
    # OpenClaw reads the words: "too long", "too large" or "exceeds the context" would end the turn instead of the try.
    message = (
        "The cloud provider does not serve this now, and the local model does not take it over: longer than "
        f"{fallback_tokens} tokens, or embeddings. On the server: local-llm status"
    )
    if settings.outage_status == 404:
        return Refusal(404, "model_not_found", condition, message)
    return Refusal(503, "cloud_unavailable", condition, message, _retry_after(OUTAGE_RETRY_AFTER_SECONDS))


def rate_limit(settings: Settings) -> Refusal:
    """More requests a minute than `requests_per_minute`."""
    condition = f"{{ int(0),table_http_req_rate(api_rate) ge {settings.requests_per_minute} }}"
    message = f"More than {settings.requests_per_minute} requests a minute (setting requests_per_minute)."
    return Refusal(429, "rate_limit_exceeded", condition, message, _retry_after(60))


def most_prompts(settings: Settings) -> int:
    """Prompts of one request that the local model takes: as many as requests that it would serve and let wait."""
    return settings.parallel + settings.queue_length


MODEL_FAILURES = (
    "Compute error.", "Invalid input batch.", "Context size has been exceeded.", "context shift ", "failed to process",
    "got exception: ", "input (", "the current context does not support", "The model produced output", "unknown error",
)  # fmt: skip
"""How llama-server's words begin where it failed at its work (tools/server/server-context.cpp). Its other answers of
500 are exceptions over a request that it was given: the client's mistake, as its 400 are."""

_UNREADABLE_PARTS = ("image input is not supported", "audio input is not supported", "video input is not supported")


def of_local_model(settings: Settings) -> Iterator[Refusal]:
    """What the local model refused: a mistake of the client's, in words that a person can act on.

    txn.words are llama-server's own; what mentions a remedy that nobody here has (mmproj) is said otherwise.
    """
    parts = " ".join(f'"{words}"' for words in _UNREADABLE_PARTS)
    yield Refusal(
        400,
        "unsupported_content",
        f"{{ var(txn.words) -m beg {parts} }}",
        "The local model reads text alone, and a message has a part that is none (image, audio or video). Leave it out"
        + (", or name a model of the cloud that takes it." if settings.cloud_url else "."),
    )
    yield Refusal(
        400,
        "invalid_request",
        "{ var(txn.words) -m found }",
        "The local model does not take this request: %[var(txn.words),bytes(0,500),json(utf8s)]",
    )
    yield Refusal(
        400,
        "invalid_request",
        "{ status 400:499 501 }",
        "The local model does not take this request (its HTTP status: %[status]), and does not say why.",
    )


def _retry_after(seconds: int = RETRY_AFTER_SECONDS) -> tuple[tuple[str, str], ...]:
    return (("Retry-After", str(seconds)),)
