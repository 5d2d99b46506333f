"""Files that the deploy owns: content, owner and mode, compared in one round trip, replaced atomically."""

from __future__ import annotations

import difflib
import hashlib
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyinfra import host, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.files import FileContents, FileDigest, FileDigests
from operations.remote import say, script
from operations.shell import Shell, moved_into_place, word


@dataclass(frozen=True)
class ManagedFile:
    """What a file on the host is to be. `mode` is octal text as in `chmod`."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = "root"
    group: str = "root"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def candidate(self) -> str:
        return candidate(self.path)


def candidate(path: str) -> str:
    """Where a file is written first. One that is found there was left by a deploy that was cut."""
    return str(PurePosixPath(path).with_name(f".{PurePosixPath(path).name}.new"))


@operation()
def managed(files: Sequence[ManagedFile], validate: Shell | None = None) -> Generator[PyinfraCommand, None, None]:
    """Ensure the content, owner and mode of some files, and that their directories exist.

    Each changed file is written beside its destination, synced, and renamed over it: a reader sees the old or the new
    content, never a part, also after a power cut.

    + files: the files
    + validate: a command that judges a candidate before it takes its place; `{}` stands for the candidate's path.
      Where it fails the old file stays and the operation fails with the command's own words.
    """
    present = read(FileContents, paths=tuple(path for file in files for path in (file.path, file.candidate)))
    changed = False
    for file in files:
        before = present.get(file.path)
        wanted = (file.content.encode(), file.mode, file.owner, file.group)
        if before is not None and (before.content, before.mode, before.owner, before.group) == wanted:
            if file.candidate in present:
                changed = True
                yield _removal(file.candidate)
            continue
        changed = True
        if state.config.DIFF:
            _show_difference(file, before.content if before else b"")
        yield _replacement(file, validate)
    if not changed:
        host.noop(
            f"{len(files)} files are as they should be" if len(files) > 1 else f"{files[0].path} is as it should be"
        )


@operation()
def secret(file: ManagedFile) -> Generator[PyinfraCommand, None, None]:
    """Ensure the content, owner and mode of a file whose content is never shown: not in differences, commands or facts.

    + file: the file
    """
    present = read(FileDigests, paths=(file.path, file.candidate))
    if present.get(file.path) == FileDigest(file.sha256, file.mode, file.owner, file.group):
        if file.candidate in present:
            yield _removal(file.candidate)
            return
        host.noop(f"{file.path} is as it should be")
        return
    yield _replacement(file, validate=None)


def _replacement(file: ManagedFile, validate: Shell | None) -> StringCommand:
    """Written through standard input: on its way, an upload with sudo would lie in /tmp, for every user to read."""
    new, directory = word(file.candidate), word(str(PurePosixPath(file.path).parent))
    size = len(file.content.encode())
    steps = [
        f"mkdir -p {directory}",
        f"trap {shlex.quote(f'rm -f {new}')} EXIT",
        f"install -m 0600 /dev/null {new}",
        f"head -c {size} >{new}",  # pyinfra ends what it sends with a newline
        f'[ "$(wc -c <{new})" -eq {size} ] || {{ echo "only a part arrived:" {word(file.path)} >&2; exit 1; }}',
        validate.format(new) if validate else ":",
        f"chown {word(f'{file.owner}:{file.group}')} {new}",
        f"chmod {word(file.mode)} {new}",
        moved_into_place(file.candidate, file.path),
    ]
    return StringCommand(script("\n".join(steps)), _stdin=file.content)


def _removal(path: str) -> StringCommand:
    return StringCommand("rm", "-f", word(path))


def _show_difference(file: ManagedFile, before: bytes) -> None:
    lines = difflib.unified_diff(
        before.decode(errors="replace").splitlines(),
        file.content.splitlines(),
        fromfile=f"{file.path} (now)",
        tofile=f"{file.path} (to be)",
        lineterm="",
    )
    for line in lines:
        say(host, line)


@operation()
def absent(paths: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Ensure that files do not exist, nor what a deploy that was cut had written of them.

    + paths: the files
    """
    present = read(FileDigests, paths=tuple(each for path in paths for each in (path, candidate(path))))
    if not present:
        host.noop("nothing to remove")
    for path in present:
        yield _removal(path)
