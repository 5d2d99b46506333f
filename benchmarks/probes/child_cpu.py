"""CPU and wall seconds of whole processes, in turns.

Arguments: runs, a JSON object of name to argv. Output: {name: {"user": [...], "system": [...], "wall": [...]}}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def measure(argv: list[str]) -> tuple[float, float, float]:
    begin = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(argv)} ended with exit code {process.returncode}")
    return usage.ru_utime, usage.ru_stime, wall


def main(runs: str, commands: str) -> None:
    argvs: dict[str, list[str]] = json.loads(commands)
    for argv in argvs.values():
        measure(argv)
    taken: dict[str, dict[str, list[float]]] = {name: {"user": [], "system": [], "wall": []} for name in argvs}
    for _ in range(int(runs)):
        for name, argv in argvs.items():
            for kind, value in zip(("user", "system", "wall"), measure(argv), strict=True):
                taken[name][kind].append(value)
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
