"""TLS as a client may meet it: a certificate that is swapped, a reset, a server that is gone and comes back."""

import contextlib
import socket
import ssl
import struct
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sandbox.servers.authority import Authority
from sandbox.servers.base import Handler, Listener, RequestT, Server
from sandbox.servers.script import FaultT

OTHER_NAME = "another.test"
HANDSHAKE_SECONDS = 10.0

Certificate = Literal["good", "unknown-authority", "wrong-name", "expired"]
TlsServerT = TypeVar("TlsServerT", bound="TlsServer[Any, Any]")


@dataclass(kw_only=True)
class TlsServer(Server[RequestT, FaultT]):
    """A server with an authority of its own. Its certificate is valid for `name`, which is for containers to resolve,
    in /etc/hosts for instance, and for its addresses.
    """

    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.connections = 0
        self.handshakes = 0
        self._certificate: Certificate | None = None
        self._authority = Authority.make(f"sandbox {type(self).__name__.lower()} authority")
        # Keeps the port from others while nobody listens: bound, it is refused all the same.
        self._port_keeper: socket.socket | None = None

    @property
    def ca_pem(self) -> str:
        """The certificate to trust; the same as long as this object lives."""
        return self._authority.pem

    def stop(self) -> None:
        """Stop listening, end pauses that go on and close all connections."""
        self.stop_listening()
        self._free_port()

    def listen(self) -> None:
        """Listen (again), with the certificate and on the port had before."""
        self._free_port()
        self.use_certificate(self._certificate or "good")
        super().listen()

    def stop_listening(self) -> None:
        """Refuse new connections and close those there are, as a server whose process ended."""
        if self._listener is not None:
            super().stop()
            self._port_keeper = _bound(self.bind, self.port)

    def use_certificate(self, kind: Certificate) -> None:
        """Show that certificate from now on; nothing to do where it is shown already.

        It closes kept connections, whose handshake is behind them. The new TLS context also has new ticket keys,
        so no client resumes a session it verified before.
        """
        if kind == self._certificate:
            return
        authority = Authority.make("unknown authority") if kind == "unknown-authority" else self._authority
        names = [OTHER_NAME] if kind == "wrong-name" else [self.name, self.bind, self.host]
        self.context = _server_context(authority.issue(names, expired=kind == "expired"))
        self._certificate = kind
        if isinstance(self._listener, TlsListener):
            self._listener.close_connections()

    def recover(self) -> None:
        """As a server that works again: no faults, pauses end, the good certificate, listening."""
        super().recover()
        self.use_certificate("good")
        self.listen()

    def clear(self) -> None:
        """Recover, and forget all recorded requests and counts."""
        super().clear()
        with self._lock:
            self.connections = self.handshakes = 0

    def count_connection(self) -> int:
        """Count a TCP connection; returns its number."""
        with self._lock:
            self.connections += 1
            return self.connections

    def count_handshake(self) -> None:
        """Count a TLS handshake that the client finished too."""
        with self._lock:
            self.handshakes += 1

    def _free_port(self) -> None:
        if self._port_keeper is not None:
            self._port_keeper.close()
            self._port_keeper = None


class Connection(ssl.SSLSocket):
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


class TlsListener(Listener[TlsServerT]):
    """Accepts connections, and knows those that are open."""

    # A client that dislikes the certificate or is hung up on, too.
    clients_error = OSError

    def __init__(self, address: tuple[str, int], handler: "type[TlsHandler]", owner: TlsServerT) -> None:
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler, owner)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the handshake is the handler's, in its thread, so that nobody holds up the others."""
        accepted, address = self.socket.accept()
        connection = self.owner.context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        assert isinstance(connection, Connection)
        connection.number = self.owner.count_connection()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: object) -> None:
        """Close a connection: by a reset if that is its fault, else as TLS does."""
        assert isinstance(request, Connection)
        with self._lock:
            self._open.discard(request)
        if request.ends_by_reset:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            request.say_goodbye()
        request.close()

    def server_close(self) -> None:
        """Stop listening, and hang up on every client."""
        super().server_close()
        self.close_connections()

    def close_connections(self) -> None:
        """Hang up on every client; each handler's thread then ends by itself."""
        with self._lock:
            for connection in self._open:
                connection.hang_up()


class TlsHandler(Handler):
    """Speaks HTTP on a TLS connection."""

    server: TlsListener[Any]
    request: Connection
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Shake hands, then read as any HTTP server."""
        self.request.settimeout(HANDSHAKE_SECONDS)
        self.request.do_handshake()
        self.server.owner.count_handshake()
        super().setup()


def _server_context(pem: bytes) -> ssl.SSLContext:
    """A TLS context that shows this key and certificate, and notes the name asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = Connection
    context.set_alpn_protocols(["http/1.1"])
    context.sni_callback = _note_asked_name
    # The library only reads files; this one is the owner's alone and gone at once.
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _note_asked_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(connection, Connection):
        connection.asked_name = name


def _bound(address: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((address, port))
    return keeper
