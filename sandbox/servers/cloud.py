"""Stands in for a cloud provider: an HTTPS server that speaks OpenAI's and Anthropic's API and fails when told.

    POST PREFIX/chat/completions, /completions, /embeddings    Authorization: Bearer KEY
    POST PREFIX/messages                                       x-api-key: KEY, anthropic-version
    GET  PREFIX/models                                         either

Like the hub it listens on the address that containers reach the host by, and on no other. Its certificate
comes from an authority of its own, `ca_pem`, and is valid for `name` and for that address. Tests run it in their
own process, give completions or the probe path a `Fault`, swap the certificate, stop listening, and read what
reached it; `python -m sandbox.servers.cloud` runs it by hand.
"""

import argparse
import contextlib
import json
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandbox.common import SandboxError, cache_dir, fail, say
from sandbox.servers.hub import hub_address

CLOUD_ANSWER = "The cloud provider answers: large, quick and far away."
CLOUD_KEY = "sandbox-cloud-key"
CLOUD_NAME = "cloud.test"
CLOUD_MODELS = ("cloud-large", "cloud-small")
OTHER_NAME = "another.test"

HANDSHAKE_SECONDS = 10.0
# A client reads what was sent before a reset only if it had the time to.
BEFORE_RESET_SECONDS = 0.05
# An answer that is not a stream is sent in pieces of this size, so that the same faults apply to it.
PIECE_BYTES = 64
# When answers say they were made: always the same, so that the same request has the same answer.
CREATED = 1_767_225_600

GONE = "The client went away in the middle of a request."

Target = Literal["completions", "probe"]
Certificate = Literal["good", "unknown-authority", "wrong-name", "expired"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request, in the order of these fields; nothing by default.

    `hang_seconds` is silence before the headers. `reset` then breaks the connection (RST) without an answer;
    `status` answers that instead, with OpenAI's error body and `retry_after` as the header of that name; `answer` is
    sent as it is. Without any of them the answer follows, with `chunk_seconds` between its chunks, silence for
    `stall_seconds` once `stall_after_chunks` were sent (0: after the headers), and a reset once `break_after_chunks`
    were. Pauses end early when faults are cleared. `times`: only so many requests (None: each one).
    """

    hang_seconds: float = 0
    reset: bool = False
    status: int | None = None
    retry_after: str | None = None
    answer: "Answer | None" = None
    chunk_seconds: float = 0
    stall_after_chunks: int | None = None
    stall_seconds: float = 0
    break_after_chunks: int | None = None
    times: int | None = None


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
    def host(self) -> str | None:
        """The Host header."""
        return self.headers["Host"]

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class Cloud:
    """The server.

    Start it with start() or as a context manager. `host` is the address that containers reach it by; `name` is
    for them to resolve, in /etc/hosts for instance.
    """

    key: str = CLOUD_KEY
    prefix: str = "/v1"
    answer: str = CLOUD_ANSWER
    models: tuple[str, ...] = CLOUD_MODELS
    name: str = CLOUD_NAME
    port: int = 0
    bind: str | None = None
    host: str | None = None

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.handshakes = 0
        self._certificate: Certificate | None = None
        self._authority = _Authority.make("sandbox cloud authority")
        self._faults: dict[Target, Fault] = {}
        self._lock = threading.Lock()
        # Set, and replaced by a new one, when pauses that go on are to end.
        self._released = threading.Event()
        self._server: _Server | None = None
        # Keeps the port from others while nobody listens: bound, it is refused all the same.
        self._port_keeper: socket.socket | None = None

    def start(self) -> Self:
        """Listen and answer in a thread of this process.

        Raises SandboxError when the address cannot be used.
        """
        if self.bind is None or self.host is None:
            bind, host = hub_address()
            self.bind, self.host = self.bind or bind, self.host or host
        self.use_certificate("good")
        self.listen()
        return self

    def stop(self) -> None:
        """Stop listening, end pauses that go on and close all connections."""
        self.stop_listening()
        self._free_port()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of the API by `name`."""
        return f"https://{self.name}:{self.port}{self.prefix}"

    @property
    def address_url(self) -> str:
        """Address of the API by `host`, which containers reach without resolving `name`."""
        return f"https://{self.host}:{self.port}{self.prefix}"

    @property
    def ca_pem(self) -> str:
        """The certificate to trust; the same as long as this object lives."""
        return self._authority.certificate.public_bytes(Encoding.PEM).decode()

    def listen(self) -> None:
        """Listen (again), on the port had before; nothing to do for one that listens.

        Raises SandboxError when the address cannot be used.
        """
        if self._server is not None:
            return
        self._free_port()
        try:
            self._server = _Server((str(self.bind), self.port), self)
        except OSError as error:
            raise SandboxError(
                f"The cloud cannot listen on {self.bind}:{self.port} ({error.strerror}). Stop what uses that port."
            ) from error
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop_listening(self) -> None:
        """Refuse new connections and close those there are, as a server whose process ended."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._port_keeper = _bound(str(self.bind), self.port)
            self._release()
            server.close_connections()

    def use_certificate(self, kind: Certificate) -> None:
        """Show that certificate from now on; nothing to do where it is shown already.

        It closes kept connections, whose handshake is behind them. The new TLS context also has new ticket keys,
        so no client resumes a session it verified before.
        """
        if kind == self._certificate:
            return
        names, addresses = _names_and_addresses(self.name, str(self.bind), str(self.host))
        authority = _Authority.make("unknown authority") if kind == "unknown-authority" else self._authority
        if kind == "wrong-name":
            names, addresses = [OTHER_NAME], []
        self.context = _server_context(authority.issue(names, addresses, expired=kind == "expired"))
        self._certificate = kind
        if self._server is not None:
            self._server.close_connections()

    def set_fault(self, fault: Fault, on: Target | None = None) -> None:
        """From now on this goes wrong with completions (every POST) or the probe (GET of the models).

        Without `on`, with both; `times` then counts for each by itself. It replaces an earlier fault.
        """
        with self._lock:
            targets: tuple[Target, ...] = ("completions", "probe") if on is None else (on,)
            self._faults.update(dict.fromkeys(targets, fault))

    def recover(self) -> None:
        """As a cloud that works again: no faults, pauses end, the good certificate, listening."""
        self._release(clear_faults=True)
        self.use_certificate("good")
        self.listen()

    def clear(self) -> None:
        """Recover, and forget all recorded requests and counts."""
        self.recover()
        with self._lock:
            self.requests.clear()
            self.connections = self.handshakes = 0

    def requests_for(self, target: Target) -> list[Request]:
        """The completions or the probes that came in, oldest first."""
        with self._lock:
            return [request for request in self.requests if target_of(request.method) == target]

    def record(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    def count_connection(self) -> int:
        """Count a TCP connection; returns its number."""
        with self._lock:
            self.connections += 1
            return self.connections

    def count_handshake(self) -> None:
        """Count a TLS handshake that the client finished too."""
        with self._lock:
            self.handshakes += 1

    def next_fault(self, target: Target) -> tuple[Fault, threading.Event]:
        """What to do wrong with this request, and what its pauses wait for. Uses up one of `times`."""
        with self._lock:
            fault = self._faults.get(target, Fault())
            if fault.times == 0:
                return Fault(), self._released
            if fault.times is not None:
                self._faults[target] = replace(fault, times=fault.times - 1)
            return fault, self._released

    def _free_port(self) -> None:
        if self._port_keeper is not None:
            self._port_keeper.close()
            self._port_keeper = None

    def _release(self, *, clear_faults: bool = False) -> None:
        """End pauses that go on. In one step with the faults, so that no request takes one and misses its end."""
        with self._lock:
            if clear_faults:
                self._faults.clear()
            released, self._released = self._released, threading.Event()
        released.set()


class _Connection(ssl.SSLSocket):
    """A TLS connection, with its number, what its handshake asked for, and whether it ends by a reset."""

    number = 0
    asked_name: str | None = None
    ends_by_reset = False

    def hang_up(self) -> None:
        """End both directions. Below TLS, because another thread may be reading from it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self, socket.SHUT_RDWR)

    def say_goodbye(self) -> None:
        """Send TLS's own end of the connection, without waiting for the client's."""
        with contextlib.suppress(OSError, ValueError):
            self.settimeout(0)
            self.unwrap()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], cloud: Cloud) -> None:
        self.cloud = cloud
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the handshake is the handler's, in its thread, so that nobody holds up the others."""
        accepted, address = self.socket.accept()
        connection = self.cloud.context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        assert isinstance(connection, _Connection)
        connection.number = self.cloud.count_connection()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: object) -> None:
        """Close a connection: by a reset if that is its fault, else as TLS does."""
        assert isinstance(request, _Connection)
        with self._lock:
            self._open.discard(request)
        if request.ends_by_reset:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            request.say_goodbye()
        request.close()

    def close_connections(self) -> None:
        """Hang up on every client; each handler's thread then ends by itself."""
        with self._lock:
            for connection in self._open:
                connection.hang_up()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away or dislikes the certificate is not worth a traceback; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    request: _Connection
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # A client that hangs must not hold a thread for ever.
    timeout = 300

    def setup(self) -> None:
        """Shake hands, then read as any HTTP server."""
        self.request.settimeout(HANDSHAKE_SECONDS)
        self.request.do_handshake()
        self.server.cloud.count_handshake()
        super().setup()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent: the cloud records requests by itself."""

    def _serve(self) -> None:
        cloud, connection = self.server.cloud, self.request
        body = self._read_body()
        cloud.record(
            Request(self.command, self.path, self.headers, body, time.time(), connection.asked_name, connection.number)
        )
        fault, released = cloud.next_fault(target_of(self.command))
        if fault.hang_seconds:
            released.wait(fault.hang_seconds)
        if fault.reset:
            self._reset()
        elif fault.status is not None:
            more = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._send(error_answer(fault.status, headers=more), Fault(), released)
        else:
            answer = fault.answer or answer_to(cloud, self.command, self.path, self.headers, body)
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

    def _send(self, answer: "Answer", fault: Fault, released: threading.Event) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        if answer.is_stream:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(sum(map(len, answer.chunks))))
        self.end_headers()
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


def target_of(method: str) -> Target:
    """Which kind of request a method makes: everything that computes is a POST."""
    return "completions" if method == "POST" else "probe"


def answer_to(cloud: Cloud, method: str, path: str, headers: Message, body: bytes) -> Answer:
    """What a provider that works answers."""
    endpoint = urlsplit(path).path.removeprefix(cloud.prefix)
    known = urlsplit(path).path.startswith(f"{cloud.prefix}/")
    if known and (method, endpoint) == ("GET", "/models"):
        if not (has_bearer_key(headers, cloud.key) or has_api_key(headers, cloud.key)):
            return error_answer(HTTPStatus.UNAUTHORIZED)
        return json_answer({"object": "list", "data": [_model(name) for name in cloud.models]})
    if not known or method != "POST" or endpoint not in ENDPOINTS:
        return error_answer(HTTPStatus.NOT_FOUND)
    has_key = has_api_key if endpoint == "/messages" else has_bearer_key
    if not has_key(headers, cloud.key):
        return error_answer(HTTPStatus.UNAUTHORIZED)
    parsed = _parsed_object(body)
    if parsed is None:
        return error_answer(HTTPStatus.BAD_REQUEST)
    # Four bytes a token, as a rule of thumb: nothing here reads the prompt.
    return ENDPOINTS[endpoint](_Job(parsed, cloud.answer, len(body) // 4 + 1))


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


@dataclass(frozen=True)
class _Authority:
    """A certificate authority: its key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Self:
        """A new one, with a key that nobody else has."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        certificate = (
            _builder(subject, subject, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def issue(self, names: Sequence[str], addresses: Sequence[str], *, expired: bool = False) -> bytes:
        """A server's key and certificate for these names and IP addresses, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ip_address(address)) for address in addresses),
        ]
        certificate = (
            _builder(_named(names[0]), self.certificate.subject, key, expired=expired)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private + certificate.public_bytes(Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool = False
) -> x509.CertificateBuilder:
    """What authority and server certificates share. Valid from yesterday, for clocks that differ."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9 if expired else 1))
        .not_valid_after(now + timedelta(days=-1 if expired else 365))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names_and_addresses(*known_as: str) -> tuple[list[str], list[str]]:
    """Host names and IP addresses, each once, told apart."""
    names, addresses = [], []
    for value in dict.fromkeys(known_as):
        try:
            ip_address(value)
        except ValueError:
            names.append(value)
        else:
            addresses.append(value)
    return names, addresses


def _server_context(pem: bytes) -> ssl.SSLContext:
    """A TLS context that shows this key and certificate, and notes the name asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = _Connection
    context.set_alpn_protocols(["http/1.1"])
    context.sni_callback = _note_asked_name
    # The library only reads files; this one is the owner's alone and gone at once.
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _note_asked_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(connection, _Connection):
        connection.asked_name = name


def _bound(address: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((address, port))
    return keeper


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
    try:
        cloud = Cloud(prefix=options.prefix, name=options.name, port=options.port).start()
    except SandboxError as error:
        return fail(error)
    ca_file = options.ca_file or cache_dir() / "cloud-ca.pem"
    ca_file.write_text(cloud.ca_pem)
    say(f"listening on {cloud.address_url}, as {cloud.name} too; key {cloud.key}; authority in {ca_file}")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        cloud.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
