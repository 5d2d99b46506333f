"""llama.cpp from a pinned commit: fetched, compiled and installed as a release beside the one that runs."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.llama_cpp import Releases
from operations.jobs import Job, follow
from operations.remote import call, connector_arguments, script

TARGETS = ("llama-server", "llama-bench")
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
        """release.json: what the installed build is."""
        return json.dumps(
            {"release": self.id, "commit": self.commit, "native": self.native, "flags": list(self.flags)}, indent=2
        )


def build_jobs(cores: int, memory_available_mib: int, asked: int | None) -> int:
    """Compiler processes at once: one a core, as far as free memory allows, but at least one."""
    return asked or max(1, min(cores, memory_available_mib // COMPILER_MIB))


@operation()
def installed(release: Release, root: str, scratch: str, user: str, jobs: int) -> Generator[PyinfraCommand, None, None]:
    """Ensure that a release is installed and current; what runs and what is current stay until it is complete.

    The source is fetched by commit, so git proves its content. It is compiled by an unprivileged user without
    network at idle priority, tried (`llama-server --version`), copied to `ROOT/releases/ID` and switched to with
    one rename.

    + release: what to build
    + root: where releases are installed
    + scratch: directory of the building user, for source, objects and the compiler's cache
    + user: who builds
    + jobs: compiler processes at once
    """
    there = read(Releases, root=root)
    if release.id not in there.releases:
        arguments = connector_arguments(host)
        build = build_job(release, scratch, user, jobs)
        yield call(follow(fetch_job(release, scratch, user), arguments, then=build))
        yield call(follow(build, arguments))
        yield StringCommand(script(_install(release, root, scratch)))
    if there.current != release.id:
        yield StringCommand(
            script(f"ln -sfn releases/{release.id} {root}/.current.new\nmv -fT {root}/.current.new {root}/current")
        )
    elif release.id in there.releases:
        host.noop(f"release {release.id} is installed and current")


def fetch_job(release: Release, scratch: str, user: str) -> Job:
    """Fetching one commit, nothing of its history, into an empty directory."""
    return Job(
        unit="local-llm-fetch",
        title=f"Fetch llama.cpp {release.commit[:12]}",
        identity=f"Fetch {release.commit}",
        user=user,
        script=f"""
cd {scratch}
if [ "$(git -C source rev-parse HEAD 2>/dev/null)" = {release.commit} ] && [ -z "$(git -C source status -s)" ]; then
    exit 0
fi
rm -rf source && mkdir source && cd source
git init -q
for attempt in 1 2 3 4 5; do
    git -c http.lowSpeedLimit=1024 -c http.lowSpeedTime=60 fetch --depth 1 --no-tags --progress \\
        {shlex.quote(release.repository)} {release.commit} && break
    [ "$attempt" -lt 5 ] || exit 1
    sleep "$attempt"
done
git -c advice.detachedHead=false checkout -q --detach FETCH_HEAD
[ "$(git rev-parse HEAD)" = {release.commit} ]
""",
        progress="tr '\\r' '\\n' < /var/log/local-llm/local-llm-fetch.log | tail -n 1",
        describe=lambda line: line.strip() or None,
        properties={"ReadWritePaths": scratch, "Environment": f"HOME={scratch} GIT_TERMINAL_PROMPT=0"},
    )


def build_job(release: Release, scratch: str, user: str, jobs: int) -> Job:
    """Compiling what the service needs, without network: a build that downloads something fails."""
    binaries = " ".join(TARGETS)
    environment = {
        "HOME": scratch,
        "CCACHE_DIR": f"{scratch}/ccache",
        "CCACHE_MAXSIZE": "1G",
        # The CPU belongs to the key: -march=native means another thing on another CPU.
        "CCACHE_NAMESPACE": release.id.rsplit("-", 1)[1],
        "NINJA_STATUS": "[%f/%t] ",
    }
    return Job(
        unit="local-llm-build",
        title=f"Build llama.cpp {release.commit[:12]}",
        identity=f"Build {release.id}",
        user=user,
        script=f"""
cd {scratch}
rm -rf build
cmake -S source -B build -G Ninja {shlex.join(release.flags)}
cmake --build build --parallel {jobs} --target {binaries}
build/bin/llama-server --version
""",
        progress="tail -n 1 /var/log/local-llm/local-llm-build.log",
        describe=describe_ninja,
        properties={
            "ReadWritePaths": scratch,
            "PrivateNetwork": "yes",
            "Environment": " ".join(f"'{name}={value}'" for name, value in environment.items()),
        },
    )


def describe_ninja(line: str) -> str | None:
    """`[97/214] Building …` in words: `45 %, 97 of 214 files`."""
    found = re.match(r"\[(\d+)/(\d+)\]", line)
    if not found:
        return None
    done, total = int(found[1]), int(found[2])
    return f"{100 * done // total} %, {done} of {total} files"


def _install(release: Release, root: str, scratch: str) -> str:
    # The building user owns the objects: links among them are refused, so that root copies nothing else.
    copies = "\n".join(
        f"[ -f {scratch}/build/bin/{name} ] && [ ! -L {scratch}/build/bin/{name} ]\n"
        f"install -D -m 0755 {scratch}/build/bin/{name} {root}/releases/{release.id}.partial/bin/{name}"
        for name in TARGETS
    )
    return f"""
rm -rf {root}/releases/{release.id}.partial
{copies}
printf '%s\\n' {shlex.quote(release.manifest())} > {root}/releases/{release.id}.partial/release.json
mv -T {root}/releases/{release.id}.partial {root}/releases/{release.id}
rm -rf {scratch}/source {scratch}/build
"""


@operation()
def pruned(root: str, current: str, keep: int) -> Generator[StringCommand, None, None]:
    """Ensure that at most `keep` releases are kept besides the current one, the newest of them.

    + root: where releases are installed
    + current: the release that is never removed
    + keep: how many others stay
    """
    others = [release for release in read(Releases, root=root).releases if release != current]
    surplus: Sequence[str] = others[keep:]
    if not surplus:
        host.noop(f"{len(others)} other releases, {keep} may stay")
    for release in surplus:
        yield StringCommand("rm", "-rf", shlex.quote(f"{root}/releases/{release}"))
