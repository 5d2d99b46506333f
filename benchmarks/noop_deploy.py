"""Time of a whole deploy that changes nothing, and where it goes, against a pyinfra process that only connects.

Every run is a new process, `pyinfra -y INVENTORY deploy.py --json`; the peer gets an empty deploy file. They take
turns. The phases are read off pyinfra's own messages as they arrive.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import print_report, progress, ratio
from sandbox.common import REPOSITORY_ROOT, SandboxError, fail, last_lines
from sandbox.demo import MACHINE

RUNS = 5
STARTING = "interpreter and imports"
OPERATION = "--> Starting operation:"
MESSAGES = {
    "--> Loading config": "configuration",
    "--> Loading inventory": "inventory",
    "--> Connecting": "connect",
    "--> Preparing operation": "prepare: facts, settings, preflight table",
    "--> Beginning operation run": "begin",
    "--> Results": "results",
    "--> Disconnecting": "disconnect and exit",
}
CHECKS = "Verification | Verify the host"


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, and the seconds of each phase in order."""

    wall_seconds: float
    phases: dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Measure and print the tables."""
    options = _parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="local-llm-") as folder:
            empty = Path(folder) / "empty.py"
            empty.write_text('"""Nothing to do."""\n')
            deploys, connects = [], []
            for number in range(options.runs):
                deploys.append(run(options.inventory, REPOSITORY_ROOT / "deploy.py"))
                connects.append(run(options.inventory, empty))
                progress(
                    f"run {number + 1}: deploy {deploys[-1].wall_seconds:.2f} s, "
                    f"connect only {connects[-1].wall_seconds:.2f} s"
                )
    except SandboxError as error:
        return fail(error)
    deploy, connect = (statistics.median(each.wall_seconds for each in runs) for runs in (deploys, connects))
    print_report(
        "A deploy that changes nothing",
        ("process", "median, s", "fastest, s", "slowest, s", "ratio"),
        [
            [name, *_spread([each.wall_seconds for each in runs]), ratio(median, connect)]
            for name, runs, median in (
                ("`deploy.py`", deploys, deploy),
                ("connect only (an empty deploy file)", connects, connect),
            )
        ],
        f"{options.runs} runs each, in turns.",
    )
    print()
    checks = statistics.median(each.phases.get(CHECKS, 0.0) for each in deploys)
    print_report(
        "Where it goes",
        ("phase or operation", "deploy, s", "connect only, s", "share of the deploy, %"),
        _phase_rows(deploys, connects, deploy),
        f"Medians. The checks on the host take {100 * checks / deploy:.0f} % of the deploy.",
    )
    return 0


def run(inventory: Path, deploy: Path) -> Run:
    """One process. Raises SandboxError when it fails or its totals show a change."""
    argv = [sys.executable, "-m", "pyinfra", "-y", str(inventory), str(deploy), "--json"]
    begin = time.monotonic()
    marks = [(begin, STARTING)]
    messages = []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            argv, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            messages.append(line)
            if phase := phase_of(line):
                marks.append((time.monotonic(), phase))
        process.wait()
        end = time.monotonic()
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SandboxError(f"`{' '.join(argv[1:])}` failed: {last_lines(''.join(messages))}")
    require_no_change(text)
    return Run(end - begin, durations(marks, end))


def phase_of(line: str) -> str | None:
    """The phase or operation that a message of pyinfra's begins."""
    if line.startswith(OPERATION):
        return line.removeprefix(OPERATION).strip()
    return next((phase for message, phase in MESSAGES.items() if line.startswith(message)), None)


def durations(marks: Sequence[tuple[float, str]], end: float) -> dict[str, float]:
    """Seconds from each mark to the next; those of the same name are added up."""
    found: dict[str, float] = {}
    following = [moment for moment, _ in marks[1:]] + [end]
    for (begin, phase), finish in zip(marks, following, strict=True):
        found[phase] = found.get(phase, 0.0) + finish - begin
    return found


def require_no_change(output: str) -> None:
    """Raise SandboxError unless pyinfra's JSON says that nothing was changed and nothing failed."""
    try:
        totals = json.loads(output)["results"]["totals"]
    except (ValueError, KeyError, TypeError):
        raise SandboxError(f"pyinfra's output has no totals: {last_lines(output)[:200]}") from None
    # pyinfra counts an operation that changed something as "success", any other as "no_change".
    if totals["success"] or totals["error"]:
        raise SandboxError(f"The host was not as deployed; deploy to it first, then measure. Totals: {totals}")


def _spread(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in (statistics.median(values), min(values), max(values))]


def _phase_rows(deploys: Sequence[Run], connects: Sequence[Run], total: float) -> list[list[str]]:
    rows = []
    for phase in deploys[0].phases:
        seconds = statistics.median(each.phases.get(phase, 0.0) for each in deploys)
        peer = [each.phases[phase] for each in connects if phase in each.phases]
        rows.append(
            [
                phase.replace("|", "\\|"),
                f"{seconds:.2f}",
                f"{statistics.median(peer):.2f}" if peer else "–",
                f"{100 * seconds / total:.0f}",
            ]
        )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noop_deploy", description=__doc__)
    parser.add_argument(
        "--inventory",
        type=Path,
        metavar="FILE",
        default=REPOSITORY_ROOT / "sandbox" / "inventory.py",
        help=f"pyinfra inventory of a deployed host (default: sandbox/inventory.py, the demo's {MACHINE})",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
