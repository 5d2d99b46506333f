"""The two sides that the gateway sends requests to, as HAProxy sees them: asked and switched over its admin socket.

Only root reaches the socket; others get PermissionError. Words and columns are those of HAProxy's management guide,
chapter 9 (`show stat`, `set server`). Imports little, because the health check asks here too (see `probe`).
"""

from __future__ import annotations

import csv
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from checks.output import printable

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host

_ANSWER_SECONDS = 5.0
# Proxies of all numbers; 2 (backends) + 4 (servers); all servers. A frontend may have a backend's name, so a name
# does not select one.
_SHOW = "show stat -1 6 -1"


class GatewayError(OSError):
    """The admin socket does not answer as HAProxy does; the message is one line for a person."""


@dataclass(frozen=True)
class Side:
    """One of the two places where a request can be answered, and HAProxy's names for it."""

    name: str
    backend: str
    server: str


LOCAL = Side("local", "llm", "llama")
CLOUD = Side("cloud", "cloud", "cloud")


@dataclass(frozen=True)
class Server:
    """A side's state. `status` is HAProxy's: UP, UP 1/3, DOWN, MAINT, MAINT (resolution), DRAIN, …

    `check` names the last health check's result, such as L7STS, with `code` where it has an HTTP status and `detail`
    in words; `waiting` counts requests in the queue, `working` those that it is answering.
    """

    status: str
    check: str
    code: str
    detail: str
    waiting: int
    working: int = 0

    @property
    def up(self) -> bool:
        return self.status.startswith("UP") or self.status == "no check"

    @property
    def by_hand(self) -> bool:
        """Whether somebody took it out over the admin socket."""
        return self.status == "MAINT" or self.status.startswith("DRAIN")

    def __str__(self) -> str:
        return ", ".join(part for part in (self.status, self.check, self.code, self.detail) if part)


def server(config: Config, host: Host, side: Side) -> Server:
    """The state of one side; raises GatewayError, PermissionError for others than root."""
    rows = _rows(_ask(config, host, _SHOW))
    own = {row.get("svname", ""): row for row in rows if row.get("pxname") == side.backend}
    if side.server not in own:
        raise GatewayError(f"the gateway has no server {side.backend}/{side.server}: deploy again")
    row = own[side.server]
    return Server(
        status=row.get("status", ""),
        # A star means that the next check is under way.
        check=row.get("check_status", "").removeprefix("* "),
        code=row.get("check_code", ""),
        detail=_line(row.get("last_chk", "")),
        waiting=sum(_number(own[name], "qcur") for name in (side.server, "BACKEND") if name in own),
        working=_number(row, "scur"),
    )


def set_state(config: Config, host: Host, side: Side, state: Literal["maint", "ready"]) -> None:
    """Take a side out (what it works on goes on) or bring it back; raises like `server`."""
    said = _ask(config, host, f"set server {side.backend}/{side.server} state {state}").strip()
    if said:
        raise GatewayError(f"the gateway refuses to set {side.name} to {state}: {_line(said)}")


def _ask(config: Config, host: Host, command: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(_ANSWER_SECONDS)
            admin.connect(str(host.path(config.admin_socket)))
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(64 * 1024), b"")).decode(errors="replace")
    except PermissionError:
        raise PermissionError("the gateway's admin socket needs root") from None
    except OSError as error:
        raise GatewayError(
            f"the gateway's admin socket does not answer ({error.strerror or error}): "
            f"sudo systemctl status {config.gateway_unit}"
        ) from None


def _rows(text: str) -> list[dict[str, str]]:
    head, _, rest = text.removeprefix("# ").partition("\n")
    names = head.split(",")
    return [dict(zip(names, row, strict=False)) for row in csv.reader(rest.splitlines()) if len(row) > 1]


def _number(row: dict[str, str], column: str) -> int:
    value = row.get(column, "")
    return int(value) if value.isdigit() else 0


def _line(text: str) -> str:
    """One line: some of it was said by the other end."""
    return " ".join(printable(text).split())
