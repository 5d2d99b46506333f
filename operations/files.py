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
from operations.remote import script


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


@operation()
def managed(files: Sequence[ManagedFile], validate: str | None = None) -> Generator[PyinfraCommand, None, None]:
    """Ensure the content, owner and mode of some files, and that their directories exist.

    Each changed file is written beside its destination and renamed over it, so that a reader sees the old or the
    new content, never a part.

    + files: the files
    + validate: a command that judges a candidate before it takes its place; `{}` stands for the candidate's path.
      Where it fails the old file stays and the operation fails with the command's own words.
    """
    present = read(FileContents, paths=tuple(file.path for file in files))
    changed = False
    for file in files:
        before = present.get(file.path)
        wanted = (file.content.encode(), file.mode, file.owner, file.group)
        if before is not None and (before.content, before.mode, before.owner, before.group) == wanted:
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
    present = read(FileDigests, paths=(file.path,)).get(file.path)
    if present == FileDigest(file.sha256, file.mode, file.owner, file.group):
        host.noop(f"{file.path} is as it should be")
        return
    yield _replacement(file, validate=None)


def _replacement(file: ManagedFile, validate: str | None) -> StringCommand:
    """Written through standard input: on its way, an upload with sudo would lie in /tmp, for every user to read."""
    candidate = shlex.quote(str(PurePosixPath(file.path).with_name(f".{PurePosixPath(file.path).name}.new")))
    directory = shlex.quote(str(PurePosixPath(file.path).parent))
    size = len(file.content.encode())
    steps = [
        f"(umask 022 && mkdir -p {directory})",
        f"trap 'rm -f {candidate}' EXIT",
        f"install -m 0600 /dev/null {candidate}",
        f"head -c {size} >{candidate}",  # pyinfra ends what it sends with a newline
        f'[ "$(wc -c <{candidate})" -eq {size} ] || {{ echo "only a part of {file.path} arrived" >&2; exit 1; }}',
        validate.format(candidate) if validate else ":",
        f"chown {shlex.quote(f'{file.owner}:{file.group}')} {candidate}",
        f"chmod {file.mode} {candidate}",
        f"mv -fT {candidate} {shlex.quote(file.path)}",
    ]
    return StringCommand(script("\n".join(steps)), _stdin=file.content)


def _show_difference(file: ManagedFile, before: bytes) -> None:
    lines = difflib.unified_diff(
        before.decode(errors="replace").splitlines(),
        file.content.splitlines(),
        fromfile=f"{file.path} (now)",
        tofile=f"{file.path} (to be)",
        lineterm="",
    )
    for line in lines:
        host.log(line)


@operation()
def absent(paths: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Ensure that files do not exist.

    + paths: the files
    """
    present = read(FileDigests, paths=tuple(paths))
    if not present:
        host.noop("nothing to remove")
    for path in present:
        yield StringCommand("rm", "-f", shlex.quote(path))
