"""Model files on the host, known by their stamps: no gigabyte is read to learn that nothing changed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from facts.base import HostFact, framed
from facts.machine import parse_sections
from operations.shell import word

_CHARACTERS = "A-Za-z0-9._@+-"


@dataclass(frozen=True)
class ModelFile:
    """A file in the models' directory. `sha256` is what its stamp proves, None where the stamp does not fit it."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Models:
    """The GGUF files of a directory, newest first, and what deploys that were cut left beside them.

    `has_downloads` tells whether something lies in `incoming`, where names are another user's.
    """

    files: tuple[ModelFile, ...] = ()
    leftovers: tuple[str, ...] = ()
    has_downloads: bool = False


class ModelFiles(HostFact[Models]):
    """The models in a directory. Files whose names hold other characters than ours are somebody's own."""

    def command(self, directory: str) -> str:
        return framed(
            f"cd {word(directory)} 2>/dev/null || exit 0; "
            f'plain() {{ case $1 in *[!{_CHARACTERS}]*) false ;; *) [ -f "$1" ] && [ ! -L "$1" ] ;; esac; }}; '
            'echo @files; for f in *.gguf; do if plain "$f"; then '
            'echo "$(stat -c "%s %.9Y" "./$f") $f $(cat "./$f.stamp" 2>/dev/null)"; fi; done; '
            'echo @leftovers; for f in .*.taken *.stamp.new; do if plain "$f"; then echo "$f"; fi; done; '
            "echo @downloads; find incoming -mindepth 1 -printf 'yes\\n' -quit 2>/dev/null; true"
        )

    def parse(self, output: list[str]) -> Models:
        sections = parse_sections(output)
        newest_first = sorted(sections.get("files", []), key=lambda line: line.split(" ")[1], reverse=True)
        return Models(
            files=tuple(map(parse_model_file, newest_first)),
            leftovers=tuple(sections.get("leftovers", [])),
            has_downloads=bool(sections.get("downloads")),
        )


def parse_model_file(line: str) -> ModelFile:
    """Read `SIZE MTIME NAME STAMP`; a stamp counts only while size and modification time are those it names."""
    size, mtime, name, stamp_text = [*line.split(" ", 3), ""][:4]
    try:
        stamp = json.loads(stamp_text)
        proves = stamp["size_bytes"] == int(size) and stamp["mtime_ns"] == int(mtime.replace(".", ""))
        sha256 = stamp["sha256"] if proves else None
    except (ValueError, KeyError, TypeError):
        sha256 = None
    return ModelFile(name, int(size), sha256)
