"""Model files on the host, known by their stamps: no gigabyte is read to learn that nothing changed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from facts.base import HostFact, framed


@dataclass(frozen=True)
class ModelFile:
    """A file in the models' directory. `sha256` is what its stamp proves, None where the stamp does not fit it."""

    name: str
    size_bytes: int
    sha256: str | None


class ModelFiles(HostFact[tuple[ModelFile, ...]]):
    """The GGUF files of a directory, newest first, and unfinished downloads (`*.part`) in `incoming`."""

    def command(self, directory: str) -> str:
        return framed(
            f"for f in $(ls -1t {directory}/*.gguf {directory}/incoming/*.part 2>/dev/null); do "
            'echo "$(stat -c "%s %.9Y" "$f") ${f##*/} $(cat "$f.stamp" 2>/dev/null)"; done; true'
        )

    def parse(self, output: list[str]) -> tuple[ModelFile, ...]:
        return tuple(parse_model_file(line) for line in output)


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
