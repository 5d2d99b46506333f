"""A host and an API server made of nothing, for the tests of `checks`."""

from __future__ import annotations

import copy
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from checks.contract.config import Config, load
from checks.host import Command, FileStatus, Host
from checks.result import Check, Result, Status

NOW = 1795385593.0
SERVICE = "local-llm.service"
GATEWAY = "local-llm-gateway.service"
GATEWAY_SOCKETS = "local-llm-gateway.socket"
PID = 4242
RELEASE = "0c1e57098bba-a1b2c3d4"
COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
MODEL_PATH = "/opt/local-llm/models/tiny.gguf"
SHA256 = "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e"
MIB = 1024 * 1024

CONFIG: Mapping[str, Any] = {
    "api_url": "http://127.0.0.1:8765",
    "admin_socket": "/a",
    "api_socket": "/b",
    "cloud": None,
    "drill_weekly": True,
    "metrics_url": "http://127.0.0.1:8766/metrics",
    "socket": "/run/local-llm-sockets/llama.sock",
    "service_unit": SERVICE,
    "gateway_unit": GATEWAY,
    "service_user": "local-llm",
    "service_group": "local-llm",
    "gateway_user": "local-llm-gateway",
    "model": {"name": "tiny", "path": MODEL_PATH, "sha256": SHA256, "size_bytes": 4},
    "llama_cpp_commit": COMMIT,
    "release": RELEASE,
    "context_tokens": 16384,
    "memory_max_mib": 3072,
    "memory_goal_mib": 2560,
    "swap_file_mib": 0,
    "response_limit_seconds": 5.0,
    "uptime_goal_percent": 99.0,
    "utility_goal_percent": 90.0,
    "alerts": {
        "disk_free_percent": 10.0,
        "restarts_per_hour": 3,
        "after_checks": 2,
        "clear_after_checks": 2,
        "reminder_hours": None,
        "webhook_format": None,
        "command": None,
    },
    "healing": {"after_failures": 2, "restarts_per_hour": 3},
    "prometheus": None,
    "exposure_limit_service": 0.3,
    "exposure_limit_gateway": 1.5,
    "seen_of_run": {SERVICE: ["/run/local-llm"], GATEWAY: ["/run/local-llm-gateway", "/run/systemd/notify"]},
    "firewall": True,
    "denied_ports": [8765, 8766],
    "health_interval_minutes": 5,
    "health_probe": True,
    "samples_retention_days": 90,
    "textfile_directory": "/var/lib/prometheus/node-exporter",
    "log_retention_days": 7,
    "files": [{"path": "/etc/local-llm/haproxy.cfg", "mode": "0644", "owner": "root", "group": "root"}],
}


CLOUD: Mapping[str, Any] = {
    "url": "https://api.example.com/v1",
    "api": "openai",
    "models": ["big", "bigger"],
    "first_byte_seconds": 20,
}


def config_data(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(dict(CONFIG)), **changes}


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "checks.json"
    path.write_text(json.dumps(config_data(**changes)))
    return path


def make_config(folder: Path, **changes: Any) -> Config:
    return load(write_config(folder, **changes))


def show(name: str, **changes: str) -> str:
    """What `systemctl show` prints of a unit that runs well."""
    values = {
        "Id": name,
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
        "MainPID": str(PID),
        "NRestarts": "0",
        "ActiveEnterTimestampMonotonic": "1000000000",
        "ControlGroup": f"/system.slice/{name}",
        "MemoryCurrent": str(1310 * MIB),
        "MemoryMax": str(3072 * MIB),
        "Result": "success",
    }
    return "\n".join(f"{key}={value}" for key, value in {**values, **changes}.items()) + "\n"


def entry(message: str | list[int] | list[str] | None, unit: str = GATEWAY, pid: int = PID, **fields: object) -> str:
    """What `journalctl --output=json` prints of an entry: by the gateway, unless it says otherwise."""
    found = {"MESSAGE": message, "_SYSTEMD_UNIT": unit, "_PID": str(pid), "__CURSOR": "s=1;i=2", **fields}
    return json.dumps(found)


def killed(unit: str) -> str:
    """What systemd itself says of a kill for lack of memory."""
    words = f"{unit}: A process of this unit has been killed by the OOM killer."
    return entry(words, "init.scope", 1, UNIT=unit, MESSAGE_ID="fe6faa94e7774663a0da52717891d8ef")


def journalled(*lines: str, cursor: str) -> Command:
    """What journalctl prints of entries, or of the gateway's lines, with a cursor behind them."""
    entries = [text if text.startswith("{") else entry(text) for text in lines]
    return Command(0, "".join(f"{text}\n" for text in (*entries, f"-- cursor: {cursor}")), "")


@dataclass
class FakeHost(Host):
    """Files under a folder of the test; canned answers for commands, found by their first words."""

    root: Path
    commands: dict[str, Command] = field(default_factory=dict)
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)
    users: dict[int, str] = field(default_factory=dict)
    rss: dict[int, int] = field(default_factory=dict)
    root_user: bool = True
    load: float = 0.1
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.root)

    @property
    def is_root(self) -> bool:
        return self.root_user

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 5000.0

    def load_per_core(self) -> float:
        return self.load

    def rss_bytes(self, pid: int) -> int:
        return self.rss[pid]

    def user(self, pid: int) -> str:
        return self.users[pid]

    def status(self, path: str) -> FileStatus:
        found = super().status(path)
        owner, group = self.owners.get(path, ("root", "root"))
        return FileStatus(found.mode, owner, group, found.size_bytes, found.mtime_ns, found.is_socket)

    def run(self, *argv: str, timeout_seconds: float = 30.0) -> Command:
        assert timeout_seconds > 0
        line = " ".join(argv)
        self.ran.append(line)
        for words, answer in self.commands.items():
            if line.startswith(words):
                return answer
        raise FileNotFoundError(f"{argv[0]} is not installed")

    def put(self, path: str, text: str, mode: int = 0o644) -> Path:
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return target

    def put_link(self, path: str, target: str) -> None:
        link = self.path(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def put_units(self, *blocks: str) -> None:
        self.commands["systemctl show"] = Command(0, "\n".join(blocks), "")
        self._units.clear()


def results(check: Check, config: Config, host: Host) -> dict[str, Result]:
    return {result.name: result for result in check(config, host)}


def statuses(check: Check, config: Config, host: Host) -> dict[str, Status]:
    return {result.name: result.status for result in check(config, host)}


Respond = Callable[[str, Mapping[str, str], bytes], tuple[int, dict[str, str], bytes]]
"""What a POST is answered: from its path, headers and body to status, headers and body."""


@dataclass
class Api:
    """What the server answers; change a field to make it misbehave. It keeps bodies and headers of each POST."""

    url: str = ""
    health: tuple[int, bytes] = (200, b'{"status":"ok"}')
    models: tuple[int, bytes] = (200, b'{"data":[{"id":"tiny","meta":{"n_ctx":16384}}]}')
    completion: tuple[int, bytes] = (
        200,
        b'{"choices":[{"finish_reason":"stop","message":{"content":"hello"}}],"usage":{"completion_tokens":8}}',
    )
    metrics: tuple[int, bytes] = (200, b"# HELP haproxy_up\nhaproxy_up 1\nhaproxy_requests_total 5\n")
    stream: list[bytes] = field(default_factory=lambda: stream_of("The", " local", " model"))
    stream_cut: bool = False
    delay_seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    received: list[dict[str, str]] = field(default_factory=list)
    respond: Respond | None = None


def stream_of(*words: str, reason: str = "stop", done: bool = True) -> list[bytes]:
    """The chunks as llama-server sends them: a role first, the reason in an empty delta, then [DONE]."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    deltas += [{"content": word} for word in words]
    chunks: list[Any] = [{"choices": [{"finish_reason": None, "index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"finish_reason": reason, "index": 0, "delta": {}}]})
    lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self) -> None:
        pages = ("/metrics", "/llama/metrics")
        answers = {"/health": self.api.health, "/v1/models": self.api.models, **dict.fromkeys(pages, self.api.metrics)}
        self._send(*answers.get(self.path, (404, b"{}")))

    def do_POST(self) -> None:
        self.api.received.append(dict(self.headers.items()))
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.api.respond:
            status, headers, answer = self.api.respond(self.path, dict(self.headers.items()), sent)
            self.api.headers = headers
            self._send(status, answer)
            return
        body = json.loads(sent)
        self.api.requests.append(body)
        time.sleep(self.api.delay_seconds)
        status, answer = self.api.completion
        if status == 200 and body.get("stream"):
            self._send_stream(self.api.stream)
        else:
            self._send(status, answer)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **self.api.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_stream(self, chunks: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        if self.api.stream_cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up while it is answered is what some tests are about."""


@contextmanager
def serve() -> Iterator[Api]:
    """A server on a free port, which answers as `Api` says."""
    api = Api()
    handler = type("Handler", (_Handler,), {"api": api})
    server = _Server(("127.0.0.1", 0), handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Admin:
    """HAProxy's admin socket: a row of `show stat` for each server, and `set server`.

    `stuck` servers stay out when they are told to be ready; `commands` is what was asked, `silent` says nothing.
    """

    servers: dict[str, dict[str, str]] = field(default_factory=lambda: {"llm/llama": up(), "cloud/cloud": up()})
    stuck: set[str] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)
    broken: bool = False

    def answer(self, command: str) -> str:
        self.commands.append(command)
        if self.broken:
            return ""
        if command.startswith("show stat"):
            return self._rows()
        _, _, name, _, state = command.split()
        if name not in self.servers:
            return "No such backend.\n\n"
        if state == "maint":
            self.servers[name] = {"status": "MAINT"}
        elif name not in self.stuck and self.servers[name]["status"] in ("MAINT", "DRAIN"):
            self.servers[name] = up(status="UP 1/3")
        return "\n"

    def _rows(self) -> str:
        columns = ("pxname", "svname", "qcur", "scur", "status", "check_status", "check_code", "last_chk")
        rows = (
            [{"pxname": "cloud", "svname": "FRONTEND", "status": "OPEN"}] if "cloud/cloud" not in self.servers else []
        )
        for name, row in self.servers.items():
            backend, server = name.split("/")
            rows.append({**row, "pxname": backend, "svname": server, "qcur": "0"})
            rows.append({"pxname": backend, "svname": "BACKEND", "qcur": row.get("qcur", "0"), "status": "UP"})
        lines = ["# " + ",".join(columns) + ",", *(",".join([*(row.get(c, "") for c in columns), ""]) for row in rows)]
        return "\n".join(lines) + "\n\n"


def up(**changes: str) -> dict[str, str]:
    """The columns of a server that its checks find well."""
    return {"status": "UP", "check_status": "L7OK", "check_code": "200", **changes}


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """As above."""


@contextmanager
def serve_root(api: Api, folder: Path) -> Iterator[None]:
    """The same server on root's socket, at the configuration's place under the folder."""
    server = _UnixServer(str(folder / "b"), type("Handler", (_Handler,), {"api": api}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        (folder / "b").unlink()


@contextmanager
def serve_admin(folder: Path) -> Iterator[Admin]:
    """An admin socket at the configuration's place under the folder."""
    admin = Admin()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(admin.answer(self.rfile.readline().decode().strip()).encode())

    server = socketserver.ThreadingUnixStreamServer(str(folder / "a"), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield admin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        (folder / "a").unlink()


REFUSED_URL = "http://127.0.0.1:9"
"""Nothing listens on the discard port of a machine of today."""
