"""Time to build llama-server as the deploy does, against llama.cpp's documented build of the same source.

Both from the pinned commit, one after the other, each in a fresh folder, without a compiler cache and without network
(the documented build would fetch its web interface; this project's never fetches anything).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import print_report, progress, ratio
from operations.llama_cpp import TARGETS, Release
from sandbox.common import SandboxError, cache_dir, fail, last_lines, run
from sandbox.source import llama_cpp_repository

JOBS = 2
REPORT_SECONDS = 30
LAUNCHERS = ("-DCMAKE_C_COMPILER_LAUNCHER=", "-DCMAKE_CXX_COMPILER_LAUNCHER=")
OURS = "this project's build"
DEFAULT = "`cmake -B build && cmake --build build -j2`"


@dataclass(frozen=True)
class Cost:
    """What one build took. `largest_process_bytes` is the peak of its largest compiler process."""

    wall_seconds: float
    cpu_seconds: float
    largest_process_bytes: int


def main(argv: list[str] | None = None) -> int:
    """Build both, print the table."""
    options = _parser().parse_args(argv)
    builds = {OURS: our_commands(), DEFAULT: default_commands()}
    if options.configure_only:
        builds = {name: commands[:1] for name, commands in builds.items()}
    try:
        isolation = network_isolation()
        for tool in ("cmake", "ninja", "make", "g++", "git"):
            if shutil.which(tool) is None:
                raise SandboxError(f"{tool} is not installed. Install it and run this again.")
        repository, commit = llama_cpp_repository(cache_dir())
        costs = {
            name: build(name, commands, repository, commit, isolation, options.scratch)
            for name, commands in builds.items()
        }
    except SandboxError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    default = costs[DEFAULT]
    print_report(
        "Configuring llama.cpp" if options.configure_only else "Building llama.cpp",
        ("build", "wall, s", "ratio", "CPU, s", "ratio", "largest process, MB"),
        [
            [
                name,
                f"{cost.wall_seconds:.0f}",
                ratio(cost.wall_seconds, default.wall_seconds),
                f"{cost.cpu_seconds:.0f}",
                ratio(cost.cpu_seconds, default.cpu_seconds),
                f"{cost.largest_process_bytes / 1e6:.0f}",
            ]
            for name, cost in costs.items()
        ],
        f"Commit {commit[:12]}, {JOBS} jobs each, {_compiler()}. This project builds {' and '.join(TARGETS)} only.",
    )
    return 0


def our_commands() -> list[list[str]]:
    """The deploy's configuration without its compiler cache."""
    flags = Release(repository="", commit="", native=True, cpu="").flags
    kept = [flag for flag in flags if not flag.startswith(LAUNCHERS)]
    return [
        ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", *kept],
        ["cmake", "--build", "build", "--parallel", str(JOBS), "--target", *TARGETS],
    ]


def default_commands() -> list[list[str]]:
    """What llama.cpp's docs/build.md says."""
    return [["cmake", "-B", "build"], ["cmake", "--build", "build", f"-j{JOBS}"]]


def network_isolation() -> list[str]:
    """The command that runs another one without network. Raises SandboxError where the kernel forbids it."""
    for command in (["unshare", "--net", "--"], ["unshare", "--user", "--map-current-user", "--net", "--"]):
        if run([*command, "true"], check=False).returncode == 0:
            return command
    raise SandboxError("`unshare --net` is not allowed here. Run this as root.")


def build(
    name: str, commands: Sequence[Sequence[str]], repository: Path, commit: str, isolation: Sequence[str], scratch: Path
) -> Cost:
    """Clone into a fresh folder, run the commands there and add up what they took."""
    with tempfile.TemporaryDirectory(prefix="local-llm-build-", dir=scratch) as folder:
        source = Path(folder) / "source"
        git = ["git", "-C", str(source)]
        run(["git", "init", "--quiet", str(source)])
        run([*git, "fetch", "--quiet", "--depth", "1", "--no-tags", repository.as_uri(), commit])
        run([*git, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", "FETCH_HEAD"])
        log = Path(folder) / "build.log"
        costs = [_timed(name, [*isolation, *command], source, log) for command in commands]
    return Cost(
        sum(cost.wall_seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
        max(cost.largest_process_bytes for cost in costs),
    )


def _timed(name: str, command: Sequence[str], folder: Path, log: Path) -> Cost:
    progress(f"{name}: {shlex.join(command)}")
    begin = reported = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"CCACHE_DISABLE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, so that an interruption ends the compilers as well.
            start_new_session=True,
        )
    try:
        while True:
            # wait4 counts the process and all of its descendants that were waited for.
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.monotonic()
            if found:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if now - reported >= REPORT_SECONDS:
                progress(f"  {now - begin:.0f} s: {last_lines(log.read_text(errors='replace'), 1)[:100]}")
                reported = now
            time.sleep(0.1)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if process.returncode != 0:
        raise SandboxError(f"`{shlex.join(command)}` failed: {last_lines(log.read_text(errors='replace'))}")
    return Cost(now - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _compiler() -> str:
    return run(["g++", "--version"]).stdout.splitlines()[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build", description=__doc__)
    parser.add_argument("--configure-only", action="store_true", help="time the two configurations, compile nothing")
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="where to build; 3 GB (default: the system's temporary folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
