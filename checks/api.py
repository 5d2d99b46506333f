"""The API: does it answer, with the right model, in time, through the gateway as a client would.

Completions go over requests with the proxies of the environment switched off: the API is on this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from checks import probe
from checks.result import Result, Status, judge

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

CONNECT_SECONDS = 5.0
# A cold utility request takes 11 s on the reference host; this leaves room for one more in the queue.
COMPLETION_SECONDS = 60.0
TINY_TOKENS = 8
_LARGEST_BODY = 1024 * 1024

# The last minute's load per core, before any completion, from which the machine counts as busy: llama.cpp
# falls to a third of its speed beside another busy process, which says nothing about this deployment.
BUSY_LOAD_PER_CORE = 0.75


class ApiError(Exception):
    """The API did not do what it promises; the message says what it did."""

    def __init__(self, message: str, status_code: int | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Completion:
    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Stream:
    text: str
    chunks: int
    first_token_seconds: float
    seconds: float
    finish_reason: str


def new_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def health(config: Config, host: Host) -> Iterator[Result]:
    """The gateway and, behind it, llama-server on its socket: which of the two is broken?"""
    through = probe.over_tcp(config.api_url)
    yield judge(
        "health through the gateway",
        through.ok,
        f"{through.milliseconds:.0f} ms" if through.ok else f"{through.state}: {through.detail}",
        "ok",
        "Clients get no answer. If the socket below is fine, the gateway is at fault: "
        f"sudo journalctl -u {config.gateway_unit} -n 50",
    )
    direct = probe.over_socket(str(host.path(config.socket)))
    if direct.state == "forbidden":
        host.require_root("the socket")
    yield judge(
        "health on the socket",
        direct.ok,
        f"{direct.milliseconds:.0f} ms" if direct.ok else f"{direct.state}: {direct.detail}",
        "ok",
        f"llama-server does not answer on {config.socket}: sudo journalctl -u {config.service_unit} -n 50",
    )


def models(config: Config, host: Host) -> Iterator[Result]:
    """/v1/models names the configured models, and llama-server has the configured context where it says so.

    With a cloud the list is the gateway's own; then the context is asked for on llama-server's socket.
    """
    name = "models list"
    wanted = (config.model.name, *(config.cloud.models if config.cloud else ()))
    try:
        with new_session() as session:
            data = _json(_get(session, f"{config.api_url}/v1/models"))
        entries = data["data"]
        ids = [str(entry["id"]) for entry in entries]
    except (ApiError, KeyError, TypeError) as error:
        yield Result(name, Status.FAIL, _explain(error), ", ".join(wanted), _logs(config))
        return
    stale = config.gateway_unit if config.cloud else config.service_unit
    yield judge(
        name,
        set(wanted) <= set(ids),
        ", ".join(ids) or "empty",
        ", ".join(wanted),
        f"Other models are served than the configured ones. Restart: sudo systemctl restart {stale}",
    )
    context = _context_of(config.model.name, entries)
    if context is None and config.cloud:
        context = _context_of(config.model.name, _entries_on_socket(config, host))
    if context is not None:
        yield judge(
            "context",
            context >= config.context_tokens,
            f"{context} tokens",
            f"at least {config.context_tokens} tokens",
            "Longer prompts are refused. The service runs with other settings than the deployed ones: "
            f"sudo systemctl restart {config.service_unit}",
        )


def completion(config: Config, _host: Host) -> Iterator[Result]:
    """A chat completion in one piece."""
    name, limit = "chat completion", "text and token counts"
    try:
        with new_session() as session:
            done = complete(session, config, "Reply with one word: hello")
    except ApiError as error:
        yield _failed(config, name, limit, error)
        return
    yield Result(name, Status.PASS, f"{done.tokens} tokens in {done.seconds:.2f} s", limit)


def streaming(config: Config, _host: Host) -> Iterator[Result]:
    """A chat completion in pieces: text arrives before the end, and the end is marked."""
    name, limit = "streamed completion", "chunks, then [DONE]"
    try:
        with new_session() as session:
            done = stream(session, config, "Count from one to five")
    except ApiError as error:
        yield _failed(config, name, limit, error)
        return
    value = f"first token {done.first_token_seconds:.2f} s, {done.chunks} chunks in {done.seconds:.2f} s"
    yield Result(name, Status.PASS, value, limit)


def response_time(config: Config, host: Host) -> Iterator[Result]:
    """A completion of at most 8 tokens, after others have warmed the model, against the limit.

    Too slow on an idle machine is a FAIL: the deployment cannot keep its promise. On a busy machine it is a
    WARN: the measurement says more about the other processes.
    """
    name, limit = "response time", f"at most {config.response_limit_seconds:g} s"
    load = host.load_per_core()
    try:
        with new_session() as session:
            done = complete(session, config, "Reply with one word: ready")
    except ApiError as error:
        yield _failed(config, name, limit, error)
        return
    busy = load >= BUSY_LOAD_PER_CORE
    yield judge(
        name,
        done.seconds <= config.response_limit_seconds,
        f"{done.seconds:.2f} s for {done.tokens} tokens" + (f", load {load:.1f} per core" if busy else ""),
        limit,
        "Other processes use the processor, so answers are slow. See which: top -o %CPU"
        if busy
        else "Answers are slow on an idle machine. See what the service waits for: "
        f"sudo journalctl -u {config.service_unit} -n 50; a smaller model or context helps",
        otherwise=Status.WARN if busy else Status.FAIL,
    )


def complete(session: requests.Session, config: Config, prompt: str) -> Completion:
    """Ask for a tiny completion in one piece; raises ApiError."""
    start = time.perf_counter()
    data = _json(_post(session, config.api_url, _request(config.model.name, prompt, TINY_TOKENS)))
    seconds = time.perf_counter() - start
    try:
        text = data["choices"][0]["message"]["content"]
        tokens = data["usage"]["completion_tokens"]
    except (KeyError, IndexError, TypeError):
        raise ApiError("the answer is not a chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise ApiError("the completion holds no text")
    if not isinstance(tokens, int) or tokens < 1:
        raise ApiError("the completion counts no tokens")
    return Completion(text, tokens, seconds)


def stream(session: requests.Session, config: Config, prompt: str) -> Stream:
    """Ask for a tiny completion in pieces; raises ApiError."""
    start = time.perf_counter()
    response = _post(session, config.api_url, _request(config.model.name, prompt, TINY_TOKENS, stream=True))
    pieces: list[str] = []
    first = 0.0
    finish_reason = ""
    for piece, reason in events(response, start + COMPLETION_SECONDS):
        if piece and not pieces:
            first = time.perf_counter() - start
        if piece:
            pieces.append(piece)
        finish_reason = reason or finish_reason
    if not pieces:
        raise ApiError("the stream holds no text")
    return Stream("".join(pieces), len(pieces), first, time.perf_counter() - start, finish_reason)


def events(response: requests.Response, deadline: float) -> Iterator[tuple[str, str]]:
    """(text, finish reason) of each chunk of a streamed completion.

    Ends at [DONE]; raises ApiError if the stream ends before, stalls past the deadline (perf_counter), or is
    not what it should be.
    """
    try:
        for line in response.iter_lines():
            if time.perf_counter() > deadline:
                raise ApiError("the stream took too long")
            if not line.startswith(b"data:"):
                if line.startswith(b"error:"):
                    raise ApiError(f"the server broke off: {_clip(line[6:].decode(errors='replace'))}")
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                return
            yield _chunk(payload)
    except requests.Timeout:
        raise ApiError("the stream stalled") from None
    except requests.RequestException:
        raise ApiError("the stream broke off before [DONE]") from None
    finally:
        response.close()
    raise ApiError("the stream ended without [DONE]")


def _chunk(payload: bytes) -> tuple[str, str]:
    try:
        data = json.loads(payload)
        if "error" in data:
            raise ApiError(f"the server broke off: {_error_text(data)}")
        choices = data["choices"]
        if not choices:  # the closing chunk with token counts has none
            return "", ""
        return choices[0]["delta"].get("content") or "", choices[0].get("finish_reason") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ApiError(f"the stream holds a malformed chunk: {_clip(payload.decode(errors='replace'))}") from None


def _request(model: str, prompt: str, max_tokens: int, stream: bool = False) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }


def _get(session: requests.Session, url: str) -> requests.Response:
    return _checked(lambda: session.get(url, timeout=(CONNECT_SECONDS, COMPLETION_SECONDS), stream=True))


def _post(session: requests.Session, api_url: str, body: dict[str, Any]) -> requests.Response:
    return chat(session, api_url, body, COMPLETION_SECONDS)


def chat(session: requests.Session, api_url: str, body: dict[str, Any], silence_seconds: float) -> requests.Response:
    """POST a chat completion; the body of the response is still to be read. Raises ApiError."""
    url = f"{api_url}/v1/chat/completions"
    return _checked(lambda: session.post(url, json=body, timeout=(CONNECT_SECONDS, silence_seconds), stream=True))


def _checked(send: Callable[[], requests.Response]) -> requests.Response:
    try:
        response = send()
    except requests.ConnectTimeout:
        raise ApiError(f"no connection in {CONNECT_SECONDS:.0f} s") from None
    except requests.Timeout:
        raise ApiError("no answer in time") from None
    except requests.ConnectionError as error:
        refused = "refused" in str(error)
        raise ApiError("nothing listens there" if refused else "the connection broke") from None
    except requests.RequestException as error:
        raise ApiError(_clip(str(error))) from None
    if response.status_code != 200:
        try:
            detail = _error_text(_json(response))
        except ApiError:
            detail = ""
        status = f"HTTP status {response.status_code}"
        after = response.headers.get("Retry-After", "")
        raise ApiError(
            f"{status}: {detail}" if detail else status,
            response.status_code,
            int(after) if after.isdigit() else None,
        )
    return response


def _json(response: requests.Response) -> dict[str, Any]:
    """The body as a JSON object, bounded in time and size."""
    deadline = time.perf_counter() + COMPLETION_SECONDS
    body = b""
    try:
        for piece in response.iter_content(64 * 1024):
            body += piece
            if len(body) > _LARGEST_BODY:
                raise ApiError("the answer is larger than 1 MiB")
            if time.perf_counter() > deadline:
                raise ApiError("the answer took too long")
    except requests.RequestException:
        raise ApiError("the answer broke off") from None
    finally:
        response.close()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError("the answer is not JSON") from None
    if not isinstance(data, dict):
        raise ApiError("the answer is not a JSON object")
    return data


def _error_text(data: dict[str, Any]) -> str:
    error = data.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return _clip(str(message)) if message else ""


def _entries_on_socket(config: Config, host: Host) -> Any:
    """What llama-server itself lists; empty where this user may not ask or it does not answer."""
    try:
        return json.loads(probe.models_over_socket(str(host.path(config.socket))))["data"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _context_of(model: str, entries: Any) -> int | None:
    for entry in entries:
        meta = entry.get("meta") if isinstance(entry, dict) and entry.get("id") == model else None
        if isinstance(meta, dict) and isinstance(meta.get("n_ctx"), int):
            return int(meta["n_ctx"])
    return None


def _failed(config: Config, name: str, limit: str, error: ApiError) -> Result:
    """A full queue is a WARN, as long as the service itself is healthy; all else is a FAIL."""
    if error.status_code == 503 and probe.over_tcp(config.api_url).ok:
        return Result(
            name,
            Status.WARN,
            f"busy ({error})",
            limit,
            "Other requests hold the slot and the queue, so nothing was measured. Try again: sudo local-llm test",
        )
    return Result(name, Status.FAIL, str(error), limit, _logs(config))


def _logs(config: Config) -> str:
    return f"The logs say why: sudo journalctl -u {config.service_unit} -u {config.gateway_unit} -n 50"


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, ApiError) else "the answer is not a list of models"


def _clip(text: str, length: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
