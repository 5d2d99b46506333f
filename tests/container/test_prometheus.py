"""Prometheus beside the model: behind the gateway, bounded, with rules and a dashboard that work, gone when off."""

from __future__ import annotations

import json
import re
import shlex
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.contract import paths
from tests import reach
from tests.container.conftest import with_settings
from tests.container.machine import ROOT, Machine, eventually

RULE_TESTS = Path(__file__).with_name("alert_rules.test.yml")
DASHBOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
WEBHOOK_PORT = 9999
SECRET = "S3CR3T"
PROMETHEUS = "http://127.0.0.1:8766/prometheus"
SETTINGS: dict[str, object] = {
    "prometheus": True,
    "prometheus_scrape_seconds": 5,
    "alert_webhook_url": f"http://127.0.0.1:{WEBHOOK_PORT}/hook?token={SECRET}",
}
PAGES = [
    "",
    "classic/graph",
    "classic/alerts",
    "-/ready",
    "classic/static/css/graph.css",
    "static/x",
    "api/v1/alerts",
    "api/v1/status/config",
    "api/v1/label/job/values",
]
QUERIES = ["api/v1/query", "api/v1/series"]
CLOSED = [
    *(
        "debug/pprof/",
        "debug/pprof/cmdline",
        "-/quit",
        "-/reload",
        "api/v1/admin/tsdb/snapshot",
        "api/v1/write",
        "metrics",
    ),
    *(
        "api/v1/read",
        "federate",
        "..",
        "static/../debug/pprof/",
        "static/%2e%2e/debug/pprof/",
        "%64ebug/pprof/",
        "/debug",
    ),
    *("api/v1/label/..%2f..%2f..%2fdebug", "api/v2/silences", "Graph"),
]
CRAWLER = """
import http.client, itertools, json, sys
cases = json.load(sys.stdin)
for host, origin, method, path in itertools.product(*cases):
    connection = http.client.HTTPConnection("127.0.0.1", 8766, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": host, "Origin": origin, "Content-Length": "0" if method == "POST" else None}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode(errors="replace")
    cors = [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]
    print(json.dumps([host, origin, method, path, answer.status, cors, sys.argv[1] in body]))
"""
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
    leave_an_alertmanager(deployed, before)
    machine = with_settings(deployed, **SETTINGS)
    try:
        run = machine.deploy()
        assert run.succeeded, run.output
        assert "FAIL" not in run.output
        yield machine
    finally:
        assert deployed.deploy().succeeded
    assert installed_packages(deployed) == before


def installed_packages(machine: Machine) -> set[str]:
    return set(machine.sh("dpkg-query -W -f='${Package} ${db:Status-Status}\\n'").splitlines())


def leave_an_alertmanager(machine: Machine, before: set[str]) -> None:
    """What a host has of a deploy that ran one."""
    unit, package = "local-llm-alertmanager.service", "prometheus-alertmanager"
    machine.sh(
        f"systemctl mask {package}; apt-get -qq update; apt-get -qq -y install --no-install-recommends {package}"
    )
    record = {line.split()[0] for line in installed_packages(machine) - before}
    machine.sh(f"printf '%s\\n' {' '.join(sorted(record))} > /var/lib/local-llm/prometheus-packages")
    machine.sh(f"printf '[Service]\\nExecStart=/bin/sleep inf\\n' > /etc/systemd/system/{unit}; systemctl start {unit}")
    machine.sh("install -d -m 0700 /etc/local-llm/secrets; touch /etc/local-llm/secrets/alertmanager.yml")


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


def test_an_alertmanager_of_an_earlier_deploy_is_gone(watched: Machine) -> None:
    assert "prometheus-alertmanager" not in " ".join(installed_packages(watched))
    assert watched.show("local-llm-alertmanager.service", "FragmentPath") == ""
    assert watched.show("prometheus-alertmanager.service", "UnitFileState") == ""
    record = watched.sh("cat /var/lib/local-llm/prometheus-packages").split()
    assert "prometheus" in record
    assert "prometheus-alertmanager" not in record
    assert watched.sh("ls /etc/local-llm/secrets").split() == ["webhook"]


def query(machine: Machine, *expressions: str) -> list[list[dict[str, Any]]]:
    """The samples that Prometheus answers to each, without those that are no number."""
    urls = [f"{PROMETHEUS}/api/v1/query?query={urllib.parse.quote(each)}" for each in expressions]
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


def test_it_runs_and_the_packages_own_services_never_did(watched: Machine) -> None:
    for unit in paths.PROMETHEUS_UNITS:
        assert watched.show(unit, "ActiveState") == "active"
    for unit in paths.PROMETHEUS_DISTRIBUTION_UNITS:
        assert watched.show(unit, "UnitFileState") == "masked"
        assert watched.show(unit, "ActiveEnterTimestamp") == ""
    lines = [line.split()[3] for line in watched.sh("ss -Hltn").splitlines()]
    assert not [line for line in lines if line.endswith((":9090", ":9093", ":9100"))]
    open_to_all = {line for line in lines if not re.match(r"(127\.|\[::1\])", line)}
    assert {address.rsplit(":", 1)[1] for address in open_to_all} == {"22"}
    assert "9090" not in watched.sh("ufw show added")


def test_a_second_run_changes_nothing(watched: Machine) -> None:
    run = watched.deploy()
    assert run.succeeded, run.output
    assert run.changed == 0


def test_it_is_bounded_and_never_comes_before_the_model(watched: Machine) -> None:
    units = (*paths.PROMETHEUS_UNITS, *(f"{way}.service" for way in paths.PROMETHEUS_WAYS))
    limits = [int(watched.show(unit, "MemoryMax")) for unit in units]
    assert sum(limits) == int(watched.show("localllmprometheus.slice", "MemoryMax"))
    for unit in units:
        assert watched.show(unit, "Slice") == "localllmprometheus.slice"
        assert watched.show(unit, "MemorySwapMax") == "0"
        assert watched.sh(f"cat /proc/{watched.main_pid(unit)}/oom_score_adj") == "800"
        assert watched.sh(f"ps -o user= -p {watched.main_pid(unit)}") != "root"
        rating = watched.sh(f"systemd-analyze security {unit} | tail -n 1")
        assert float(re.findall(r": (\S+) ", rating)[0]) <= 1.5
    own, model = (int(watched.show(f"{name}.slice", "CPUWeight")) for name in ("localllmprometheus", "localllm"))
    assert own * 10 < model


@pytest.mark.parametrize("unit", [*paths.PROMETHEUS_UNITS, *(f"{way}.service" for way in paths.PROMETHEUS_WAYS)])
def test_what_watches_reaches_no_socket_and_shares_nothing(watched: Machine, unit: str) -> None:
    with reach.planted(watched, "/run/test.sock", "/dev/shm/test.sock", "/var/lib/test.sock", "@test"):
        found = reach.of_unit(watched, unit)
    assert found.sockets == found.shared == frozenset()
    assert found.secrets_but("/var/lib/private") == []


def test_what_tells_of_it_reaches_what_it_needs(watched: Machine) -> None:
    paths_of_root = (paths.CONFIGURATION, paths.STATE, paths.ROOT_RUNTIME, paths.ALERT_RUNTIME)
    with reach.planted(watched, "/run/test.sock", "/dev/shm/test.sock", "/var/lib/test.sock"):
        found = reach.of_unit(watched, f"{paths.ALERT_RELAY}.service")
    assert {name for name in found.sockets if name.startswith("/")} == {
        paths.PROMETHEUS_SOCKET,
        paths.GATEWAY_ADMIN_SOCKET,
        paths.GATEWAY_API_SOCKET,
        "/run/systemd/private",
        "/run/systemd/journal/socket",
    }
    assert found.shared == set()
    assert found.secrets_but(*paths_of_root, "/var/log") == []


def test_people_and_grafana_get_what_reads_and_web_pages_nothing(watched: Machine) -> None:
    hosts = ["127.0.0.1:8766", "localhost", "[::1]:8766", "evil.test", "127.0.0.1.evil.test:8766", "192.0.2.1", ""]
    origins = [None, "null", "http://127.0.0.1:8766", "https://evil.test"]
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
    read = [f"/prometheus/{page}" for page in PAGES]
    asked = [f"/prometheus/{page}?query=up&match[]=up" for page in QUERIES]
    closed = [f"/prometheus/{page}" for page in CLOSED]
    wrong = []
    for host, origin, method, path, status, cors, _ in crawled(
        watched, hosts, origins, methods, [*read, *asked, *closed]
    ):
        if host not in hosts[:3] or origin is not None:
            good = status in (400, 403)
        elif path in closed:
            good = status in (404, 405)
        elif method == "HEAD":
            good = status in (200, 404, 405)  # Prometheus itself knows GET alone for most
        elif method == "GET":
            good = status in (200, 302) or (path.endswith("/static/x") and status == 404)
        else:
            good = status == 200 if method == "POST" and path in asked else status == 405
        if not good or cors:
            wrong.append((host, origin, method, path, status, cors))
    assert wrong == []


def crawled(machine: Machine, *choices: list[Any]) -> list[list[Any]]:
    """What the metrics port answers another user of the host to every combination."""
    command = f"runuser -u nobody -- python3 -c {shlex.quote(CRAWLER)} {SECRET}"
    return [
        json.loads(line) for line in machine.sh(f"echo {shlex.quote(json.dumps(choices))} | {command}").splitlines()
    ]


def test_the_webhooks_address_stays_secret(watched: Machine) -> None:
    """Also after a post that failed: nobody listens there."""
    told = watched.sh("local-llm alerts test; true")
    assert "webhook" in told
    assert re.search(r"webhook +\d+ wait: ", told)
    paths_ = [
        "/metrics",
        "/requests",
        "/llama/metrics",
        *(f"/prometheus/{page}" for page in (*PAGES, *QUERIES, *CLOSED)),
    ]
    found = crawled(watched, ["127.0.0.1"], [None], ["GET", "POST"], paths_)
    assert [case for case in found if case[-1]] == []
    # Nor does anything else that listens say it.
    ports = {line.split()[3].rsplit(":", 1)[1] for line in watched.sh("ss -Hltn").splitlines()} - {"22"}
    pages = " ".join(
        f"http://127.0.0.1:{port}/{page}" for port in ports for page in ("api/v2/status", "metrics", "config")
    )
    assert SECRET not in watched.sh(f"runuser -u nobody -- curl -s -m 5 {pages} || true")
    # The user's own search for it is in no line that another program wrote.
    assert (
        watched.sh(f"journalctl --no-pager -o cat -t local-llm-alert -u 'local-llm*' | grep -c {SECRET} || true") == "0"
    )
    assert watched.sh(f"grep -la '[S]{SECRET[1:]}' /proc/[0-9]*/cmdline 2>/dev/null || true") == ""
    readable = f"grep -rls '{SECRET}' /etc/local-llm /run /var/lib/local-llm /var/log /etc/systemd || true"
    assert watched.sh(f"runuser -u nobody -- sh -c {shlex.quote(readable)}") == ""
    watched.sh("rm -f /var/lib/local-llm/outbox/webhook/*")


def test_no_other_user_gets_past_the_gateway(watched: Machine) -> None:
    for path in (paths.PROMETHEUS_SOCKET, paths.PUBLISHED):
        assert watched.sh(f"runuser -u nobody -- curl -sS --unix-socket {path} http://x/ 2>&1 || true").startswith(
            "curl: (7)"
        )
    pid = watched.main_pid(paths.PROMETHEUS_UNITS[0])
    assert watched.sh(f"readlink /proc/{pid}/ns/net") != watched.sh("readlink /proc/1/ns/net")
    inside = watched.sh(f"nsenter --net=/proc/{pid}/ns/net ss -Hltn").splitlines()
    assert sorted(line.split()[3] for line in inside) == ["127.0.0.1:8766", "127.0.0.1:9090", "127.0.0.1:9100"]


def test_the_tools_own_judges_accept_the_files(watched: Machine) -> None:
    assert "SUCCESS" in watched.sh("promtool check config /etc/local-llm/prometheus.yml")
    assert "SUCCESS" in watched.sh("promtool check rules /etc/local-llm/prometheus-rules.yml")


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(deployed: Machine, watched: Machine) -> None:
    # The cases are written for the default settings.
    from settings import Settings
    from tasks.prometheus import rules_file

    rules = rules_file(Settings(prometheus=True)).content
    for name, content in (("rules.yml", rules), ("test.yml", RULE_TESTS.read_text())):
        watched.sh(f"mkdir -p /tmp/rules && cat > /tmp/rules/{name} <<'END_OF_FILE'\n{content}END_OF_FILE\n")
    assert "SUCCESS" in watched.sh("cd /tmp/rules && promtool test rules test.yml 2>&1; rm -r /tmp/rules")


def test_all_that_it_asks_answers(watched: Machine) -> None:
    jobs = {"gateway", "requests", "llama-server", "node", "prometheus"}
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
        return [json.loads(line) for line in watched.sh("cat /tmp/hook 2>/dev/null; true").splitlines()]

    def relayed() -> list[dict[str, Any]]:
        return [message for message in sent() if message["alert"] == "target-down"]

    try:
        eventually(lambda: bool(relayed()), 300, "an alert of Prometheus")
        [message] = relayed()
        assert (message["event"], message["severity"]) == ("raised", "warning")
        assert "What Prometheus asks does not answer: node." in message["text"]
        assert "target-down" in watched.sh("local-llm alerts; true")
        # What both see is told by the host alone.
        assert query(watched, 'ALERTS{alertname="LocalLlmApiDown", alertstate="firing"}') != [[]]
        assert [message["event"] for message in sent() if message["alert"] == "api-down"] == ["raised"]
        assert all(query(watched, *[each["expr"] for each in DASHBOARD["annotations"]["list"]]))
    finally:
        watched.sh("systemctl start local-llm local-llm-node-exporter; systemctl stop hook; rm -f /tmp/hook*")
    eventually(watched.answers, 60, "an answer")


@pytest.mark.distribution(0)
def test_killed_it_comes_back_with_what_it_knew(watched: Machine) -> None:
    known = value(watched, "max_over_time(count(up)[1h:5s])")
    for unit in (*paths.PROMETHEUS_UNITS, *(f"{way}.service" for way in paths.PROMETHEUS_WAYS)):
        watched.sh(f"kill -9 {watched.main_pid(unit)}")
    eventually(lambda: all(watched.main_pid(unit) for unit in paths.PROMETHEUS_UNITS), 60, "new processes")
    eventually(lambda: bool(watched.sh(f"curl -sSf {PROMETHEUS}/-/ready || true")), 60, "it is ready")
    assert value(watched, "max_over_time(count(up)[1h:5s])") == known


def test_off_again_nothing_of_it_is_left_but_what_a_user_wants(deployed: Machine, watched: Machine) -> None:
    watched.sh("apt-mark manual libjs-jquery")
    try:
        run = deployed.deploy()
        assert run.succeeded, run.output
        left = installed_packages(deployed)
        assert "libjs-jquery installed" in left
        assert not [name for name in left if name.startswith(("prometheus", "promtool", "libjs-d3"))]
        ways = [f"{way}.{kind}" for way in paths.PROMETHEUS_WAYS for kind in ("socket", "service")]
        own = (*paths.PROMETHEUS_UNITS, *ways, "local-llm-alert-relay.timer", "localllmprometheus.slice")
        for unit in (*own, *paths.PROMETHEUS_DISTRIBUTION_UNITS):
            assert deployed.show(unit, "FragmentPath") == ""
        found = deployed.sh(
            "find /etc /var/lib /run -xdev "
            r"\( -name '*prometheus*' -o -name '*alertmanager*' -o -name '*alert-relay*' -o -name '*node-exporter*' \) "
            "-not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*'"
        )
        assert found == ""
        assert "/prometheus/" not in deployed.sh("curl -s http://127.0.0.1:8766/")
        assert deployed.deploy().changed == 0
    finally:
        deployed.sh("apt-get -qq -y purge libjs-jquery javascript-common || true")
