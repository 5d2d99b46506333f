"""Templates, whose path below templates/ is their path on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from operations.files import ManagedFile

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

_environment = Environment(  # noqa: S701 - no HTML here
    loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
)


def render(path: str, **variables: Any) -> str:
    """The content of the host's file `path`; a variable that is missing is an error."""
    return _environment.get_template(f"{path.lstrip('/')}.j2").render(variables)


def rendered(path: str, mode: str = "0644", group: str = "root", **variables: Any) -> ManagedFile:
    """The host's file `path` as its template says."""
    return ManagedFile(path=path, content=render(path, **variables), mode=mode, group=group)
