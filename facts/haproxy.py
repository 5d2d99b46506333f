"""What configuration a running HAProxy works with, asked of itself over its admin socket."""

from __future__ import annotations

import shlex

from facts.base import HostFact, framed
from operations.shell import word

CONFIGURATION_VARIABLE = "LOCAL_LLM_CONFIGURATION"

_ASK = f"""
import socket, sys
admin = socket.socket(socket.AF_UNIX)
admin.settimeout(5)
admin.connect(sys.argv[1])
admin.sendall(b"show env {CONFIGURATION_VARIABLE}\\n")
print(admin.makefile().read().strip())
"""


def ask_command(socket: str) -> str:
    """A shell command that prints `LOCAL_LLM_CONFIGURATION=STAMP` of the worker behind the admin socket."""
    return f"python3 -c {shlex.quote(_ASK.strip())} {word(socket)} 2>/dev/null"


class RunningConfiguration(HostFact[str | None]):
    """The stamp of the configuration that the running worker has loaded; None where none runs."""

    def command(self, socket: str) -> str:
        return framed(f"{ask_command(socket)} || true")

    def parse(self, output: list[str]) -> str | None:
        text = "".join(output).strip()
        return text.removeprefix(f"{CONFIGURATION_VARIABLE}=") if text else None
