"""Verified model files: downloaded with resume, proven by size and SHA-256, then renamed into place."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import Host, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.model import ModelFiles
from operations.jobs import Job, end_processes, follow
from operations.remote import call, connector_arguments, run, script
from operations.shell import Shell, moved_into_place, word


@dataclass(frozen=True)
class Download:
    """A file to fetch and what proves it. `insecure` allows http besides https."""

    url: str
    sha256: str
    size_bytes: int
    attempts: int
    stall_seconds: int
    insecure: bool


@operation()
def downloaded(path: str, download: Download, user: str) -> Generator[PyinfraCommand, None, None]:
    """Ensure a GGUF file with this checksum at `path`. Until it is proven, nothing of that name exists.

    An unprivileged user downloads to `incoming/SHA256.part` beside the destination, resuming what an earlier
    attempt left. Root then takes the file into its own directory, where nobody else can change it, checks magic, size
    and SHA-256, and renames it. A wrong file is removed and never takes the name. A stamp beside the file (checksum,
    size, modification time) lets later runs trust it without reading it.

    + path: the destination, in a directory with a subdirectory `incoming` that the user may write to
    + download: address, proof and patience
    + user: who downloads
    """
    directory, name = path.rsplit("/", 1)
    there = next((file for file in read(ModelFiles, directory=directory).files if file.name == name), None)
    if there and there.sha256 == download.sha256:
        host.noop(f"{name} is there, {there.size_bytes} bytes, sha256 {there.sha256[:16]}…")
        return
    arguments = connector_arguments(host)
    if there and there.size_bytes == download.size_bytes:
        # Its stamp was lost or the file was touched: reading it is cheaper than fetching it again.
        proven = []

        def prove(_state: State, host: Host) -> bool:
            proven.append(run(host, script(f"{_prove(download, path)}\n{_write_stamp(download, path)}"), arguments)[0])
            return True

        yield call(prove)
        if all(proven):
            return
    part, taken = f"{directory}/incoming/{download.sha256}.part", f"{directory}/.{download.sha256}.taken"
    yield call(follow(download_job(download, part, user), arguments))
    yield StringCommand(
        script(f"""
export LC_ALL=C
{end_processes(user)}
trap {shlex.quote(f"rm -rf {word(taken)}")} EXIT
rm -rf {word(taken)}
mv -T {word(part)} {word(taken)}
found=$(stat -c '%F, links: %h' {word(taken)})
[ "$found" = 'regular file, links: 1' ] || {{
    echo "what was downloaded is not a plain file ($found). It never became the model." >&2
    exit 1
}}
chown root:root {word(taken)}
chmod 0644 {word(taken)}
{_prove(download, taken)}
{moved_into_place(taken, path)}
{_write_stamp(download, path)}
""")
    )


def download_job(download: Download, part: str, user: str) -> Job:
    """Fetching with curl: redirects, resume by range, a stall limit, and attempts with growing pauses.

    curl's own --retry would begin again at the offset of its start; a loop resumes at what is there.
    """
    protocols = "=http,https" if download.insecure else "=https"
    return Job(
        unit="local-llm-download",
        title=f"Download {download.url.rsplit('/', 1)[1]}",
        identity=f"Download {download.sha256}",
        user=user,
        script=f"""
part={word(part)}
size() {{ stat -c %s "$part" 2>/dev/null || echo 0; }}
free=$(($(df -Pk "$(dirname "$part")" | awk 'NR==2 {{print $4}}') * 1024))
missing=$(({download.size_bytes} - $(size)))
[ "$free" -gt "$missing" ] || {{ echo "disk full: $missing bytes to download, $free bytes free" >&2; exit 1; }}
attempt=1
while [ "$(size)" -ne {download.size_bytes} ]; do
    [ "$(size)" -lt {download.size_bytes} ] || rm -f "$part"
    status=0
    curl --disable --fail --silent --show-error --location --max-redirs 5 \\
        --proto {protocols} --proto-redir {protocols} --connect-timeout 20 \\
        --speed-limit 1024 --speed-time {download.stall_seconds} \\
        --max-filesize {download.size_bytes} --continue-at - --output "$part" {word(download.url)} || status=$?
    [ "$(size)" -ne {download.size_bytes} ] || break
    case $status in
        0) echo "the server's file ended after $(size) of {download.size_bytes} bytes" >&2 ;;
        33 | 36) echo "the server does not resume: starting again" >&2; rm -f "$part" ;;
        63) echo "the server's file is larger than {download.size_bytes} bytes: another file than configured" >&2
            rm -f "$part"; exit 1 ;;
    esac
    [ "$attempt" -lt {download.attempts} ] || {{ echo "gave up after $attempt attempts at $(size) bytes" >&2; exit 1; }}
    echo "attempt $attempt ended at $(size) bytes, resuming" >&2
    sleep $((attempt < 10 ? attempt : 10))
    attempt=$((attempt + 1))
done
""",
        progress=f"stat -c %s {word(part)}",
        describe=lambda size: describe_bytes(size, download.size_bytes),
        properties={"ReadWritePaths": part.rsplit("/", 1)[0]},
    )


def describe_bytes(size: str, total: int) -> str | None:
    """A file's size against the total in words: `45 %, 503 of 1117 MB`."""
    if not size.strip().isdigit():
        return None
    done = int(size)
    return f"{100 * done // total} %, {done // 10**6} of {total // 10**6} MB"


def _prove(download: Download, file: str) -> Shell:
    return f"""
reject() {{ printf '%s. It never became the model.\n' "$1" >&2; exit 1; }}
[ "$(head -c 4 {word(file)})" = GGUF ] || reject {word(f"{download.url} gave a file that is no GGUF model")}
[ "$(stat -c %s {word(file)})" = {download.size_bytes} ] || reject "size: expected {download.size_bytes} bytes"
found=$(nice -n 19 sha256sum <{word(file)} | cut -d ' ' -f 1)
[ "$found" = {word(download.sha256)} ] || reject "checksum: expected "{word(download.sha256)}", found $found"
"""


def _write_stamp(download: Download, file: str) -> Shell:
    new = f"{file}.stamp.new"
    return f"""
printf '{{"sha256": "%s", "size_bytes": %s, "mtime_ns": %s}}\n' {word(download.sha256)} {download.size_bytes} \
    "$(stat -c %.9Y {word(file)} | tr -d .)" >{word(new)}
{moved_into_place(new, f"{file}.stamp")}
"""


@operation()
def pruned(directory: str, current: str, keep: int) -> Generator[StringCommand, None, None]:
    """Ensure that at most `keep` model files are kept besides the current one, and no unfinished download.

    + directory: the models' directory
    + current: the file's name that is never removed
    + keep: how many others stay, the newest of them
    """
    there = read(ModelFiles, directory=directory)
    others = [file.name for file in there.files if file.name != current]
    surplus = [f"{directory}/{name}" for name in [*there.leftovers, *others[keep:]]]
    if not surplus and not there.has_downloads:
        host.noop(f"nothing but {current} and up to {keep} others")
    for path in surplus:
        yield StringCommand("rm", "-f", word(path), word(f"{path}.stamp"))
    if there.has_downloads:
        # The names in there are another user's: none of them comes into a command.
        yield StringCommand("find", word(f"{directory}/incoming"), "-mindepth", "1", "-delete")
