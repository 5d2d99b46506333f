"""Stands in for GitHub and for a model host: git's smart HTTP, and downloads behind a redirect that honour
Range.

    /git/llama.cpp       git fetch, by commit
    /resolve/NAME        302 to /cdn/NAME
    /cdn/NAME            the file: Range, If-Range, ETag, Content-Length
    /status              this process's id and what it serves

It listens on the address that containers reach the host by, and on no other. Tests run it in their own
process, give single files a `Fault`, and read which requests came; the demo runs `python -m sandbox.servers.hub`.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from sandbox.common import SandboxError, fail, run, say

CHUNK_BYTES = 64 * 1024
DOCKER_DESKTOP_HOST = "host.docker.internal"


@dataclass
class Fault:
    """What goes wrong with one file. Byte counts are of the response's body, whatever range it is.

    `cut_after_bytes` closes the connection there, `stall_after_bytes` pauses there for `stall_seconds`; both
    on the first `times` downloads only (None: on each). `fail_first` answers that many requests with 500.
    `ignore_range` sends the whole file with 200. `wrong_content` sends other bytes of the same length.
    """

    cut_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    stall_seconds: float = 0
    times: int | None = None
    fail_first: int = 0
    ignore_range: bool = False
    wrong_content: bool = False


@dataclass(frozen=True)
class Request:
    """A request that came in.

    `range` is its Range header; `status` what was answered, 0 while git answers by itself.
    """

    method: str
    path: str
    range: str | None
    status: int


@dataclass
class Hub:
    """The server.

    Start it with start() or as a context manager; `files` maps names to paths and may change while it runs.
    """

    repository: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
    port: int = 0
    bind: str | None = None
    host: str | None = None

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server: _Server | None = None

    def start(self) -> Self:
        """Listen and answer in a thread of this process.

        Raises SandboxError when the address cannot be used.
        """
        if self.bind is None or self.host is None:
            bind, host = hub_address()
            self.bind, self.host = self.bind or bind, self.host or host
        try:
            self._server = _Server((self.bind, self.port), self)
        except OSError as error:
            raise SandboxError(
                f"The hub cannot listen on {self.bind}:{self.port} ({error.strerror}). "
                "Stop what uses it (`make demo-down`)."
            ) from error
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening, and end pauses that go on."""
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address for containers."""
        return f"http://{self.host}:{self.port}"

    @property
    def git_url(self) -> str:
        """Address of the llama.cpp repository."""
        return f"{self.url}/git/llama.cpp"

    def file_url(self, name: str) -> str:
        """Address of a file, which redirects once."""
        return f"{self.url}/resolve/{name}"

    def set_fault(self, name: str, fault: Fault) -> None:
        """From now on this goes wrong with the file of that name."""
        with self._lock:
            self._faults[name] = fault

    def clear(self) -> None:
        """Forget all faults and all recorded requests."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def requests_for(self, name: str) -> list[Request]:
        """The requests for a file's content, oldest first, redirects left out."""
        with self._lock:
            return [request for request in self.requests if request.path == f"/cdn/{name}"]

    def record(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    def next_fault(self, name: str, *, body: bool) -> Fault:
        """What to do wrong with this request. Uses up one `fail_first`, or with `body` one of `times`."""
        with self._lock:
            fault = self._faults.get(name, Fault())
            if fault.fail_first > 0:
                fault.fail_first -= 1
                return Fault(fail_first=1)
            if fault.times is None or not body:
                return Fault(**vars(fault))
            if fault.times == 0:
                return Fault(ignore_range=fault.ignore_range, wrong_content=fault.wrong_content)
            fault.times -= 1
            return Fault(**vars(fault))

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the hub lives."""
        self._stopped.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        self.hub = hub
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is not worth a traceback; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # A client that hangs must not hold a thread for ever.
    timeout = 300

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent: the hub records requests by itself."""

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        kind, _, name = path.lstrip("/").partition("/")
        hub = self.server.hub
        if kind == "git" and hub.repository is not None and name.startswith("llama.cpp/"):
            self._git(hub.repository, name.removeprefix("llama.cpp"))
        elif kind == "resolve" and name in hub.files:
            self._answer(HTTPStatus.FOUND, {"Location": f"/cdn/{name}"})
        elif kind == "cdn" and name in hub.files:
            self._file(name, hub.files[name])
        elif path == "/status":
            body = json.dumps({"pid": os.getpid(), "files": sorted(hub.files), "git": hub.repository is not None})
            self._answer(HTTPStatus.OK, {"Content-Type": "application/json"}, body.encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _answer(self, status: HTTPStatus, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self._record(status)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _record(self, status: int) -> None:
        self.server.hub.record(Request(self.command, self.path, self.headers.get("Range"), int(status)))

    def _file(self, name: str, path: Path) -> None:
        fault = self.server.hub.next_fault(name, body=self.command == "GET")
        if fault.fail_first:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        size, etag = path.stat().st_size, f'"{file_sha256(path)}"'
        common = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = None if fault.ignore_range else self.headers.get("Range")
        if wanted is not None and self.headers.get("If-Range", etag) != etag:
            wanted = None
        start, end = parse_range(wanted, size)
        if start >= end and size > 0:
            self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {**common, "Content-Range": f"bytes */{size}"})
            return
        status = HTTPStatus.OK if (start, end) == (0, size) and wanted is None else HTTPStatus.PARTIAL_CONTENT
        self._record(status)
        self.send_response(status)
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        for key, value in common.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._send_part(path, start, end, fault)

    def _send_part(self, path: Path, start: int, end: int, fault: Fault) -> None:
        stops = sorted(at for at in (fault.cut_after_bytes, fault.stall_after_bytes) if at is not None)
        with path.open("rb") as file:
            file.seek(start)
            sent, total = 0, end - start
            while sent < total:
                if sent == fault.stall_after_bytes:
                    self.wfile.flush()
                    self.server.hub.pause(fault.stall_seconds)
                if sent == fault.cut_after_bytes:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                # No chunk reaches over a byte where something is to happen.
                limit = min([stop for stop in stops if stop > sent] + [total])
                chunk = file.read(min(CHUNK_BYTES, limit - sent))
                self.wfile.write(bytes(len(chunk)) if fault.wrong_content else chunk)
                sent += len(chunk)

    def _git(self, repository: Path, path_info: str) -> None:
        """Answer by `git http-backend`, as its manual describes for a web server (git-http-backend(1))."""
        self._record(0)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(repository),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path_info,
            "QUERY_STRING": urlsplit(self.path).query,
            "REQUEST_METHOD": self.command,
            "REMOTE_ADDR": str(self.client_address[0]),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        backend = subprocess.Popen(["git", "http-backend"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        if backend.stdin is None or backend.stdout is None:
            raise RuntimeError("git http-backend has no pipes")
        with backend:
            # Small enough for a pipe's buffer: a fetch's wants and haves. Larger would have to be fed beside
            # reading.
            backend.stdin.write(body)
            backend.stdin.close()
            headers = read_cgi_headers(backend.stdout.readline)
            status = headers.pop("Status", "200 OK")
            self.send_response(int(status.split()[0]))
            for key, value in headers.items():
                self.send_header(key, value)
            # The length is not known before the end: the end of the connection is the end of the answer.
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            shutil.copyfileobj(backend.stdout, self.wfile)


def read_cgi_headers(readline: Callable[[], bytes]) -> dict[str, str]:
    """The header lines that a CGI program writes before its answer (RFC 3875, 6.2)."""
    headers: dict[str, str] = {}
    while line := readline().decode("latin-1").strip():
        key, _, value = line.partition(":")
        headers[key] = value.strip()
    return headers


def parse_range(value: str | None, size: int) -> tuple[int, int]:
    """First byte, and the byte after the last, that a Range header asks for; everything without a valid one."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", value or "")
    if found is None or found.group(0) == "bytes=-":
        return 0, size
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


_sha256_by_file: dict[tuple[Path, int, int], str] = {}


def file_sha256(path: Path) -> str:
    """The file's checksum, remembered until it changes."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _sha256_by_file:
        with path.open("rb") as file:
            _sha256_by_file[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _sha256_by_file[key]


def hub_address() -> tuple[str, str]:
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
        if _is_ours(address):
            return address, address
    return "127.0.0.1", DOCKER_DESKTOP_HOST


def _is_ours(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def main(argv: list[str] | None = None) -> int:
    """`python -m sandbox.servers.hub`: serve until stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.servers.hub", description="Serve llama.cpp's source and model files to containers."
    )
    parser.add_argument("--repository", type=Path, help="bare git repository served as /git/llama.cpp")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="file served as /resolve/NAME")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    options = parser.parse_args(argv)
    files = {name: Path(path) for name, _, path in (item.partition("=") for item in options.file)}
    missing = [str(path) for path in (options.repository, *files.values()) if path is not None and not path.exists()]
    try:
        if missing:
            raise SandboxError(f"There is no {missing[0]}.")
        hub = Hub(options.repository, files, options.port).start()
    except SandboxError as error:
        return fail(error)
    say(f"listening on {hub.url}")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        hub.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
