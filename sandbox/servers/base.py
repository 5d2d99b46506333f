"""What the servers share: they listen on the address that containers reach this machine by, and on no other, answer in
threads of this process, and remember what came in.
"""

import json
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from socketserver import ThreadingTCPServer
from typing import Any, Generic, Self, TypeVar

from sandbox.common import SandboxError, Switched, can_bind, fail, run, say
from sandbox.servers.script import FaultT, Script

DOCKER_DESKTOP_HOST = "host.docker.internal"

RequestT = TypeVar("RequestT")
ServerT = TypeVar("ServerT", bound="Server[Any, Any]")


@dataclass(kw_only=True)
class Server(Switched, Generic[RequestT, FaultT]):
    """Start it with start() or as a context manager.

    `bind` is the address it listens on, `host` what containers reach it by; both are found where they are not given,
    and so is a free `port`.
    """

    port: int = 0
    bind: str = ""
    host: str = ""

    def __post_init__(self) -> None:
        self.requests: list[RequestT] = []
        self.script: Script[FaultT] = Script()
        self._lock = threading.Lock()
        self._listener: Listener[Any] | None = None

    @abstractmethod
    def _listener_at(self, address: tuple[str, int]) -> "Listener[Any]":
        """What accepts connections there. Raises OSError when the address cannot be used."""

    def start(self) -> Self:
        """Listen and answer in a thread of this process.

        Raises SandboxError when the address cannot be used.
        """
        if not (self.bind and self.host):
            bind, host = listening_address()
            self.bind, self.host = self.bind or bind, self.host or host
        self.listen()
        return self

    def stop(self) -> None:
        """Stop listening, and end pauses that go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
            self.script.end_pauses()

    def listen(self) -> None:
        """Listen (again), on the port had before; nothing to do for one that listens.

        Raises SandboxError when the address cannot be used.
        """
        if self._listener is not None:
            return
        try:
            self._listener = self._listener_at((self.bind, self.port))
        except OSError as error:
            raise SandboxError(
                f"The {type(self).__name__.lower()} cannot listen on {self.bind}:{self.port} ({error.strerror}). "
                "Stop what uses that port."
            ) from error
        self.port = int(self._listener.server_address[1])
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def recover(self) -> None:
        """As a server that works again: no faults, and pauses end."""
        self.script.end_pauses(and_faults=True)

    def clear(self) -> None:
        """Recover, and forget all recorded requests."""
        self.recover()
        with self._lock:
            self.requests.clear()

    def record(self, request: RequestT) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)


class Listener(ThreadingTCPServer, Generic[ServerT]):
    """Accepts connections for `owner`, each in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    # What a handler raises because of its client; anything else is worth a traceback.
    clients_error: type[OSError] = ConnectionError

    def __init__(self, address: tuple[str, int], handler: "type[Handler]", owner: ServerT) -> None:
        self.owner = owner
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print what went wrong here, unless the client did it."""
        if not isinstance(sys.exc_info()[1], self.clients_error):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 on one connection; `respond` answers one request."""

    protocol_version = "HTTP/1.1"
    # A client that hangs must not hold a thread for ever.
    timeout = 300

    def respond(self) -> None:
        """Answer the request whose head was read."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    def do_POST(self) -> None:
        self.respond()

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send what comes before the body."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent: a server records requests by itself."""


def listening_address() -> tuple[str, str]:
    """The address to listen on, and the host name by which containers reach it.

    On Linux both are the Docker bridge's gateway, which only this machine and its containers reach. Where the
    engine runs in a virtual machine (Docker Desktop) that address is not ours: 127.0.0.1, which it forwards
    host.docker.internal to.
    """
    result = run(["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"], timeout_seconds=20)
    for network in json.loads(result.stdout) or []:
        # Older engines do not name the gateway unless it was configured: then it is the network's first
        # address.
        address = network.get("Gateway") or str(ip_network(network["Subnet"])[1])
        if can_bind(address):
            return address, address
    return "127.0.0.1", DOCKER_DESKTOP_HOST


def serve(server: Server[Any, Any], introduce: Callable[[], str]) -> int:
    """For a `main`: serve until stopped, and print what `introduce` says once the server listens.

    Returns the exit code.
    """
    try:
        with server:
            say(f"listening on {introduce()}")
            while True:
                time.sleep(3600)
    except SandboxError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 0
