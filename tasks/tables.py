"""Tables for a person at a terminal, on standard error so that `--json` stays pure JSON."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from checks.output import printable

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


def show(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table whose second column is PASS, WARN or FAIL, coloured where a terminal is.

    What comes from a host is shown as far as it can be seen: rich leaves a terminal's commands as they are.
    """
    table = Table(title=Text(printable(title)), title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        name, status, *rest = map(printable, row)
        table.add_row(Text(name), Text(status, style=COLOURS.get(status, "")), *(Text(cell) for cell in rest))
    console = Console(stderr=True)
    # Where the output is no terminal, rich assumes 80 columns; a log is read with more.
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    console.print(table)
