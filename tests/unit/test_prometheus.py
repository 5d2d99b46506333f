"""What Prometheus, Alertmanager and node exporter are given, whose they are, and what of them is removed again."""

import json
import re
from pathlib import Path

import pytest

from facts.machine import MachineState
from facts.prometheus import PrometheusState, parse_prometheus
from settings import Settings
from tasks.planning import Finding, Status, disk_needs, prometheus_findings
from tasks.prometheus import (
    alertmanager_file,
    configuration_file,
    listening,
    rules_file,
    slice_file,
    stamped_units,
    watchers,
)

ON = Settings(prometheus=True)
DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text())
URL = "https://hooks.example.com/T0/secret"


def judge(state: PrometheusState, machine: MachineState | None = None) -> dict[str, Finding]:
    return {each.name: each for each in prometheus_findings(ON, machine or MachineState(), state)}


def units(settings: Settings, webhook: str | None = None) -> dict[str, str]:
    return {watcher.unit: file.content for watcher, _, file in stamped_units(settings, "vps", webhook)}


def test_off_by_default() -> None:
    assert not Settings().prometheus
    assert listening(Settings()) == []
    assert list(prometheus_findings(Settings(), MachineState(), PrometheusState(("prometheus.service",)))) == []
    assert set(Settings().loopback_ports.values()) == {8765, 8766}


def test_a_prometheus_of_the_users_own_forbids_ours() -> None:
    finding = judge(PrometheusState(in_use=("prometheus-node-exporter.service",)))["prometheus"]
    assert finding.status is Status.FAIL
    assert "prometheus-node-exporter.service" in finding.found
    assert "set prometheus = False" in finding.remedy
    assert judge(PrometheusState())["prometheus"].status is Status.PASS


def test_a_port_is_free_or_ours() -> None:
    machine = MachineState(listeners={9090: 'users:(("prometheus",pid=7,fd=6))'})
    assert judge(PrometheusState(), machine)["port 9090"].status is Status.FAIL
    assert judge(PrometheusState(pids=frozenset({7})), machine)["port 9090"].status is Status.PASS
    assert judge(PrometheusState(), machine)["port 9093"].status is Status.PASS


@pytest.mark.parametrize(
    ("line", "in_use"),
    [
        ("prometheus.service inactive", False),
        ("prometheus.service inactive masked", False),
        ("prometheus.service inactive disabled", False),
        ("prometheus.service inactive enabled", True),
        ("prometheus.service active transient", True),
        ("prometheus.service activating disabled", True),
    ],
)
def test_whose_service_it_is(line: str, in_use: bool) -> None:
    state = parse_prometheus(["@distribution", line, "@own", "0", "", "41", "", "42"])
    assert state == PrometheusState(("prometheus.service",) if in_use else (), frozenset({41, 42}))


def test_room_is_wanted_until_it_is_there() -> None:
    without = disk_needs(Settings(), release_exists=True, model_exists=True)
    before = disk_needs(ON, release_exists=True, model_exists=True)
    assert before["/usr"] > without["/usr"]
    assert before["/var"] == without["/var"] + ON.prometheus_storage_mib
    assert disk_needs(ON, release_exists=True, model_exists=True, prometheus_exists=True) == without


def test_all_listen_on_loopback_alone() -> None:
    for content in units(ON, webhook=f"{URL}\n").values():
        addresses = re.findall(r"--(?:web|cluster)\.listen-address=(\S*)", content)
        assert addresses[0].startswith("127.0.0.1:")
        assert addresses[1:] in ([], [""])  # Alertmanager's cluster is off
    assert "--cluster.listen-address=\n" in units(ON)["local-llm-alertmanager.service"]


def test_the_limits_add_up_to_the_slices() -> None:
    for limit in (256, 512, 1000):
        settings = Settings(prometheus=True, prometheus_memory_max_mib=limit)
        assert sum(watcher.memory_max_mib for watcher in watchers(settings)) == limit
        assert all(watcher.memory_max_mib > 0 for watcher in watchers(settings))
        assert f"MemoryMax={limit}M\n" in slice_file(settings).content


def test_only_a_webhook_opens_the_network_and_only_to_alertmanager() -> None:
    assert all("IPAddressDeny=any\nIPAddressAllow=localhost\n" in content for content in units(ON).values())
    closed = {unit: "IPAddressDeny=any\n" in content for unit, content in units(ON, f"{URL}\n").items()}
    assert [unit for unit, is_closed in closed.items() if not is_closed] == ["local-llm-alertmanager.service"]


def test_a_change_restarts_what_it_concerns() -> None:
    def stamps(settings: Settings, webhook: str | None = None) -> dict[str, str]:
        return {watcher.unit: stamp for watcher, stamp, _ in stamped_units(settings, "vps", webhook)}

    def changed(after: dict[str, str]) -> set[str]:
        return {unit.removeprefix("local-llm-") for unit, stamp in stamps(ON).items() if after[unit] != stamp}

    assert changed(stamps(ON)) == set()
    assert changed(stamps(ON.model_copy(update={"memory_goal_mib": 2000}))) == {"prometheus.service"}
    assert changed(stamps(ON, f"{URL}\n")) == {"alertmanager.service"}
    assert changed(stamps(ON.model_copy(update={"textfile_directory": "/srv"}))) == {"node-exporter.service"}


def test_the_webhook_is_the_hosts_own_and_in_no_unit() -> None:
    assert "receiver: none" in alertmanager_file(ON, None).content
    file = alertmanager_file(ON, f"{URL}\nX-Tag: a\nAuthorization: Bearer t0p\n")
    assert file.mode == "0600"
    assert f'url: "{URL}"' in file.content
    assert 'type: "Bearer"' in file.content
    assert 'credentials: "t0p"' in file.content
    assert "example.com" not in "".join(units(ON, f"{URL}\n").values())


@pytest.mark.parametrize(
    ("format_", "line"),
    [
        ("json", f'      - url: "{URL}"'),
        ("ntfy", f'      - url: "{URL}?template=alertmanager"'),
        ("slack", f'      - api_url: "{URL}"'),
    ],
)
def test_the_webhooks_shapes(format_: str, line: str) -> None:
    content = alertmanager_file(ON.model_copy(update={"alert_webhook_format": format_}), f"{URL}\n").content
    assert line in content.splitlines()


def test_an_ntfy_address_may_have_a_query_already() -> None:
    settings = ON.model_copy(update={"alert_webhook_format": "ntfy"})
    [address] = re.findall(r'- url: (".*")$', alertmanager_file(settings, f"{URL}?auth=x\n").content, re.MULTILINE)
    assert json.loads(address) == f"{URL}?auth=x&template=alertmanager"


def test_alertmanager_sends_only_what_the_host_cannot_tell() -> None:
    route, _ = alertmanager_file(ON, f"{URL}\n").content.split("receivers:\n")
    assert re.findall(r" receiver: (.*)", route) == ["none", "webhook"]
    [names] = re.findall(r'- matchers: \[alertname =~ "(.*)"\]', route)
    assert names.split("|") == ["LocalLlmChecksStopped", "LocalLlmTargetDown"]
    assert set(names.split("|")) <= set(re.findall(r"- alert: (\w+)", rules_file(ON).content))


def test_the_rules_are_the_same_however_often_prometheus_asks() -> None:
    assert rules_file(ON.model_copy(update={"prometheus_scrape_seconds": 5})) == rules_file(ON)


def test_thresholds_are_the_settings() -> None:
    changed = ON.model_copy(
        update={
            "memory_goal_mib": 1000,
            "response_limit_seconds": 7.5,
            "alert_disk_free_percent": 15.0,
            "alert_restarts_per_hour": 9,
            "uptime_goal_percent": 99.5,
            "health_interval_minutes": 10,
            "alert_after_checks": 3,
            "alert_clear_after_checks": 4,
        }
    )
    content = rules_file(changed).content
    for text in (
        "local_llm_memory_bytes > 1048576000",
        "> 7.5",
        "< 0.15",
        "[1h]) >= 9",
        "> 0.005",
        "for: 30m",
        "> 1200",
    ):
        assert text in content
    assert content.count("keep_firing_for: 40m") == content.count("- alert: ")


def test_every_port_of_the_configuration_is_a_setting() -> None:
    settings = Settings(
        prometheus=True, metrics_port=2001, prometheus_port=2002, alertmanager_port=2003, node_exporter_port=2004
    )
    content = configuration_file(settings, 'vps "1"').content
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", content)) == {"2001", "2002", "2003", "2004"}
    assert r'host: "vps \"1\""' in content


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))  # no panel lies on another


def test_the_goal_of_response_times_is_the_local_models() -> None:
    [panel] = [panel for panel in DASHBOARD["panels"] if panel["title"] == "Mean response"]
    [target] = panel["targets"]
    assert set(re.findall(r"backend=(\S+?)}", target["expr"])) == {'"local"'}
