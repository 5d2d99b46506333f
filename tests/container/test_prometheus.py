"""Prometheus beside the model: on loopback, bounded, with rules and a dashboard that work, and gone again when off."""

from __future__ import annotations

import json
import re
import shlex
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import paths
from tests import reach
from tests.container.conftest import with_settings
from tests.container.machine import ROOT, Machine, eventually

RULE_TESTS = Path(__file__).with_name("alert_rules.test.yml")
DASHBOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
WEBHOOK_PORT = 9999
SETTINGS: dict[str, object] = {
    "prometheus": True,
    "prometheus_scrape_seconds": 5,
    "alert_webhook_url": f"http://127.0.0.1:{WEBHOOK_PORT}/hook?token=secret",
}
# What Grafana would put in for a dashboard of the last 10 minutes.
GRAFANA_VARIABLES = {"$__rate_interval": "2m", "$__range": "10m"}
RECEIVER = f"""
import http.server
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/tmp/hook", "ab") as log:
            log.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\\n")
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", {WEBHOOK_PORT}), Hook).serve_forever()
"""


@pytest.fixture(scope="module")
def watched(deployed: Machine) -> Iterator[Machine]:
    """The machine with Prometheus on."""
    before = installed_packages(deployed)
    machine = with_settings(deployed, **SETTINGS)
    try:
        run = machine.deploy()
        assert run.succeeded, run.output
        assert "FAIL" not in run.output
        yield machine
    finally:
        assert deployed.deploy().succeeded
    assert installed_packages(deployed) == before


@pytest.mark.parametrize("unit", paths.PROMETHEUS_UNITS)
def test_what_watches_reaches_no_socket_and_shares_nothing(watched: Machine, unit: str) -> None:
    with reach.planted(watched, "/run/test.sock", "/dev/shm/test.sock", "/var/lib/test.sock", "@test"):
        assert reach.of_unit(watched, unit) == reach.Reach(frozenset(), frozenset())


def installed_packages(machine: Machine) -> set[str]:
    return set(machine.sh("dpkg-query -W -f='${Package} ${db:Status-Status}\\n'").splitlines())


def query(machine: Machine, *expressions: str) -> list[list[dict[str, Any]]]:
    """The samples that Prometheus answers to each, without those that are no number."""
    urls = [f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(each)}" for each in expressions]
    lines = machine.sh(f"curl -sS -m 60 -w '\\n' {shlex.join(urls)}").splitlines()
    found = []
    for expression, line in zip(expressions, lines, strict=True):
        answer = json.loads(line)
        assert answer["status"] == "success", f"{expression}: {answer}"
        found.append([sample for sample in answer["data"]["result"] if sample["value"][1] != "NaN"])
    return found


def value(machine: Machine, expression: str) -> float:
    [[sample]] = query(machine, expression)
    return float(sample["value"][1])


@pytest.mark.distribution(0)
def test_a_prometheus_of_the_users_own_is_left_alone(deployed: Machine) -> None:
    deployed.sh("systemd-run --quiet --unit=prometheus.service sleep 600")
    try:
        run = with_settings(deployed, **SETTINGS).deploy()
        assert run.status == 1
        assert "prometheus: prometheus.service; needed: no Prometheus of your own" in run.output
        assert "Nothing was changed on this host." in run.output
        assert deployed.show("prometheus.service", "ActiveState") == "active"
    finally:
        deployed.sh("systemctl stop prometheus.service")


@pytest.mark.distribution(0)
def test_a_port_that_is_taken_is_named(deployed: Machine) -> None:
    deployed.sh("systemd-run --quiet --unit=taken python3 -m http.server --bind 127.0.0.1 9093; sleep 1")
    try:
        run = with_settings(deployed, **SETTINGS).deploy()
        assert run.status == 1
        assert "set alertmanager_port to another port" in run.output
    finally:
        deployed.sh("systemctl stop taken")


def test_it_runs_and_the_packages_own_services_never_did(watched: Machine) -> None:
    for unit in paths.PROMETHEUS_UNITS:
        assert watched.show(unit, "ActiveState") == "active"
    for unit in paths.PROMETHEUS_DISTRIBUTION_UNITS:
        assert watched.show(unit, "UnitFileState") == "masked"
        assert watched.show(unit, "ActiveEnterTimestamp") == ""
    lines = [line.split()[3] for line in watched.sh("ss -Hltn").splitlines()]
    assert {"127.0.0.1:9090", "127.0.0.1:9093", "127.0.0.1:9100"} <= set(lines)
    open_to_all = {line for line in lines if not re.match(r"(127\.|\[::1\])", line)}
    assert {address.rsplit(":", 1)[1] for address in open_to_all} == {"22"}
    assert "deny 9090/tcp" in watched.sh("ufw show added")


def test_a_second_run_changes_nothing(watched: Machine) -> None:
    run = watched.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def test_it_is_bounded_and_never_comes_before_the_model(watched: Machine) -> None:
    limits = [int(watched.show(unit, "MemoryMax")) for unit in paths.PROMETHEUS_UNITS]
    assert sum(limits) == int(watched.show("localllmprometheus.slice", "MemoryMax"))
    for unit in paths.PROMETHEUS_UNITS:
        assert watched.show(unit, "Slice") == "localllmprometheus.slice"
        assert watched.show(unit, "MemorySwapMax") == "0"
        assert watched.sh(f"cat /proc/{watched.main_pid(unit)}/oom_score_adj") == "800"
        assert watched.sh(f"ps -o user= -p {watched.main_pid(unit)}") != "root"
        rating = watched.sh(f"systemd-analyze security {unit} | tail -n 1")
        assert float(re.findall(r": (\S+) ", rating)[0]) <= 1.5
    own, model = (int(watched.show(f"{name}.slice", "CPUWeight")) for name in ("localllmprometheus", "localllm"))
    assert own * 10 < model


def test_a_web_page_cannot_read_it(watched: Machine) -> None:
    for origin, allowed in (("http://127.0.0.1:9090", True), ("http://127x0.0.1:9090", False), ("https://a.b", False)):
        head = watched.sh(f"curl -sSi -H 'Origin: {origin}' 'http://127.0.0.1:9090/api/v1/query?query=up'")
        assert ("Access-Control-Allow-Origin" in head) == allowed


def test_the_webhooks_address_stays_secret(watched: Machine) -> None:
    assert watched.sh("stat -c '%a %U' /etc/local-llm/secrets/alertmanager.yml") == "600 root"
    for unit in paths.PROMETHEUS_UNITS:
        assert "secret" not in watched.sh(f"tr '\\0' ' ' < /proc/{watched.main_pid(unit)}/cmdline")
    assert watched.sh("runuser -u nobody -- cat /run/local-llm-alertmanager/alertmanager.yml 2>&1; true").endswith(
        "Permission denied"
    )


def test_the_tools_own_judges_accept_the_files(watched: Machine) -> None:
    assert "SUCCESS" in watched.sh("promtool check config /etc/local-llm/prometheus.yml")
    assert "SUCCESS" in watched.sh("promtool check rules /etc/local-llm/prometheus-rules.yml")
    assert "SUCCESS" in watched.sh("amtool check-config /etc/local-llm/secrets/alertmanager.yml")


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(deployed: Machine, watched: Machine) -> None:
    # The cases are written for the default settings.
    from settings import Settings
    from tasks.prometheus import rules_file

    rules = rules_file(Settings(prometheus=True)).content
    for name, content in (("rules.yml", rules), ("test.yml", RULE_TESTS.read_text())):
        watched.sh(f"mkdir -p /tmp/rules && cat > /tmp/rules/{name} <<'END_OF_FILE'\n{content}END_OF_FILE\n")
    assert "SUCCESS" in watched.sh("cd /tmp/rules && promtool test rules test.yml 2>&1; rm -r /tmp/rules")


def test_all_that_it_asks_answers(watched: Machine) -> None:
    jobs = {"gateway", "requests", "llama-server", "node", "prometheus", "alertmanager"}
    eventually(lambda: {s["metric"]["job"] for s in query(watched, "up == 1")[0]} == jobs, 60, "every job is up")
    # A kernel may be without pressure stall information.
    assert query(watched, 'node_scrape_collector_success{collector!="pressure"} == 0') == [[]]


def test_every_query_of_the_dashboard_has_data(watched: Machine) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 30
    for name, value in GRAFANA_VARIABLES.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    assert not [expression for expression in expressions if "$" in expression]

    def empty() -> list[str]:
        assert watched.answers()
        watched.sh("local-llm health --log; true")
        answers = query(watched, *expressions)
        return [expression for expression, samples in zip(expressions, answers, strict=True) if not samples]

    try:
        eventually(lambda: not empty(), 180, "data for every query")
    except AssertionError:
        assert empty() == []  # which ones


@pytest.mark.distribution(0)
def test_what_the_host_cannot_tell_reaches_the_webhook_and_nothing_else(watched: Machine) -> None:
    watched.sh(f"cat > /tmp/hook.py <<'END_OF_FILE'\n{RECEIVER}END_OF_FILE\n")
    watched.sh("systemd-run --quiet --unit=hook python3 /tmp/hook.py")
    watched.sh("systemctl stop local-llm local-llm-node-exporter")

    def sent() -> list[dict[str, Any]]:
        posts = map(json.loads, watched.sh("cat /tmp/hook 2>/dev/null; true").splitlines())
        # The host's own messages have no such list.
        return [alert for post in posts for alert in post.get("alerts", [])]

    try:
        eventually(lambda: bool(sent()), 300, "an alert of Prometheus")
        alerts = sent()
        assert {alert["labels"]["alertname"] for alert in alerts} == {"LocalLlmTargetDown"}
        [alert] = [alert for alert in alerts if alert["labels"]["job"] == "node"]
        assert alert["status"] == "firing"
        assert alert["labels"]["host"] == watched.host.image
        assert alert["annotations"]["summary"] == "Nothing answers at 127.0.0.1:9100 (node)."
        held = json.loads(watched.sh("curl -sSf http://127.0.0.1:9093/api/v2/alerts"))
        [down] = [alert for alert in held if alert["labels"]["alertname"] == "LocalLlmApiDown"]
        assert down["receivers"] == [{"name": "none"}]
        assert all(query(watched, *[each["expr"] for each in DASHBOARD["annotations"]["list"]]))
    finally:
        watched.sh("systemctl start local-llm local-llm-node-exporter; systemctl stop hook; rm -f /tmp/hook*")
    eventually(watched.answers, 60, "an answer")


@pytest.mark.distribution(0)
def test_killed_it_comes_back_with_what_it_knew(watched: Machine) -> None:
    known = value(watched, "max_over_time(count(up)[1h:5s])")
    for unit in paths.PROMETHEUS_UNITS:
        watched.sh(f"kill -9 {watched.main_pid(unit)}")
    eventually(lambda: all(watched.main_pid(unit) for unit in paths.PROMETHEUS_UNITS), 60, "new processes")
    eventually(lambda: bool(watched.sh("curl -sSf http://127.0.0.1:9090/-/ready || true")), 60, "it is ready")
    assert value(watched, "max_over_time(count(up)[1h:5s])") == known


def test_off_again_nothing_of_it_is_left_but_what_a_user_wants(deployed: Machine, watched: Machine) -> None:
    watched.sh("apt-mark manual libjs-jquery")
    try:
        run = deployed.deploy()
        assert run.succeeded, run.output
        left = installed_packages(deployed)
        assert "libjs-jquery installed" in left
        assert not [name for name in left if name.startswith(("prometheus", "promtool", "libjs-d3"))]
        for unit in (*paths.PROMETHEUS_UNITS, *paths.PROMETHEUS_DISTRIBUTION_UNITS, "localllmprometheus.slice"):
            assert deployed.show(unit, "FragmentPath") == ""
        found = deployed.sh(
            "find /etc /var/lib /run -xdev "
            r"\( -name '*prometheus*' -o -name '*alertmanager*' -o -name '*node-exporter*' \) "
            "-not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*'"
        )
        assert found == ""
        assert "9090" not in deployed.sh("ufw show added; ss -Hltn")
        assert deployed.deploy().changed == 0
    finally:
        deployed.sh("apt-get -qq -y purge libjs-jquery javascript-common || true")
