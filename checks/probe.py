"""Asking /health, over TCP or a unix socket, with little CPU.

Cron runs this every few minutes. Importing requests costs 0.12 s of CPU more than http.client does
(measured: 0.23 s against 0.12 s for the whole interpreter), so this path uses http.client.
"""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_LARGEST_ANSWER = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """`state` is one word: ok, loading, refused, timeout, forbidden, http_CODE or broken; `detail` is a phrase."""

    state: str
    milliseconds: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "ok"


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
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_seconds)
    return _ask(connection, parts.path.rstrip("/") + "/health")


def over_socket(path: str, timeout_seconds: float = 10.0) -> Answer:
    """GET /health of the server on the unix socket `path`."""
    return _ask(_UnixConnection(path, timeout_seconds), "/health")


def _ask(connection: http.client.HTTPConnection, path: str) -> Answer:
    start = time.perf_counter()

    def answer(state: str, detail: str = "") -> Answer:
        return Answer(state, (time.perf_counter() - start) * 1000, detail)

    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(_LARGEST_ANSWER)
    except TimeoutError:
        return answer("timeout", f"no answer in {connection.timeout:.0f} s")
    except PermissionError as error:
        return answer("forbidden", error.strerror or str(error))
    except (ConnectionRefusedError, FileNotFoundError) as error:
        return answer("refused", "nothing listens there" + (f" ({error.strerror})" if error.strerror else ""))
    except (OSError, http.client.HTTPException) as error:
        return answer("broken", f"{type(error).__name__}: {error}".rstrip(": "))
    finally:
        connection.close()
    if response.status == 503 and b"oading model" in body:
        return answer("loading", "the model is still being loaded")
    if response.status != 200:
        return answer(f"http_{response.status}", f"HTTP status {response.status}")
    if b'"ok"' not in body:
        return answer("broken", "HTTP status 200, but not llama-server's answer")
    return answer("ok")
