"""Which builds of llama.cpp are installed, which of them is current, and what one of them is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from facts.base import HostFact, framed
from facts.machine import parse_sections
from operations.shell import word

MANIFEST = "release.json"


@dataclass(frozen=True)
class Installed:
    """Release IDs, newest first, the one that `current` points at, and what a deploy that was cut left of another."""

    releases: tuple[str, ...] = ()
    current: str | None = None
    unfinished: tuple[str, ...] = ()


_ID = "[0-9a-f]{12}-[0-9a-f]{8}"


class Releases(HostFact[Installed]):
    """The builds below a directory, by name. Whether one is whole, `ReleaseContent` tells."""

    def command(self, root: str) -> str:
        return framed(
            f'cd {word(root)} 2>/dev/null || exit 0; echo "current $(basename "$(readlink current)")"; '
            f"ls -1t releases 2>/dev/null | grep -xE '{_ID}([.]partial)?'; "
            "[ ! -L .current.new ] || echo .current.new"
        )

    def parse(self, output: list[str]) -> Installed:
        current, names = output[0].removeprefix("current").strip() if output else "", output[1:]
        return Installed(
            releases=tuple(name for name in names if "." not in name),
            current=current or None,
            unfinished=tuple(name if name.startswith(".") else f"releases/{name}" for name in names if "." in name),
        )


class Proof(Enum):
    """What a release's own manifest says of its files."""

    NONE = "there is none, or it is not what the manifest says"
    UNRECORDED = "its manifest is of a version that recorded no checksums"
    WHOLE = "every file is as it was when it was installed"


@dataclass(frozen=True)
class Content:
    """A release's manifest, as far as it can be read, and `[SHA-256, bytes]` of each file that root alone can write."""

    manifest: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def proof(self, release: str) -> Proof:
        """Whether this is that release, whole."""
        sizes = [size for _, size in self.files.values()]
        if self.manifest.get("release") != release or not sizes or 0 in sizes:
            return Proof.NONE
        if "files" not in self.manifest:
            return Proof.UNRECORDED
        recorded = {name: list(found) for name, found in self.files.items()}
        return Proof.WHOLE if self.manifest["files"] == recorded else Proof.NONE


class ReleaseContent(HostFact[Content]):
    """What is in a release's directory: some 26 MB are read."""

    def command(self, directory: str) -> str:
        return framed(
            f"cd {word(directory)} 2>/dev/null || exit 0; "
            f"echo @manifest; cat {MANIFEST} 2>/dev/null; echo; echo @files; "
            'for f in bin/*; do if [ -f "$f" ] && [ ! -L "$f" ] && [ "$(stat -c "%a %u" "$f")" = "755 0" ]; then '
            'echo "$(sha256sum <"$f" | cut -d" " -f1) $(stat -c %s "$f") $f"; fi; done'
        )

    def parse(self, output: list[str]) -> Content:
        sections = parse_sections(output)
        try:
            manifest = json.loads("\n".join(sections.get("manifest", [])))
        except ValueError:
            manifest = {}
        files = (line.split(" ", 2) for line in sections.get("files", []) if line)
        return Content(
            manifest=manifest if isinstance(manifest, dict) else {},
            files={name: (sha256, int(size)) for sha256, size, name in files},
        )
