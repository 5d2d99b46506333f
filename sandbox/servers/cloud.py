"""Stands in for a cloud provider: an HTTPS server that speaks OpenAI's and Anthropic's API and fails when told.

Its certificate comes from an authority of its own, `ca_pem`, and is valid for `name` and for its address. Tests run it
in their own process, give completions or the probe path a `Fault`, swap the certificate, stop listening, and read what
reached it; `python -m sandbox.servers.cloud` runs it by hand.
"""

import argparse
import json
import sys
import threading
import time
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from sandbox.common import cache_dir
from sandbox.servers.answers import Answer, Provider, error_answer
from sandbox.servers.base import serve
from sandbox.servers.script import Scripted
from sandbox.servers.tls import TlsHandler, TlsListener, TlsServer

CLOUD_NAME = "cloud.test"

# A client reads what was sent before a reset only if it had the time to.
BEFORE_RESET_SECONDS = 0.05

GONE = "The client went away in the middle of a request."

Target = Literal["completions", "probe"]


@dataclass(frozen=True)
class Fault(Scripted):
    """What goes wrong with a request, in the order of these fields; nothing by default.

    `hang_seconds` is silence before the headers. `reset` then breaks the connection (RST) without an answer;
    `status` answers that instead, with OpenAI's error body and `retry_after` as the header of that name; `answer` is
    sent as it is. Without any of them the answer follows, with `chunk_seconds` between its chunks, silence for
    `stall_seconds` once `stall_after_chunks` were sent (0: after the headers), and a reset once `break_after_chunks`
    were. Pauses end early when faults are cleared.
    """

    hang_seconds: float = 0
    reset: bool = False
    status: int | None = None
    retry_after: str | None = None
    answer: Answer | None = None
    chunk_seconds: float = 0
    stall_after_chunks: int | None = None
    stall_seconds: float = 0
    break_after_chunks: int | None = None


@dataclass(frozen=True)
class Request:
    """A request that came in whole, whatever was answered.

    `headers` are found in any case; `time` is Unix time; `server_name` is what TLS asked for (SNI);
    `connection` counts from 1, so that requests on a kept connection share it.
    """

    method: str
    path: str
    headers: Message
    body: bytes
    time: float
    server_name: str | None
    connection: int

    @property
    def target(self) -> Target:
        """Which kind of request it is: everything that computes is a POST."""
        return "completions" if self.method == "POST" else "probe"

    @property
    def host(self) -> str | None:
        """The Host header."""
        return self.headers["Host"]

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(kw_only=True)
class Cloud(Provider, TlsServer[Request, Fault]):
    """The server."""

    name: str = CLOUD_NAME

    def _listener_at(self, address: tuple[str, int]) -> "TlsListener[Cloud]":
        return TlsListener(address, _Handler, self)

    @property
    def url(self) -> str:
        """Address of the API by `name`."""
        return f"https://{self.name}:{self.port}{self.prefix}"

    @property
    def address_url(self) -> str:
        """Address of the API by `host`, which containers reach without resolving `name`."""
        return f"https://{self.host}:{self.port}{self.prefix}"

    def set_fault(self, fault: Fault, on: Target | None = None) -> None:
        """From now on this goes wrong with completions (every POST) or the probe (GET of the models).

        Without `on`, with both; `times` then counts for each by itself. It replaces an earlier fault.
        """
        for target in ("completions", "probe") if on is None else (on,):
            self.script.set(target, fault)

    def requests_for(self, target: Target) -> list[Request]:
        """The completions or the probes that came in, oldest first."""
        with self._lock:
            return [request for request in self.requests if request.target == target]


class _Handler(TlsHandler):
    server: TlsListener[Cloud]

    def respond(self) -> None:
        """Read the request whole, remember it, and do what the script says."""
        cloud, connection = self.server.owner, self.request
        body = self._read_body()
        request = Request(
            self.command, self.path, self.headers, body, time.time(), connection.asked_name, connection.number
        )
        cloud.record(request)
        fault, released = cloud.script.next(request.target, Fault())
        if fault.hang_seconds:
            released.wait(fault.hang_seconds)
        if fault.reset:
            self._reset()
        elif fault.status is not None:
            more = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._send(error_answer(fault.status, headers=more), Fault(), released)
        else:
            answer = fault.answer or cloud.answer_to(self.command, self.path, self.headers, body)
            self._send(answer, fault, released)

    def _read_body(self) -> bytes:
        """The whole body. ConnectionAbortedError when the client goes away in its middle."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self._read_line().partition(b";")[0], 16):
            pieces.append(self._read(size))
            self._read_line()
        while self._read_line().strip():
            pass
        return b"".join(pieces)

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionAbortedError(GONE)
        return content

    def _read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line:
            raise ConnectionAbortedError(GONE)
        return line

    def _send(self, answer: Answer, fault: Fault, released: threading.Event) -> None:
        length = str(sum(map(len, answer.chunks)))
        framing = {"Transfer-Encoding": "chunked"} if answer.is_stream else {"Content-Length": length}
        self.send_head(answer.status, {**answer.headers, **framing})
        for number, chunk in enumerate(answer.chunks):
            if number > 0 and fault.chunk_seconds:
                released.wait(fault.chunk_seconds)
            if number == fault.stall_after_chunks:
                released.wait(fault.stall_seconds)
            if number == fault.break_after_chunks:
                time.sleep(BEFORE_RESET_SECONDS)
                self._reset()
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if answer.is_stream else chunk)
        if answer.is_stream:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        self.request.ends_by_reset = True
        self.close_connection = True


def main(argv: list[str] | None = None) -> int:
    """`python -m sandbox.servers.cloud`: serve until stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.servers.cloud", description="Serve a scripted cloud provider's API to containers."
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    parser.add_argument("--prefix", default="/v1", help="path in front of /chat/completions and the others")
    parser.add_argument("--name", default=CLOUD_NAME, help="host name in the certificate (default: %(default)s)")
    parser.add_argument("--ca-file", type=Path, help="where to write the authority's certificate")
    options = parser.parse_args(argv)
    cloud = Cloud(prefix=options.prefix, name=options.name, port=options.port)
    ca_file = options.ca_file or cache_dir() / "cloud-ca.pem"

    def introduce() -> str:
        ca_file.write_text(cloud.ca_pem)
        return f"{cloud.address_url}, as {cloud.name} too; key {cloud.key}; authority in {ca_file}"

    return serve(cloud, introduce)


if __name__ == "__main__":
    sys.exit(main())
