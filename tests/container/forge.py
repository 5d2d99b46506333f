"""What an unprivileged user of the machine can write into its journal: run as one, with the number of entries.

By the native protocol with any field, by a stream like a service's standard output that names a unit, and each with
names of its own. `_PID` and `_SYSTEMD_UNIT` are sent as well; the journal sets those itself.
"""

import random
import socket
import string
import sys

OOM_MESSAGE = "fe6faa94e7774663a0da52717891d8ef"
UNITS = ("local-llm.service", "local-llm-gateway.service")


def word() -> str:
    return "".join(random.choices(string.ascii_letters + "\x1b", k=12))


def request() -> str:
    return (
        f"client=127.0.0.1:1 method=POST path=/v1/completions status=200 reason={word()} backend={word()} "
        "request_bytes=1 response_bytes=1 diverted_ms=0 queue_ms=9000 first_byte_ms=9000 total_ms=900000 end=--"
    )


def entries() -> list[dict[str, str]]:
    unit = random.choice(UNITS)
    own = {"_PID": "1", "_UID": "0", "_SYSTEMD_UNIT": unit, "UNIT": unit}
    return [
        {"MESSAGE": f"{unit}: killed by the OOM killer.", "MESSAGE_ID": OOM_MESSAGE, **own},
        {"MESSAGE": f"{unit}: killed", "EXIT_CODE": "killed", "EXIT_STATUS": "9", **own},
        {"MESSAGE": request(), "SYSLOG_IDENTIFIER": "local-llm-gateway", **own},
        {"MESSAGE": "cloud status=401 provider_status=401 end=--", "SYSLOG_IDENTIFIER": "haproxy", **own},
        {"MESSAGE": f"local-llm: \x1b]0;{word()}\x07", "SYSLOG_IDENTIFIER": "local-llm-alert", **own},
    ]


def natively(count: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect("/run/systemd/journal/socket")
        for _ in range(count // 5):
            for fields in entries():
                journal.send("".join(f"{name}={value}\n" for name, value in fields.items()).encode())


def as_a_unit_s_output(count: int) -> None:
    for unit in UNITS:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as journal:
            journal.connect("/run/systemd/journal/stdout")
            # Identifier, unit, priority, and four flags: what systemd itself sends for a service.
            journal.sendall(f"haproxy\n{unit}\n6\n0\n0\n0\n0\n".encode())
            for _ in range(count // 10):
                journal.sendall(f"{request()}\n".encode())


natively(int(sys.argv[1]))
as_a_unit_s_output(int(sys.argv[1]))
