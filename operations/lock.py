"""One deploy at a time on a host: a kernel lock that lives exactly as long as the deploy's connection.

The lock is held by a process on the host that writes a line every second to the deploy's connection. Where the
deploy ends, is killed, or loses the network, writing fails, the process ends and the kernel frees the lock: there
is no stale lock to clean up. Taking it changes nothing on the host, so it does not count as a change.
"""

from __future__ import annotations

import getpass
import shlex
import socket
import uuid
from collections.abc import Generator

import gevent
from pyinfra import host, state
from pyinfra.api import Host, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_host

from operations.remote import call, connector_arguments, fail, run, script

LOCK_FILE = "/run/local-llm-root/deploy.lock"
"""In a directory of root's alone: no other user can hold it, or put a link in its place."""
EARLIER_LOCK_FILE = "/run/lock/local-llm-deploy.lock"
"""Where deploys and health checks of earlier versions look, in a directory of everybody's."""
WAIT_SECONDS = 5
"""An earlier deploy's process notices its end within a second; this leaves it time."""


@operation()
def exclusive() -> Generator[PyinfraCommand, None, None]:
    """Ensure that no other deploy runs on this host until this one ends; fails at once where one does."""
    if state.current_stage != StateStage.Execute:
        return
    arguments = connector_arguments(host)
    token = uuid.uuid4().hex
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    # A greenlet of its own knows no current host: it is given the real one.
    this_host: Host = ctx_host.get()  # type: ignore[no-untyped-call]
    held = gevent.spawn(lambda: run(this_host, script(hold_script(token, who)), arguments))
    succeeded, output = run(host, script(wait_script(token)), arguments)
    if succeeded:
        host.noop("no other deploy runs on this host")
        return
    held.kill(block=False)
    yield call(
        lambda _state, host: fail(
            host,
            f"Another deploy runs on this host ({output.strip() or 'unknown'}). Nothing was changed. Wait until it "
            f"ends and run this again; `sudo cat {LOCK_FILE}` on the host says whose it is.",
        )
    )


def hold_script(token: str, who: str) -> str:
    """Take the lock, say who holds it, and hold it while somebody reads.

    Where root has made the earlier version's file it is held as well. In a sticky directory nobody else can take root's
    file away, and what is not one, a link for instance, is left alone.
    """
    return f"""
umask 077
mkdir -p {LOCK_FILE.rsplit("/", 1)[0]}
exec 9>>{LOCK_FILE}
flock -w {WAIT_SECONDS} 9
earlier={EARLIER_LOCK_FILE}
if [ -f "$earlier" ] && [ ! -L "$earlier" ] && [ "$(stat -c %u "$earlier")" = 0 ]; then
    exec 8<"$earlier"
    flock -w {WAIT_SECONDS} 8
fi
printf '%s\\n' {shlex.quote(f"{token} {who}")}" since $(date -u +%H:%M:%SZ)" > {LOCK_FILE}
while echo held; do sleep 1 8<&- 9>&-; done
"""


def wait_script(token: str) -> str:
    """Succeed once the lock carries our token; after the waiting time say who holds it, and fail."""
    return f"""
end=$(($(date +%s) + {WAIT_SECONDS} + 1))
until grep -qs {token} {LOCK_FILE}; do
    [ "$(date +%s)" -lt "$end" ] || {{ cut -d ' ' -f 2- {LOCK_FILE} 2>/dev/null; exit 1; }}
    sleep 0.1
done
"""
