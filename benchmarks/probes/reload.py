"""Steady requests through the gateway, first undisturbed, then while its unit is reloaded again and again.

Arguments: unit, admin socket, port, a JSON object of name to {"clients", "method", "path", "headers", "body", "keeps"},
reloads, seconds between them. A load is so many clients, each of which sends its next request when the last one is
answered, over one kept connection or over a new one each time. Output: {"workers": [process ids that served], "quiet":
{name: {"seconds": [...], "failures": [...]}}, "reloading": {…}}.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any

TIMEOUT_SECONDS = 30
PAUSE_SECONDS = 0.005
NEW_WORKER_SECONDS = 20


class Client(threading.Thread):
    """Opens a kept connection anew where the server has closed it by the time of a request, as any client does."""

    def __init__(self, port: int, method: str, path: str, headers: dict[str, str], body: str, *, keeps: bool) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        self._request = (method, path, body.encode(), headers)
        self._keeps = keeps
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            begin = time.perf_counter()
            try:
                self._ask()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                self._connection.close()
            self.seconds.append(time.perf_counter() - begin)
            time.sleep(PAUSE_SECONDS)

    def end(self) -> None:
        self._ended.set()
        self.join()
        self._connection.close()

    def _ask(self) -> None:
        if not self._keeps or self._was_closed():
            self._connection.close()
        self._connection.request(*self._request)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            self.failures.append(f"{response.status} {text[:200]!r}")

    def _was_closed(self) -> bool:
        sock = self._connection.sock
        return sock is not None and bool(select.select([sock], [], [], 0)[0])


def clients(port: int, clients: int, **load: Any) -> list[Client]:
    return [Client(port, **load) for _ in range(clients)]


def worker(path: str) -> int:
    """The process that serves, by its admin socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
        admin.settimeout(TIMEOUT_SECONDS)
        admin.connect(path)
        admin.sendall(b"show info\n")
        text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
    found = re.search(r"^Pid: (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else sys.exit(f"no process id in {text[:200]!r}")


def reload(unit: str, admin: str) -> int:
    """Reload, and wait for the process that then serves."""
    old = worker(admin)
    subprocess.run(["/usr/bin/systemctl", "reload", unit], check=True)
    deadline = time.monotonic() + NEW_WORKER_SECONDS
    while (new := worker(admin)) == old:
        if time.monotonic() > deadline:
            sys.exit(f"process {old} still serves {NEW_WORKER_SECONDS} s after a reload of {unit}")
        time.sleep(0.02)
    return new


def main(unit: str, admin: str, port: str, loads: str, reloads: str, interval: str) -> None:
    wanted: dict[str, dict[str, Any]] = json.loads(loads)
    found: dict[str, Any] = {"workers": [worker(admin)]}
    for phase in ("quiet", "reloading"):
        running = {name: clients(int(port), **load) for name, load in wanted.items()}
        for client in itertools.chain(*running.values()):
            client.start()
        for _ in range(int(reloads)):
            time.sleep(float(interval))
            if phase == "reloading":
                found["workers"].append(reload(unit, admin))
        time.sleep(float(interval))
        for client in itertools.chain(*running.values()):
            client.end()
        found[phase] = {
            name: {
                "seconds": [value for client in each for value in client.seconds],
                "failures": [failure for client in each for failure in client.failures],
            }
            for name, each in running.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
