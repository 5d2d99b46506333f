"""Seconds until the first byte of an answer's body, one POST for each line of standard input.

Arguments: port, path, body. A line is a JSON object of headers; the line printed for it is {"seconds", "status",
"headers", "body"}.
"""

from __future__ import annotations

import http.client
import json
import sys
import time

TIMEOUT_SECONDS = 60


def answer(port: int, path: str, body: bytes, headers: dict[str, str]) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    connection.connect()
    begin = time.perf_counter()
    connection.request("POST", path, body, headers | {"Content-Type": "application/json"})
    response = connection.getresponse()
    first = response.read(1)
    seconds = time.perf_counter() - begin
    text = (first + response.read()).decode()
    connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    return {"seconds": seconds, "status": response.status, "headers": found, "body": text}


def main(port: str, path: str, body: str) -> None:
    for line in sys.stdin:
        print(json.dumps(answer(int(port), path, body.encode(), json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
