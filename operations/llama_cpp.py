"""llama.cpp from a pinned commit: fetched, compiled and installed as a release beside the one that runs."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import Host, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.llama_cpp import MANIFEST, Proof, ReleaseContent, Releases
from operations.jobs import SANDBOX, Job, end_processes, follow
from operations.remote import call, connector_arguments, run, script
from operations.shell import Shell, moved_into_place, word

TARGETS = ("llama-server", "llama-bench")
TRIALS = ("llama-server --version", "llama-bench --help")
KEPT_CACHES = 3
"""Compiler caches kept, one a commit, the newest: going back to an earlier commit finds its own."""
COMPILER_MIB = 900
"""RAM for one compiler process: the largest took 647 MB (GCC 12, benchmarks/build.py); with room."""

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    # Both, or the build downloads the web interface.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    # The server has neither network nor child processes: no TLS, no tools that run programs.
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_SUBPROCESS=OFF",
    "-DGGML_CCACHE=OFF",  # the launcher below is told instead, whatever ggml would find
    "-DCMAKE_C_COMPILER_LAUNCHER=ccache",
    "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",
)


@dataclass(frozen=True)
class Release:
    """One build: what it is made from decides its ID, so that equal inputs are never compiled twice."""

    repository: str
    commit: str
    native: bool
    cpu: str

    @property
    def flags(self) -> tuple[str, ...]:
        return (*CMAKE_FLAGS, f"-DGGML_NATIVE={'ON' if self.native else 'OFF'}")

    @property
    def id(self) -> str:
        made_from = json.dumps([self.flags, TARGETS, self.cpu])
        return f"{self.commit[:12]}-{hashlib.sha256(made_from.encode()).hexdigest()[:8]}"

    def manifest(self) -> str:
        """release.json without its files, which are listed when they are installed."""
        return json.dumps({"release": self.id, "commit": self.commit, "native": self.native, "flags": self.flags})


def build_jobs(cores: int, memory_available_mib: int, asked: int | None) -> int:
    """Compiler processes at once: one a core, as far as free memory allows, but at least one."""
    return asked or max(1, min(cores, memory_available_mib // COMPILER_MIB))


@operation()
def installed(release: Release, root: str, scratch: str, user: str, jobs: int) -> Generator[PyinfraCommand, None, None]:
    """Ensure that a release is installed, whole and current; what runs and what is current stay until it is complete.

    The source is fetched by commit, so git proves its content. It is compiled by an unprivileged user without
    network at idle priority, copied to root's own place, tried there (`llama-server --version`) without rights and
    network, given a manifest with the checksum of each file, and switched to with one rename. A release counts as
    installed only while its files are those of its manifest: one that is not is built again in its place.

    + release: what to build
    + root: where releases are installed
    + scratch: root's directory with those of the building user: source, objects and the compiler's caches
    + user: who builds
    + jobs: compiler processes at once
    """
    directory = f"{root}/releases/{release.id}"
    is_current = read(Releases, root=root).current == release.id
    proof = read(ReleaseContent, directory=directory).proof(release.id)
    if proof is Proof.WHOLE and is_current:
        host.noop(f"release {release.id} is installed, whole and current")
        return
    arguments = connector_arguments(host)
    usable = [proof is not Proof.NONE]
    if all(usable):
        record = _recorded(release, directory) if proof is Proof.UNRECORDED else ""

        def try_it(_state: State, host: Host) -> bool:
            runs, output = run(host, script(_tried(directory, user) + record), arguments)
            usable.append(runs)
            if not runs:
                host.log_styled(f"{output}\nRelease {release.id} does not run here: building it again.", fg="yellow")
            return True

        yield call(try_it)
    if not all(usable):
        build = build_job(release, scratch, user, jobs)
        yield call(follow(fetch_job(release, scratch, user), arguments, then=build))
        yield call(follow(build, arguments))
        yield StringCommand(script(_installed(release, root, scratch, user)))
    if not is_current:
        current = f"{root}/.current.new"
        link = (
            f"ln -sfn {word(f'releases/{release.id}')} {word(current)}\n{moved_into_place(current, f'{root}/current')}"
        )
        yield StringCommand(script(link))


GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
"""git reads no configuration but that of the repository it makes itself."""


def fetch_job(release: Release, scratch: str, user: str) -> Job:
    """Fetching one commit, nothing of its history, into an empty directory; then every file is compared with it.

    Always anew: what an earlier job or a power cut left of a source is worth nothing.
    """
    source = word(f"{scratch}/source")
    return Job(
        unit="local-llm-fetch",
        title=f"Fetch llama.cpp {release.commit[:12]}",
        identity=f"Fetch {release.commit}",
        user=user,
        script=f"""
cd {source}
commit={word(release.commit)}
git init -q --template=
for attempt in 1 2 3 4 5; do
    git -c http.lowSpeedLimit=1024 -c http.lowSpeedTime=60 fetch --depth 1 --no-tags --progress \\
        -- {word(release.repository)} "$commit" && break
    [ "$attempt" -lt 5 ] || exit 1
    sleep "$attempt"
done
git -c advice.detachedHead=false checkout -q --detach FETCH_HEAD
found=$(git rev-parse HEAD)
[ "$found" = "$commit" ] || {{ echo "asked for $commit, got $found" >&2; exit 1; }}
git fsck --full --no-dangling --no-progress
rm .git/index
git read-tree HEAD
git update-index --refresh
others=$(git ls-files --others)
[ -z "$others" ] || {{ printf 'not of the commit: %s\n' "$others" >&2; exit 1; }}
""",
        progress="tr '\\r' '\\n' < /var/log/local-llm/local-llm-fetch.log | tail -n 1",
        describe=lambda line: line.strip() or None,
        properties={"ReadWritePaths": f"{scratch}/source"},
        environment=GIT_ENVIRONMENT,
        # Whatever else lies there was left by an earlier build.
        prepare=f"""
{end_processes(user)}
find {word(scratch)} -mindepth 1 -maxdepth 1 ! '(' -name ccache -type d ')' -exec rm -rf -- {{}} +
install -d -m 0700 -o {word(user)} {source}
""",
        discard=_discarded(scratch),
    )


def build_job(release: Release, scratch: str, user: str, jobs: int) -> Job:
    """Compiling what the service needs, without network: a build that downloads something fails.

    It can write its objects and its commit's own compiler cache, nothing else: what one commit's build leaves never
    reaches another's.
    """
    binaries = " ".join(TARGETS)
    source, build = f"{scratch}/source", f"{scratch}/build"
    caches = f"{scratch}/ccache"
    cache = f"{caches}/{release.commit}"
    return Job(
        unit="local-llm-build",
        title=f"Build llama.cpp {release.commit[:12]}",
        identity=f"Build {release.id}",
        user=user,
        script=f"""
cd {word(scratch)}
cmake -S {word(source)} -B {word(build)} -G Ninja {shlex.join(release.flags)}
cmake --build {word(build)} --parallel {jobs} --target {binaries}
""",
        progress="tail -n 1 /var/log/local-llm/local-llm-build.log",
        describe=describe_ninja,
        properties={"ReadWritePaths": f"{build} {cache}", "PrivateNetwork": "yes"},
        environment={
            **GIT_ENVIRONMENT,
            "CCACHE_DIR": cache,
            "CCACHE_MAXSIZE": "500M",
            # The CPU belongs to the key: -march=native means another thing on another CPU.
            "CCACHE_NAMESPACE": release.id.rsplit("-", 1)[1],
            "NINJA_STATUS": "[%f/%t] ",
        },
        prepare=f"""
rm -rf {word(build)}
install -d -m 0755 -o root -g root {word(caches)}
install -d -m 0700 -o {word(user)} {word(build)} {word(cache)}
touch {word(cache)}
cd {word(caches)}
find . -mindepth 1 -maxdepth 1 ! -name '{"[0-9a-f]" * 40}' -exec rm -rf -- {{}} +
ls -1t | tail -n +{KEPT_CACHES + 1} | xargs -r rm -rf --
""",
        discard=_discarded(scratch),
    )


def _discarded(scratch: str) -> Shell:
    return f"rm -rf {word(f'{scratch}/source')} {word(f'{scratch}/build')}"


def describe_ninja(line: str) -> str | None:
    """`[97/214] Building …` in words: `45 %, 97 of 214 files`."""
    found = re.match(r"\[(\d+)/(\d+)\]", line)
    if not found:
        return None
    done, total = int(found[1]), int(found[2])
    return f"{100 * done // total} %, {done} of {total} files"


def _installed(release: Release, root: str, scratch: str, user: str) -> Shell:
    """The building user owns the objects: what root takes of them are plain files that nobody can change meanwhile."""
    final = f"{root}/releases/{release.id}"
    partial, build = f"{final}.partial", f"{scratch}/build"
    return f"""
export LC_ALL=C
{end_processes(user)}
rm -rf {word(partial)}
install -d -m 0755 {word(partial)} {word(f"{partial}/bin")}
for name in {" ".join(TARGETS)}; do
    file=$(readlink -f {word(build)})/bin/$name
    [ "$(readlink -f "$file")" = "$file" ] && [ "$(stat -c '%F %h' "$file")" = 'regular file 1' ] || {{
        echo "$name is not a plain file of the build's own: it is not installed" >&2
        exit 1
    }}
    install -m 0755 "$file" {word(f"{partial}/bin")}/"$name"
done
{_tried(partial, user)}
{_recorded(release, partial)}
rm -rf {word(final)}
{moved_into_place(partial, final)}
{_discarded(scratch)}
"""


def _tried(directory: str, user: str) -> Shell:
    """Lines that run what was built, without network and rights. A file that was cut off has no end of its tables."""
    sandbox = {"User": user, "PrivateNetwork": "yes", **SANDBOX}
    trial = shlex.join(
        ["systemd-run", "--quiet", "--wait", "--pipe", "--collect",
         *(f"--property={name}={value}" for name, value in sandbox.items()), "--"]
    )  # fmt: skip
    return f"""
for trial in {shlex.join(TRIALS)}; do
    file={word(f"{directory}/bin")}/${{trial%% *}}
    tables=$(od -An -tu8 -j40 -N8 "$file") size=$(od -An -tu2 -j58 -N2 "$file") number=$(od -An -tu2 -j60 -N2 "$file")
    [ "$((tables + size * number))" -le "$(stat -c %s "$file")" ] || {{ echo "$file is cut off" >&2; exit 1; }}
    said=$({trial} "$file" "${{trial#* }}" 2>&1) || {{ printf '%s\n' "$said" "$file does not run" >&2; exit 1; }}
done
"""


def _recorded(release: Release, directory: str) -> Shell:
    """Lines that write the manifest, with SHA-256 and size of each file."""
    manifest = f"{directory}/{MANIFEST}"
    return f"""
files=
for name in {" ".join(TARGETS)}; do
    file={word(f"{directory}/bin")}/$name
    sha256=$(sha256sum <"$file" | cut -d ' ' -f 1)
    files="$files${{files:+, }}\\"bin/$name\\": [\\"$sha256\\", $(stat -c %s "$file")]"
done
printf '%s, "files": {{%s}}}}\n' {shlex.quote(release.manifest().removesuffix("}"))} "$files" >{word(f"{manifest}.new")}
{moved_into_place(f"{manifest}.new", manifest)}
"""


@operation()
def pruned(root: str, current: str, keep: int) -> Generator[StringCommand, None, None]:
    """Ensure that at most `keep` releases are kept besides the current one, the newest of them, and none unfinished.

    + root: where releases are installed
    + current: the release that is never removed
    + keep: how many others stay
    """
    there = read(Releases, root=root)
    others = [release for release in there.releases if release != current]
    surplus: Sequence[str] = [*there.unfinished, *(f"releases/{release}" for release in others[keep:])]
    if not surplus:
        host.noop(f"{len(others)} other releases, {keep} may stay")
    for path in surplus:
        yield StringCommand("rm", "-rf", word(f"{root}/{path}"))
