"""Stands in for GitHub and for a model host: git's smart HTTP, and downloads behind a redirect that honour
Range.

    /git/llama.cpp       git fetch, by commit
    /resolve/NAME        302 to /cdn/NAME
    /cdn/NAME            the file: Range, If-Range, ETag, Content-Length
    /status              this process's id and what it serves

Tests run it in their own process, give single files a `Fault`, and read which requests came; the demo runs
`python -m sandbox.servers.hub`.
"""

import argparse
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sandbox.common import SandboxError, fail, file_sha256
from sandbox.servers.base import Handler, Listener, Server, serve
from sandbox.servers.script import Scripted

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Fault(Scripted):
    """What goes wrong with one file. Byte counts are of the response's body, whatever range it is.

    `status` answers that instead. `cut_after_bytes` closes the connection there, `stall_after_bytes` pauses there for
    `stall_seconds`; pauses end early when faults are cleared. `ignore_range` sends the whole file with 200.
    `wrong_content` sends other bytes of the same length.
    """

    status: HTTPStatus | None = None
    cut_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    stall_seconds: float = 0
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
class Hub(Server[Request, Fault]):
    """The server; `files` maps names to paths and may change while it runs."""

    repository: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def _listener_at(self, address: tuple[str, int]) -> "Listener[Hub]":
        return Listener(address, _Handler, self)

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
        self.script.set(name, fault)

    def requests_for(self, name: str) -> list[Request]:
        """The requests for a file's content, oldest first, redirects left out."""
        with self._lock:
            return [request for request in self.requests if request.path == f"/cdn/{name}"]


class _Handler(Handler):
    server: Listener[Hub]

    def do_HEAD(self) -> None:  # noqa: N802 - http.server's own name
        self.respond()

    def respond(self) -> None:
        """Git, a redirect, a file or the status."""
        path = unquote(urlsplit(self.path).path)
        kind, _, name = path.lstrip("/").partition("/")
        hub = self.server.owner
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
        self.send_head(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _record(self, status: int) -> None:
        self.server.owner.record(Request(self.command, self.path, self.headers.get("Range"), int(status)))

    def _file(self, name: str, path: Path) -> None:
        fault, released = self.server.owner.script.next(name, Fault())
        if fault.status is not None:
            self._answer(fault.status)
            return
        size, etag = path.stat().st_size, f'"{known_sha256(path)}"'
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
        part = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if status == HTTPStatus.PARTIAL_CONTENT else {}
        self.send_head(status, {**part, **common, "Content-Length": str(end - start)})
        if self.command == "GET":
            self._send_part(path, start, end, fault, released)

    def _send_part(self, path: Path, start: int, end: int, fault: Fault, released: threading.Event) -> None:
        stops = sorted(at for at in (fault.cut_after_bytes, fault.stall_after_bytes) if at is not None)
        with path.open("rb") as file:
            file.seek(start)
            sent, total = 0, end - start
            while sent < total:
                if sent == fault.stall_after_bytes:
                    self.wfile.flush()
                    released.wait(fault.stall_seconds)
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
            # The length is not known before the end: the end of the connection is the end of the answer.
            self.send_head(int(status.split()[0]), {**headers, "Connection": "close"})
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


def known_sha256(path: Path) -> str:
    """The file's checksum, remembered until it changes."""
    stat = path.stat()
    return _sha256_at(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256_at(path: Path, _size: int, _changed_nanoseconds: int) -> str:
    return file_sha256(path)


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
    if missing:
        return fail(SandboxError(f"There is no {missing[0]}."))
    hub = Hub(options.repository, files, port=options.port)
    return serve(hub, lambda: hub.url)


if __name__ == "__main__":
    sys.exit(main())
