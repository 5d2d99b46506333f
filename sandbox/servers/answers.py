"""What a cloud provider answers, in OpenAI's and in Anthropic's format.

POST PREFIX/chat/completions, /completions, /embeddings    Authorization: Bearer KEY
POST PREFIX/messages                                       x-api-key: KEY, anthropic-version
GET  PREFIX/models                                         either
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

CLOUD_ANSWER = "The cloud provider answers: large, quick and far away."
CLOUD_KEY = "sandbox-cloud-key"
CLOUD_MODELS = ("cloud-large", "cloud-small")

# An answer that is not a stream is sent in pieces of this size, so that the same faults apply to it.
PIECE_BYTES = 64
# When answers say they were made: always the same, so that the same request has the same answer.
CREATED = 1_767_225_600

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response: a stream's chunks are its events; another body's are pieces of it."""

    status: int
    chunks: tuple[bytes, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False


@dataclass(frozen=True)
class _Job:
    """What an endpoint needs to know to answer: the parsed body, the known text, the prompt's size."""

    body: Json
    text: str
    prompt_tokens: int

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def words(self) -> list[str]:
        """The text in parts as a model would stream it."""
        first, *rest = self.text.split(" ")
        return [first, *(f" {word}" for word in rest)]

    @property
    def usage(self) -> Json:
        count = len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": count,
            "total_tokens": self.prompt_tokens + count,
        }


@dataclass
class Provider:
    """What it is asked with, and what it says to everything."""

    key: str = CLOUD_KEY
    prefix: str = "/v1"
    answer: str = CLOUD_ANSWER
    models: tuple[str, ...] = CLOUD_MODELS

    def answer_to(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        """What a provider that works answers."""
        endpoint = urlsplit(path).path.removeprefix(self.prefix)
        known = urlsplit(path).path.startswith(f"{self.prefix}/")
        if known and (method, endpoint) == ("GET", "/models"):
            if not (has_bearer_key(headers, self.key) or has_api_key(headers, self.key)):
                return error_answer(HTTPStatus.UNAUTHORIZED)
            return json_answer({"object": "list", "data": [_model(name) for name in self.models]})
        if not known or method != "POST" or endpoint not in ENDPOINTS:
            return error_answer(HTTPStatus.NOT_FOUND)
        has_key = has_api_key if endpoint == "/messages" else has_bearer_key
        if not has_key(headers, self.key):
            return error_answer(HTTPStatus.UNAUTHORIZED)
        parsed = _parsed_object(body)
        if parsed is None:
            return error_answer(HTTPStatus.BAD_REQUEST)
        # Four bytes a token, as a rule of thumb: nothing here reads the prompt.
        return ENDPOINTS[endpoint](_Job(parsed, self.answer, len(body) // 4 + 1))


def has_bearer_key(headers: Message, key: str) -> bool:
    """Whether a request carries the key as OpenAI's API wants it."""
    return headers.get("Authorization") == f"Bearer {key}"


def has_api_key(headers: Message, key: str) -> bool:
    """Whether a request carries the key and the version as Anthropic's API wants them."""
    return headers.get("x-api-key") == key and "anthropic-version" in headers


def error_answer(status: int, *, headers: Mapping[str, str] | None = None) -> Answer:
    """An error with OpenAI's body."""
    kind, code, message = ERRORS.get(status, ("server_error", None, "The scripted cloud fails as told."))
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_answer({"error": error}, status=status, headers=headers)


ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The body is not a JSON object."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    402: ("insufficient_quota", "insufficient_quota", "The account has no credit left."),
    403: ("invalid_request_error", "forbidden", "This key may not use this model."),
    404: ("invalid_request_error", "model_not_found", "The model or path does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached."),
    529: ("overloaded_error", "overloaded", "The provider is overloaded."),
}
"""Type, code and message of each error that is not just the server's."""


def json_answer(content: Json, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON body, in pieces."""
    body = json.dumps(content).encode()
    pieces = tuple(body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))
    return Answer(status, pieces, {"Content-Type": "application/json", **(headers or {})})


def stream_answer(events: Iterable[bytes]) -> Answer:
    """Server-sent events, one a chunk."""
    return Answer(HTTPStatus.OK, tuple(events), {"Content-Type": "text/event-stream"}, is_stream=True)


def _event(data: Json | str, name: str | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _openai_stream(job: _Job, head: Json, choices: Sequence[Json]) -> Answer:
    """The choices as events, then the usage if it is wanted, then the end mark."""
    contents = [{**head, "choices": [{"index": 0, "logprobs": None, **choice}]} for choice in choices]
    if (job.body.get("stream_options") or {}).get("include_usage"):
        contents.append({**head, "choices": [], "usage": job.usage})
    return stream_answer([*map(_event, contents), _event("[DONE]")])


def _chat_completion(job: _Job) -> Answer:
    head = {"id": "chatcmpl-sandbox", "created": CREATED, "model": job.model}
    if job.body.get("stream"):
        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in job.words)]
        choices = [*({"delta": delta, "finish_reason": None} for delta in deltas)]
        last = {"delta": {}, "finish_reason": "stop"}
        return _openai_stream(job, {**head, "object": "chat.completion.chunk"}, [*choices, last])
    message = {"role": "assistant", "content": job.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json_answer({**head, "object": "chat.completion", "choices": [choice], "usage": job.usage})


def _completion(job: _Job) -> Answer:
    head = {"id": "cmpl-sandbox", "object": "text_completion", "created": CREATED, "model": job.model}
    if job.body.get("stream"):
        choices: list[Json] = [{"text": word, "finish_reason": None} for word in job.words]
        return _openai_stream(job, head, [*choices, {"text": "", "finish_reason": "stop"}])
    choice = {"index": 0, "text": job.text, "logprobs": None, "finish_reason": "stop"}
    return json_answer({**head, "choices": [choice], "usage": job.usage})


def _message(job: _Job) -> Answer:
    head = {"id": "msg_sandbox", "type": "message", "role": "assistant", "model": job.model}
    usage = {"input_tokens": job.prompt_tokens, "output_tokens": len(job.words)}
    if job.body.get("stream"):
        return stream_answer(_event(event, event["type"]) for event in _message_events(job, head, usage))
    content = [{"type": "text", "text": job.text}]
    return json_answer({**head, "content": content, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage})


def _message_events(job: _Job, head: Json, usage: Json) -> list[Json]:
    begin = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    return [
        {"type": "message_start", "message": begin},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in job.words
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": usage["output_tokens"]},
        },
        {"type": "message_stop"},
    ]


def _embeddings(job: _Job) -> Answer:
    wanted = job.body.get("input")
    # A list of numbers is one text, already in tokens.
    is_many = isinstance(wanted, list) and not all(isinstance(item, int) for item in wanted)
    count = len(wanted) if is_many and isinstance(wanted, list) else 1
    vectors = [{"object": "embedding", "index": index, "embedding": [1.0, 0.0, 0.0]} for index in range(count)]
    usage = {"prompt_tokens": job.prompt_tokens, "total_tokens": job.prompt_tokens}
    return json_answer({"object": "list", "data": vectors, "model": job.model, "usage": usage})


ENDPOINTS: dict[str, Callable[[_Job], Answer]] = {
    "/chat/completions": _chat_completion,
    "/completions": _completion,
    "/messages": _message,
    "/embeddings": _embeddings,
}


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "sandbox"}


def _parsed_object(body: bytes) -> Json | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
