"""What the journal remembers: when the kernel killed a unit's process, and what was said since it was read last.

Every user may write entries with any text and any field. So an entry is believed by its trusted fields alone, those
with an underscore, which the journal itself sets (systemd.journal-fields(7)): what systemd says is what process 1 said,
what the gateway says is what a process of its unit said. The kernel's own counter of kills starts again with each start
of the unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from checks.host import Host

BY_SYSTEMD = "_PID=1"
# "A process of this unit has been killed by the OOM killer", from systemd's message catalogue.
OOM_MESSAGE = "MESSAGE_ID=fe6faa94e7774663a0da52717891d8ef"
_CURSOR = "-- cursor: "
_QUIET = ("journalctl", "--no-pager", "--quiet")


class Entry(NamedTuple):
    """Who said what. `unit`, the sender's, and `by_systemd` are the journal's word; `about` is what systemd names."""

    message: str
    unit: str
    by_systemd: bool
    about: str


class Told(NamedTuple):
    """What was read. `cursor` is where to go on; `cut`: there is more behind it."""

    lines: list[str]
    cursor: str | None
    cut: bool = False

    @property
    def entries(self) -> Iterator[Entry]:
        return (entry for line in self.lines if (entry := _entry(line)))


def by(unit: str) -> str:
    """What processes of a unit said."""
    return f"_SYSTEMD_UNIT={unit}"


def oom_kills(*units: str) -> list[str]:
    return [BY_SYSTEMD, OOM_MESSAGE, *(f"UNIT={unit}" for unit in units)]


def sigkills(unit: str) -> list[str]:
    """Of "Main process exited, code=killed, status=9/KILL"."""
    return [BY_SYSTEMD, f"UNIT={unit}", "EXIT_CODE=killed", "EXIT_STATUS=9"]


def times(host: Host, matches: list[str], days: int) -> list[float]:
    """Seconds since the epoch of each entry of the last days; raises OSError without a readable journal."""
    done = host.run(*_QUIET, "--output=short-unix", f"--since=-{days}d", *matches)
    if done.code != 0 and done.stderr.strip():
        raise OSError(f"journalctl does not answer: {done.message}")
    return parse_times(done.stdout)


def last_words(host: Host, unit: str, since: float) -> str:
    """The last line that the `local-llm` command of a unit said of why it failed; empty if it said nothing."""
    done = host.run(*_QUIET, "--output=cat", "--lines=20", by(unit), f"--since=@{int(since)}")
    said = [line for line in done.stdout.splitlines() if line.startswith("local-llm: ")]
    return said[-1].removeprefix("local-llm: ") if said else ""


def since(host: Host, matches: list[str], cursor: str | None) -> Told:
    """What was said after the cursor, up to a limit, and the cursor to go on from; nothing at all without a cursor.

    A cursor that the journal does not understand counts as none. Raises OSError without a readable journal.
    """
    # The journal's end, not that of the matching messages: there may be none yet.
    what = [f"--after-cursor={cursor}", *matches] if cursor else ["--lines=0"]
    fields = "--output-fields=MESSAGE,UNIT,_PID,_SYSTEMD_UNIT"
    done = host.run(*_QUIET, "--output=json", fields, "--show-cursor", *what)
    if done.code != 0 and cursor and "cursor" in done.stderr:
        return since(host, matches, None)
    if done.code != 0 and done.stderr.strip():
        raise OSError(f"journalctl does not answer: {done.message}")
    # Not splitlines(): a text may hold other line separators.
    lines = [line for line in done.stdout.split("\n") if line]
    if done.cut and lines:
        return Told(lines, _text(_object(lines[-1]), "__CURSOR") or cursor, cut=True)
    if lines and lines[-1].startswith(_CURSOR):
        cursor = lines.pop().removeprefix(_CURSOR)
    return Told(lines, cursor)


def parse_times(text: str) -> list[float]:
    """From lines such as "1795385593.123456 host systemd[1]: local-llm.service: …"."""
    found = []
    for line in text.splitlines():
        try:
            found.append(float(line.split(" ", 1)[0]))
        except ValueError:
            continue  # "-- No entries --", "-- Boot … --"
    return found


def _entry(line: str) -> Entry | None:
    found = _object(line)
    if not found:
        return None
    return Entry(
        message=_text(found, "MESSAGE"),
        unit=_text(found, "_SYSTEMD_UNIT"),
        by_systemd=f"_PID={_text(found, '_PID')}" == BY_SYSTEMD,
        about=_text(found, "UNIT"),
    )


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(found: dict[str, Any], name: str) -> str:
    """A field's text. What is no text comes as its bytes, what is too long as null, what is there twice as a list."""
    value = found.get(name)
    if isinstance(value, list) and all(isinstance(byte, int) for byte in value):
        return bytes(value).decode(errors="replace")
    return value if isinstance(value, str) else ""
