"""Seconds of each `GET /health` over one kept connection, on the unix socket and on the TCP port, in turns.

Arguments: socket, port, requests. Output: {"socket": [...], "gateway": [...]}.
"""

from __future__ import annotations

import gc
import http.client
import json
import socket
import sys
import time

WARM_UP = 50
TIMEOUT_SECONDS = 10


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def seconds(connection: http.client.HTTPConnection) -> float:
    begin = time.perf_counter()
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    end = time.perf_counter()
    if response.status != http.client.OK:
        sys.exit(f"/health answered {response.status}")
    return end - begin


def main(path: str, port: str, requests: str) -> None:
    connections = {
        "socket": UnixConnection(path),
        "gateway": http.client.HTTPConnection("127.0.0.1", int(port), timeout=TIMEOUT_SECONDS),
    }
    for _ in range(WARM_UP):
        for connection in connections.values():
            seconds(connection)
    gc.disable()
    taken: dict[str, list[float]] = {name: [] for name in connections}
    for _ in range(int(requests)):
        for name, connection in connections.items():
            taken[name].append(seconds(connection))
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
