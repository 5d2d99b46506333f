"""Reloading HAProxy exactly when its running configuration is not the one on disk."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import read
from facts.haproxy import CONFIGURATION_VARIABLE, RunningConfiguration, ask_command
from operations.remote import script
from operations.shell import word

RELOAD_SECONDS = 20


@operation()
def reloaded(unit: str, socket: str, stamp: str) -> Generator[StringCommand, None, None]:
    """Ensure that the running worker has loaded the configuration of this stamp; requests in flight go on.

    The old worker hands its listeners over and finishes what it has; the configuration sets the variable
    LOCAL_LLM_CONFIGURATION to its own stamp, which the new worker is asked for.

    + unit: the service
    + socket: the admin socket's path
    + stamp: the digest in the configuration
    """
    if read(RunningConfiguration, socket=socket) == stamp:
        host.noop(f"{unit} works with configuration {stamp}")
        return
    wanted, name = word(f"{CONFIGURATION_VARIABLE}={stamp}"), word(unit)
    late = f"{unit} did not take the new configuration within {RELOAD_SECONDS} s; the old one still serves"
    yield StringCommand(
        script(f"""
systemctl reload {name}
end=$(($(date +%s) + {RELOAD_SECONDS}))
until [ "$({ask_command(socket)})" = {wanted} ]; do
    [ "$(date +%s)" -lt "$end" ] || {{
        echo {word(late)} >&2
        journalctl -u {name} -n 20 --no-pager -o cat >&2
        exit 1
    }}
    sleep 0.2
done
""")
    )
