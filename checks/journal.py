"""What the journal remembers: when the kernel killed a unit's process, and what was said since it was read last.

The kernel's own counter of kills starts again with each start of the unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.host import Host

# "A process of this unit has been killed by the OOM killer", from systemd's message catalogue.
_OOM_MESSAGE_ID = "fe6faa94e7774663a0da52717891d8ef"
_CURSOR = "-- cursor: "


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


def since(host: Host, matches: list[str], cursor: str | None) -> tuple[list[str], str | None]:
    """The messages after the cursor, and the cursor to go on from; none at all without a cursor.

    A cursor that the journal does not understand counts as none. Raises OSError without a readable journal.
    """
    # The journal's end, not that of the matching messages: there may be none yet.
    what = [f"--after-cursor={cursor}", *matches] if cursor else ["--lines=0"]
    done = host.run("journalctl", "--no-pager", "--quiet", "--output=cat", "--show-cursor", *what)
    if done.code != 0 and cursor and "cursor" in done.stderr:
        return since(host, matches, None)
    if done.code != 0 and done.stderr.strip():
        raise OSError(f"journalctl does not answer: {done.message}")
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith(_CURSOR):
        cursor = lines.pop().removeprefix(_CURSOR)
    return lines, cursor


def parse_times(text: str) -> list[float]:
    """From lines such as "1795385593.123456 host systemd[1]: local-llm.service: …"."""
    found = []
    for line in text.splitlines():
        try:
            found.append(float(line.split(" ", 1)[0]))
        except ValueError:
            continue  # "-- No entries --", "-- Boot … --"
    return found
