"""Seconds of each POST of one body over one kept connection a target, in turns.

Arguments: requests, path, body, a JSON object of name to {"port", "headers", "expected"}, `expected` being headers that
the answer must have. Output: {name: [...]}.
"""

from __future__ import annotations

import gc
import http.client
import json
import sys
import time
from typing import Any

WARM_UP = 50
TIMEOUT_SECONDS = 10


class Target:
    """One way to send the request."""

    def __init__(self, path: str, body: bytes, port: int, headers: dict[str, str], expected: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        self._path, self._body, self._headers, self._expected = path, body, headers, expected

    def seconds(self) -> float:
        begin = time.perf_counter()
        self._connection.request("POST", self._path, self._body, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        end = time.perf_counter()
        if response.status != http.client.OK:
            sys.exit(f"{self._path} answered {response.status}: {text[:300]!r}")
        for name, value in self._expected.items():
            if response.getheader(name) != value:
                sys.exit(f"{self._path} answered {name} {response.getheader(name)!r}, not {value!r}")
        return end - begin


def main(requests: str, path: str, body: str, targets: str) -> None:
    wanted: dict[str, dict[str, Any]] = json.loads(targets)
    named = {name: Target(path, body.encode(), **target) for name, target in wanted.items()}
    for _ in range(WARM_UP):
        for target in named.values():
            target.seconds()
    gc.disable()
    taken: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(int(requests)):
        for name, target in named.items():
            taken[name].append(target.seconds())
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
