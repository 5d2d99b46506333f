"""The content, owner and mode of small files: one round trip for all of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from facts.base import HostFact, framed
from operations.shell import word


@dataclass(frozen=True)
class FileState:
    """A file as it is on the host. `mode` is four octal digits."""

    content: bytes
    mode: str
    owner: str
    group: str


def _each(paths: Sequence[str], read: str) -> str:
    """A line for each file that exists and is no link: mode, owner, group, what `read` prints of it, path."""
    return (
        f"for f in {' '.join(map(word, paths))}; do "
        'if [ -f "$f" ] && [ ! -L "$f" ]; then '
        f'echo "$(stat -c "%a %U %G" "$f") $({read}) $f"; fi; done'
    )


class FileContents(HostFact[dict[str, FileState]]):
    """State of each given file that exists, by path. Links count as absent: they are replaced by real files."""

    def command(self, paths: Sequence[str]) -> str:
        return framed(_each(paths, 'base64 -w0 "$f"'))

    def parse(self, output: list[str]) -> dict[str, FileState]:
        return parse_file_contents(output)


@dataclass(frozen=True)
class FileDigest:
    """What may be known of a secret file."""

    sha256: str
    mode: str
    owner: str
    group: str


class FileDigests(HostFact[dict[str, FileDigest]]):
    """Digest, owner and mode of each given file that exists, by path; never its content."""

    def command(self, paths: Sequence[str]) -> str:
        return framed(_each(paths, 'sha256sum < "$f" | cut -d" " -f1'))

    def parse(self, output: list[str]) -> dict[str, FileDigest]:
        files = {}
        for line in output:
            mode, owner, group, sha256, path = line.split(" ", 4)
            files[path] = FileDigest(sha256, mode.zfill(4), owner, group)
        return files


def parse_file_contents(output: Sequence[str]) -> dict[str, FileState]:
    """Read the fact's lines: mode, owner, group, base64 (empty for an empty file), path."""
    files = {}
    for line in output:
        mode, owner, group, content, path = line.split(" ", 4)
        files[path] = FileState(base64.b64decode(content), mode.zfill(4), owner, group)
    return files
