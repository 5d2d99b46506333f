"""Small requests with little CPU: /health over TCP or a unix socket, and a POST that is timed.

Cron runs this every few minutes. Importing requests costs 0.12 s of CPU more than http.client does
(measured: 0.23 s against 0.12 s for the whole interpreter), so this path uses http.client.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

_LARGEST_ANSWER = 64 * 1024
_LARGEST_PAGE = 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """`state` is one word: ok, loading, refused, timeout, forbidden, http_CODE or broken; `detail` is a phrase."""

    state: str
    milliseconds: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "ok"


class PostError(Exception):
    """No answer; the message is a phrase, as in `Answer.detail`."""


class NobodyThereError(PostError):
    """Nothing listens there, or not for this user: nobody was asked."""


@dataclass(frozen=True)
class Reply:
    """What a POST was answered; `seconds` to the first byte."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def backend(self) -> str:
        """Who answered: local, cloud or gateway; empty where the answer does not say."""
        return self.headers.get("X-LLM-Backend", "")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def over_tcp(url: str, timeout_seconds: float = 10.0) -> Answer:
    """GET /health of the server at `url`."""
    return _ask(_connection(url, timeout_seconds), urlsplit(url).path.rstrip("/") + "/health")


def over_socket(path: str, timeout_seconds: float = 10.0) -> Answer:
    """GET /health of the server on the unix socket `path`."""
    return _ask(_UnixConnection(path, timeout_seconds), "/health")


def models_over_socket(path: str, timeout_seconds: float = 10.0) -> bytes:
    """The list of models of the server on the unix socket `path`; raises OSError."""
    return get_over_socket(path, "/v1/models", timeout_seconds)


def get_over_socket(path: str, page: str, timeout_seconds: float = 10.0) -> bytes:
    """What the server on the unix socket `path` has at a page, 1 MiB at most; raises OSError."""
    connection = _UnixConnection(path, timeout_seconds)
    try:
        connection.request("GET", page)
        return connection.getresponse().read(_LARGEST_PAGE)
    except http.client.HTTPException as error:
        raise OSError(_phrase(error, timeout_seconds)[1]) from None
    finally:
        connection.close()


def get(url: str, timeout_seconds: float = 10.0) -> bytes:
    """The body of a page, 1 MiB at most; raises OSError for anything but an answer of 200."""
    connection = _connection(url, timeout_seconds)
    try:
        connection.request("GET", urlsplit(url).path or "/")
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"HTTP status {response.status}")
        return response.read(_LARGEST_PAGE)
    except http.client.HTTPException as error:
        raise OSError(_phrase(error, timeout_seconds)[1]) from None
    finally:
        connection.close()


def post(url: str, path: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_seconds: float = 10.0) -> Reply:
    """POST a body as it is; raises PostError."""
    return _post(_connection(url, timeout_seconds), path, headers, body)


def post_over_socket(
    socket_path: str, path: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_seconds: float = 10.0
) -> Reply:
    """The same to the server on a unix socket."""
    return _post(_UnixConnection(socket_path, timeout_seconds), path, headers, body)


def _post(connection: http.client.HTTPConnection, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> Reply:
    start = time.perf_counter()
    try:
        connection.putrequest("POST", path, skip_host=any(name.lower() == "host" for name, _ in headers))
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        # A server that refuses a large body answers before it has read all of it.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(body)
        response = connection.getresponse()
        seconds = time.perf_counter() - start
        return Reply(response.status, response.headers, response.read(_LARGEST_ANSWER), seconds)
    except (OSError, http.client.HTTPException) as error:
        state, phrase = _phrase(error, connection.timeout or 0)
        raise (NobodyThereError if state in ("refused", "forbidden") else PostError)(phrase) from None
    finally:
        connection.close()


def _connection(url: str, timeout_seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_seconds)


def _ask(connection: http.client.HTTPConnection, path: str) -> Answer:
    start = time.perf_counter()

    def answer(state: str, detail: str = "") -> Answer:
        return Answer(state, (time.perf_counter() - start) * 1000, detail)

    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(_LARGEST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        return answer(*_phrase(error, connection.timeout or 0))
    finally:
        connection.close()
    if response.status == 503 and b"oading model" in body:
        return answer("loading", "the model is still being loaded")
    if response.status != 200:
        return answer(f"http_{response.status}", f"HTTP status {response.status}")
    if b'"ok"' not in body:
        return answer("broken", "HTTP status 200, but not llama-server's answer")
    return answer("ok")


def _phrase(error: Exception, timeout_seconds: float) -> tuple[str, str]:
    """What went wrong, as one word and as a phrase."""
    if isinstance(error, TimeoutError):
        return "timeout", f"no answer in {timeout_seconds:.0f} s"
    if isinstance(error, PermissionError):
        return "forbidden", error.strerror or str(error)
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "refused", "nothing listens there" + (f" ({error.strerror})" if error.strerror else "")
    return "broken", f"{type(error).__name__}: {error}".rstrip(": ")
