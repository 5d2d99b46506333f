"""The report of a deployed machine, and the page of all hosts as a browser shows it."""

from __future__ import annotations

import base64
import html
import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from checks.samples import Histogram, Sample, Store
from reporting import example
from sandbox.common import SandboxError
from sandbox.engine import install_packages, is_root_on_debian
from tests.container.machine import Machine

pytestmark = pytest.mark.distribution(-1)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_SECONDS = 120
SMALLEST_LETTERS_PIXELS = 10

# Run beside the page, which lies in a frame of the wanted width: the page itself may run nothing.
MEASURE = """
function measure() {
  const page = document.querySelector("iframe").contentDocument;
  const view = page.defaultView;
  const shown = element => element.getClientRects().length > 0;
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const inScroll = element => element.closest(".scroll") !== null;
  const channels = text => {
    const found = text.match(/[0-9.]+/g).map(Number);
    return found.length > 3 && found[3] === 0 ? null : found.slice(0, 3);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(view.getComputedStyle(at).backgroundColor);
      if (colour) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const name = element => `${element.tagName} "${element.textContent.trim().slice(0, 40)}"`;
  const texts = [...page.body.querySelectorAll("*")].filter(element => shown(element) && own(element)
    && !["STYLE", "title", "desc"].includes(element.tagName));
  const letters = element => {
    const picture = element.closest("svg");
    const scale = picture ? picture.getBoundingClientRect().width / picture.viewBox.baseVal.width : 1;
    return parseFloat(view.getComputedStyle(element).fontSize) * scale;
  };
  const ink = element => {
    const style = view.getComputedStyle(element);
    return channels(element.closest("svg") ? style.fill : style.color);
  };
  const width = page.documentElement.clientWidth;
  const pictures = [...page.querySelectorAll("svg")].filter(shown);
  return {
    width: width,
    page_width: page.documentElement.scrollWidth,
    background: luminance(background(page.body)),
    pictures: pictures.map(picture => picture.getBoundingClientRect()).map(box => [box.width, box.height]),
    small: texts.filter(element => letters(element) < SMALLEST).map(name),
    pale: texts.filter(element => contrast(ink(element), background(element)) < 4.5).map(name),
    outside: texts.filter(element => !inScroll(element)).filter(element => {
      const box = element.getBoundingClientRect();
      return box.left < -1 || box.right > width + 1;
    }).map(name),
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
    text: page.body.innerText,
  };
}
onload = () => {
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(measure()))));
  document.body.append(result);
};
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium; installed where apt may be used, as the engine is."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and is_root_on_debian():
        install_packages(["chromium", "fonts-dejavu-core"])
        found = shutil.which("chromium")
    if found is None:
        raise SandboxError(f"No browser is here to look at the page. Install one of: {', '.join(BROWSERS)}.")
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return example.page()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_readable(browser: str, page: str, tmp_path: Path, width: int, scheme: str) -> None:
    found = seen(browser, page, tmp_path, width, scheme)
    assert found["width"] == width
    assert found["page_width"] == width, "the page is to be scrolled down only"
    assert (found["background"] > 0.8) if scheme == "light" else (found["background"] < 0.05)
    assert len(found["pictures"]) == 2 * 4
    least = 300 if width == 390 else 500
    assert all(picture[0] >= least and picture[1] >= 120 for picture in found["pictures"])
    assert found["small"] == []
    assert found["pale"] == []
    assert found["outside"] == []
    assert found["fetched"] == []
    for text in (
        "vps1.example.net",
        "it could not be reached",
        "Response time of the local model",
        "Requests by backend",
        "unknown",
    ):
        assert text in found["text"]


def seen(browser: str, page: str, folder: Path, width: int, scheme: str) -> dict[str, Any]:
    """What a browser shows of the page at a width; fails where the page asks for something that its policy forbids."""
    around = folder / "around.html"
    around.write_text(
        "<!doctype html><meta charset='utf-8'><body style='margin:0'>"
        f"<iframe style='border:0;width:{width}px;height:900px' srcdoc=\"{html.escape(page)}\"></iframe>"
        f"<script>{MEASURE.replace('SMALLEST', str(SMALLEST_LETTERS_PIXELS))}</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            around.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    _, mark, rest = done.stdout.partition('<pre id="result">')
    assert mark, done.stderr
    measured: dict[str, Any] = json.loads(base64.b64decode(rest.partition("<")[0]))
    return measured


def test_a_week_of_samples_on_the_host(deployed: Machine, tmp_path: Path) -> None:
    """90 days are stored: each check brought ten tokens and an answer of 2 s, and every tenth found the API down."""
    filled(tmp_path / "samples.db", int(deployed.sh("date +%s")))
    configuration = json.loads(deployed.sh("cat /etc/local-llm/checks.json")) | {"health_interval_minutes": 5}
    (tmp_path / "checks.json").write_text(json.dumps(configuration))
    subprocess.run(["docker", "cp", "-q", f"{tmp_path}/.", f"{deployed.host.container_id}:/root/week"], check=True)
    said = deployed.sh(
        # A store of its own, in a mount namespace of its own: the machine's stays as it is.
        "unshare -m sh -c 'mount --bind /root/week /var/lib/local-llm && "
        "local-llm report --json --config /root/week/checks.json'; rm -r /root/week",
        check=False,
    )
    report = json.loads(said)
    window, whole = report["history"]["window"], report["history"]["whole"]
    assert (window["until"] - window["since"], whole["expected"]) == (7 * 86_400, 2016)
    # The samples end where they were made, maybe a check before the report.
    assert whole["known"] in (2015, 2016)
    known = range(window["since"], window["since"] + whole["known"] * 300, 300)
    assert whole["known"] - whole["up"] == sum(time // 300 % 10 == 0 for time in known)
    totals = report["history"]["totals"]
    assert totals["tokens_out"] == 10 * whole["known"]
    assert totals["responses"]["local"]["count"] == whole["known"]
    assert totals["responses"]["local"]["mean"] == 2.0
    assert {goal["name"]: goal["verdict"] for goal in report["goals"]} == {
        "utility-local": "PASS",
        "response-time": "PASS",
        "oom-kills": "PASS",
        "uptime": "FAIL",
        "memory": "PASS",
    }


def filled(path: Path, now: int) -> Path:
    """A store with 90 days of samples, one at the beginning of every 5 minutes, the last one not after now."""
    Store.open(path).close()
    last = now // 300
    with closing(sqlite3.connect(path)) as database, database:
        for number, slot in enumerate(range(last - 90 * 288 + 1, last + 1)):
            sample = Sample(
                time=slot * 300,
                window_seconds=300.0,
                boot_id="b",
                uptime_seconds=1000.0 + number * 300,
                api="refused" if slot % 10 == 0 else "ok",
                probe="none",
                rss_bytes=100 * 1024 * 1024,
                oom_kills=0,
                tokens_out=10 * number,
                requests={"local/utility-task/2xx": 1},
                responses={"local": Histogram.of([2.0])},
            )
            database.execute(
                "INSERT INTO samples (kind, time, data) VALUES (?, ?, ?)",
                (sample.kind, sample.time, json.dumps(sample.as_json())),
            )
    return path


def test_one_command_collects_every_host(deployed: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.sh("local-llm health --log", check=False)
    inventory = deployed.inventory()
    silent = "hosts.append(('silent', {'ssh_hostname': '127.0.0.1', 'ssh_port': 9}))\n"
    monkeypatch.setattr(Machine, "inventory", lambda _machine: inventory + silent)
    file = tmp_path / "report.html"
    run = deployed.deploy("report.py", "--data", f"report_file={file}", "--data", "report_days=1")
    shown = file.read_text()
    assert "silent" in shown
    assert "it could not be reached" in shown
    said = json.loads(deployed.sh("local-llm report --json --days 1", check=False))
    assert f"on {said['host']}, " in shown
    assert said["history"]["whole"]["known"] > 0
    for goal in said["goals"]:
        assert goal["title"] in shown
    assert f"{file}: 2 hosts" in run.output
    assert run.changed == 0


def test_a_host_without_a_report_fails_and_is_named(deployed: Machine, tmp_path: Path) -> None:
    deployed.sh("mv /usr/local/bin/local-llm /usr/local/bin/local-llm.away")
    try:
        run = deployed.deploy("report.py", "--data", f"report_file={tmp_path / 'report.html'}")
    finally:
        deployed.sh("mv /usr/local/bin/local-llm.away /usr/local/bin/local-llm")
    assert run.status == 1
    assert "No report: Nothing is deployed here." in run.output
    assert "Nothing is deployed here." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ("report_days=0", "a whole number from 1 to 366"),
        ("report_days=week", "a whole number from 1 to 366"),
        ("report_file=/nowhere/report.html", "a file in a folder that exists"),
    ],
)
def test_wrong_options_are_refused(deployed: Machine, wrong: str, allowed: str) -> None:
    run = deployed.deploy("report.py", "--data", wrong)
    assert run.status == 1
    assert f"allowed: {allowed}" in run.output
