"""What Prometheus, the node exporter and the ways to them take of the host's memory, in minutes instead of hours.

Prometheus holds the last 2 to 3 hours in memory and then writes them to disk. A second one beside the deployed one,
with the same program, flags, limit and environment, asks the same targets once a second and writes every few minutes:
as many samples as in those hours, and several times what happens when they are written. Then it is killed, reads its
log again, and answers the dashboard's questions.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
import urllib.parse
from pathlib import Path

from benchmarks.common import print_report, progress, ratio
from benchmarks.machine import add_machine_option, deployed_machine
from checks.contract import paths
from sandbox.common import SandboxError, fail
from sandbox.host import SandboxHost

PROMETHEUS, NODE_EXPORTER = paths.PROMETHEUS_UNITS
TWIN = "benchmark-prometheus.service"
TWIN_PORT = 19090
TWIN_URL = f"http://127.0.0.1:{TWIN_PORT}{paths.PROMETHEUS_PATH}"
SCRATCH = "/var/tmp/benchmark-prometheus"  # noqa: S108 - on the machine that is measured, and removed again
BLOCK_MINUTES = 4
"""At 30 s a sample, Prometheus' 2 hours hold 240 samples of a series: as many as 4 minutes at 1 s."""
MINUTES = 10
DASHBOARD = Path(__file__).resolve().parent.parent / "docs" / "grafana-dashboard.json"
KINDS = {"VmHWM": "highest resident", "RssAnon": "not file, at the end"}


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = _parser().parse_args(argv)
    try:
        machine = deployed_machine(options.machine)
        if machine.exec("systemctl", "is-active", PROMETHEUS, check=False).strip() != "active":
            raise SandboxError(f"{PROMETHEUS} does not run on {machine.name}. Deploy with prometheus = True first.")
        try:
            rows = _measure(machine, options.minutes)
        finally:
            machine.exec("sh", "-c", f"systemctl stop {TWIN} 2>/dev/null; rm -rf {SCRATCH}", check=False)
    except SandboxError as error:
        return fail(error)
    columns = ("process", *(f"{kind}, MB" for kind in KINDS.values()), "limit, MB", "highest by limit")
    print_report("Memory of the Prometheus stack", columns, rows)
    return 0


def _measure(machine: SandboxHost, minutes: int) -> list[list[str]]:
    progress(f"{minutes} minutes of one sample a second on {machine.name}")
    _start(machine)
    time.sleep(minutes * 60)
    series = _ask(machine, "prometheus_tsdb_head_series")
    rows = [[f"Prometheus, {series} series, {minutes} min at 1 s", *_memory(machine, TWIN)]]
    progress(f"highest {rows[0][1]} MB; now killed and started again")
    machine.exec("systemctl", "kill", "--signal=KILL", TWIN)
    machine.exec("timeout", "30", "sh", "-c", f"while systemctl is-active -q {TWIN}; do sleep 0.2; done; sleep 1")
    _start(machine)
    rows.append(["after kill -9, its log read again", *_memory(machine, TWIN)])
    for expression in _dashboard():
        _ask(machine, expression)
    rows.append(["after every query of the dashboard", *_memory(machine, TWIN)])
    others = {"node exporter": NODE_EXPORTER, **{way: f"{way}.service" for way in paths.PROMETHEUS_WAYS}}
    rows += [[name, *_memory(machine, unit)] for name, unit in others.items()]
    return rows


def _start(machine: SandboxHost) -> None:
    """Start the twin: the deployed unit's command line with other ports, paths and times."""
    configuration = machine.exec("cat", "/etc/local-llm/prometheus.yml")
    configuration = re.sub(r"(scrape_interval|scrape_timeout|evaluation_interval): \d+s", r"\1: 1s", configuration)
    machine.exec("mkdir", "-p", SCRATCH)
    machine.exec("sh", "-c", f"cat > {SCRATCH}/prometheus.yml <<'END'\n{configuration}END\n")
    pid = machine.exec("systemctl", "show", PROMETHEUS, "-p", "MainPID", "--value").strip()
    command = machine.exec("cat", f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
    replaced = {
        "--config.file": f"{SCRATCH}/prometheus.yml",
        "--storage.tsdb.path": f"{SCRATCH}/data",
        "--web.listen-address": f"127.0.0.1:{TWIN_PORT}",
    }
    flags = [flag for flag in command if flag.partition("=")[0] not in replaced]
    flags += [f"{name}={value}" for name, value in replaced.items()]
    flags += [f"--storage.tsdb.{which}-block-duration={BLOCK_MINUTES}m" for which in ("min", "max")]
    shown = machine.exec("systemctl", "show", PROMETHEUS, "-p", "MemoryMax", "-p", "Environment")
    limit, environment = (re.search(rf"^{name}=(.*)$", shown, re.MULTILINE) for name in ("MemoryMax", "Environment"))
    assert limit
    assert environment
    variables = [f"--setenv={pair}" for pair in environment[1].split() if pair.startswith("GO")]
    limits = [f"--property=MemoryMax={limit[1]}", "--property=MemorySwapMax=0"]
    # In the network of the deployed one.
    join = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    machine.exec("systemd-run", "--quiet", "--collect", f"--unit={TWIN}", *limits, *variables, *join, *flags)
    ready = f"{shlex.join(join)} curl -fsS -o /dev/null {TWIN_URL}/-/ready 2>/dev/null"
    machine.exec("timeout", "90", "sh", "-c", f"until {ready}; do sleep 0.2; done; sleep 10")


def _memory(machine: SandboxHost, unit: str) -> list[str]:
    """The columns of a row after its name."""
    pid = machine.exec("systemctl", "show", unit, "-p", "MainPID", "--value").strip()
    status = machine.exec("cat", f"/proc/{pid}/status")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    used = [int(found[kind]) * 1024 / 1e6 for kind in KINDS]
    limit = int(machine.exec("systemctl", "show", unit, "-p", "MemoryMax", "--value")) / 1e6
    return [*(f"{value:.0f}" for value in (*used, limit)), ratio(used[0], limit)]


def _ask(machine: SandboxHost, expression: str) -> str:
    """The first value of the answer; `–` where there is none."""
    url = f"{TWIN_URL}/api/v1/query?query={urllib.parse.quote(expression)}"
    pid = machine.exec("systemctl", "show", TWIN, "-p", "MainPID", "--value").strip()
    answer = json.loads(machine.exec("nsenter", f"--net=/proc/{pid}/ns/net", "curl", "-sS", "-m", "60", url))
    result = answer["data"]["result"]
    return str(result[0]["value"][1]) if result else "–"


def _dashboard() -> list[str]:
    text = DASHBOARD.read_text().replace("$__rate_interval", "2m").replace("$__range", "1d")
    return [target["expr"] for panel in json.loads(text)["panels"] for target in panel.get("targets", [])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prometheus_memory", description=__doc__)
    add_machine_option(parser)
    parser.add_argument("--minutes", type=int, default=MINUTES, help="how long it collects (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
