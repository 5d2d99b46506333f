"""docs/SETTINGS.md: every setting under the heading of its section, and the catalogue of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from settings import CATALOGUE, SECTIONS, allowed_values
from settings.section import Section

_INTRODUCTION = (
    "Generated from settings/ by `make docs`; change them in group_data/all.py (every host) or inventory.py (one host)."
)


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from ("# Settings", "", _INTRODUCTION)
    for section in SECTIONS:
        yield from ("", f"## {section.model_config['title']}", "", section.__doc__ or "", "")
        yield from _table(("setting", "default", "allowed", "why"), _settings(section))
    yield from ("", "## Catalogue of models", "")
    yield from _table(("model", "size", "licence", "SHA-256"), _models())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield _row(head)
    yield "|" + "---|" * len(head)
    yield from map(_row, rows)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _settings(section: type[Section]) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        yield f"`{name}`", f"`{_default(field.default)}`", allowed_values(name), field.description or ""


def _models() -> Iterator[tuple[str, ...]]:
    for model in CATALOGUE.values():
        yield f"`{model.name}`", f"{model.size_bytes / 1e9:.2f} GB", model.licence, f"`{model.sha256}`"


def _default(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
