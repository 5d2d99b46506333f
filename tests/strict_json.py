"""What a strict reader takes for a JSON object and finds in it: Python's, for tests to compare the gateway with."""

from __future__ import annotations

import json
from typing import Any, NoReturn

BOM = b"\xef\xbb\xbf"
DEEPEST = 256
"""Containers in containers that are read."""


class Pairs(list[tuple[str, Any]]):
    """An object with all its pairs, also those of equal names. An array is a plain list."""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def document_of(body: bytes) -> Pairs | None:
    """The one object that the body is, for a strict reader of RFC 8259 in UTF-8; None where it is none."""
    try:
        document = json.loads(
            body.removeprefix(BOM).decode(),
            object_pairs_hook=Pairs,
            parse_constant=_refuse,
            # Python converts no longer ones.
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, Pairs) and depth(document) <= DEEPEST else None


def depth(value: Any) -> int:
    """Containers in containers."""
    if not isinstance(value, list):
        return 0
    inner = (pair[1] for pair in value) if isinstance(value, Pairs) else value
    return 1 + max(map(depth, inner), default=0)


def value_at(document: Pairs, place: str) -> Any:
    """What stands at the place; None where nothing does, or twice."""
    first, _, second = place.partition(".")
    found = [value for name, value in document if name == first]
    if second:
        found = [value for outer in found if isinstance(outer, Pairs) for name, value in outer if name == second]
    return found[0] if len(found) == 1 else None
