"""When the kernel killed a unit's process, as the journal remembers it.

The kernel's own counter starts again with each start of the unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.host import Host

# "A process of this unit has been killed by the OOM killer", from systemd's message catalogue.
_OOM_MESSAGE_ID = "fe6faa94e7774663a0da52717891d8ef"


def oom_kills(unit: str) -> list[str]:
    return [f"UNIT={unit}", f"MESSAGE_ID={_OOM_MESSAGE_ID}"]


def sigkills(unit: str) -> list[str]:
    """Of "Main process exited, code=killed, status=9/KILL"."""
    return [f"UNIT={unit}", "EXIT_CODE=killed", "EXIT_STATUS=9"]


def times(host: Host, matches: list[str], days: int) -> list[float]:
    """Seconds since the epoch of each entry of the last days; raises OSError without a readable journal."""
    done = host.run("journalctl", "--no-pager", "--quiet", "--output=short-unix", f"--since=-{days}d", *matches)
    if done.code != 0 and done.stderr.strip():
        raise OSError(f"journalctl does not answer: {done.message}")
    return parse_times(done.stdout)


def parse_times(text: str) -> list[float]:
    """From lines such as "1795385593.123456 host systemd[1]: local-llm.service: …"."""
    found = []
    for line in text.splitlines():
        try:
            found.append(float(line.split(" ", 1)[0]))
        except ValueError:
            continue  # "-- No entries --", "-- Boot … --"
    return found
