"""What Prometheus and node exporter are given, whose they are, and what of them is removed again."""

import json
import re
from pathlib import Path

import pytest

from checks import alert_rules, relay
from facts.prometheus import PrometheusState, parse_prometheus
from settings import Settings, parse
from tasks.planning import Finding, Status, disk_needs, prometheus_findings
from tasks.prometheus import (
    configuration_file,
    relay_files,
    rules_file,
    slice_file,
    stamped_sockets,
    stamped_units,
    watched,
)

ON = Settings(prometheus=True)
DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text())


def judge(state: PrometheusState) -> dict[str, Finding]:
    return {each.name: each for each in prometheus_findings(ON, state)}


def units(settings: Settings) -> dict[str, str]:
    return {file.path.rpartition("/")[2]: file.content for _, _, file in stamped_units(settings, "vps")}


def test_off_by_default() -> None:
    assert not Settings().prometheus
    assert watched(Settings()) is None
    assert list(prometheus_findings(Settings(), PrometheusState(("prometheus.service",)))) == []
    assert set(Settings().loopback_ports.values()) == {8765, 8766}


def test_a_prometheus_of_the_users_own_forbids_ours() -> None:
    finding = judge(PrometheusState(in_use=("prometheus-node-exporter.service",)))["prometheus"]
    assert finding.status is Status.FAIL
    assert "prometheus-node-exporter.service" in finding.found
    assert "set prometheus = False" in finding.remedy
    assert judge(PrometheusState())["prometheus"].status is Status.PASS


def test_ports_are_none_of_the_hosts() -> None:
    assert "port 9090" not in judge(PrometheusState())
    assert ON.loopback_ports == Settings().loopback_ports
    assert parse({"prometheus": True, "alertmanager_port": 9090, "prometheus_port": 9091})[1] == []
    # In their network the gateway's metrics have the port that they have on the host.
    assert parse({"prometheus": True, "metrics_port": 9100})[1] == [
        "node_exporter_port = 9100: allowed: a port other than metrics_port"
    ]


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


def test_all_share_a_network_that_is_nobody_elses() -> None:
    contents = units(ON)
    out = contents.pop("local-llm-prometheus-out.service")
    assert "PrivateNetwork" not in out  # the way from there to the gateway
    assert "systemd-socket-proxyd --connections-max=64 127.0.0.1:8766\n" in out
    for content in contents.values():
        assert "PrivateNetwork=yes\n" in content
        assert "JoinsNamespaceOf=local-llm-prometheus-out.socket\n" in content
        # Who joins needs one that is there.
        assert re.search(r"^Requires=.*\blocal-llm-prometheus-out\.socket$", content, re.MULTILINE)
        assert re.search(r"^After=.*\blocal-llm-prometheus-out\.socket$", content, re.MULTILINE)
        assert "PrivateTmp=yes\n" in content
    out_socket, in_socket = (file.content for _, _, file in stamped_sockets(ON))
    assert "PrivateNetwork=yes\n" in out_socket
    assert "PrivateTmp=yes\n" in out_socket
    assert "SocketGroup=local-llm-gateway\nSocketMode=0660\n" in in_socket


def test_the_limits_add_up_to_the_slices() -> None:
    for limit in (256, 512, 1000):
        settings = Settings(prometheus=True, prometheus_memory_max_mib=limit)
        assert sum(watcher.memory_max_mib for watcher, _, _ in stamped_units(settings, "vps")) == limit
        assert all(watcher.memory_max_mib > 0 for watcher, _, _ in stamped_units(settings, "vps"))
        assert f"MemoryMax={limit}M\n" in slice_file(settings).content


def test_nothing_leads_out_of_the_machine() -> None:
    assert all("IPAddressDeny=any\nIPAddressAllow=localhost\n" in content for content in units(ON).values())


def test_a_change_restarts_what_it_concerns() -> None:
    def stamps(settings: Settings) -> dict[str, str]:
        return {watcher.unit: stamp for watcher, stamp, _ in stamped_units(settings, "vps")}

    def changed(after: dict[str, str]) -> set[str]:
        return {unit.removeprefix("local-llm-") for unit, stamp in stamps(ON).items() if after[unit] != stamp}

    assert changed(stamps(ON)) == set()
    assert changed(stamps(ON.model_copy(update={"memory_goal_mib": 2000}))) == {"prometheus.service"}
    assert changed(stamps(ON.model_copy(update={"textfile_directory": "/srv"}))) == {"node-exporter.service"}


def test_what_is_relayed_are_rules_and_as_bad_there() -> None:
    content = rules_file(ON).content
    for rule, name in relay.RULES.items():
        [part] = [part for part in content.split("- alert: ") if part.startswith(f"{rule}\n")]
        assert f"severity: {alert_rules.RELAYED[name].severity}}}" in part
        assert f'description: "{alert_rules.RELAYED[name].remedy}"' in part


def test_the_relay_runs_as_often_as_the_health_check() -> None:
    service, timer = (file.content for file in relay_files(ON.model_copy(update={"health_interval_minutes": 7})))
    assert "OnUnitActiveSec=7min\n" in timer
    assert "ExecStart=/usr/local/bin/local-llm alerts --relay\n" in service


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
    settings = Settings(prometheus=True, metrics_port=2001, prometheus_port=2002, node_exporter_port=2004)
    content = configuration_file(settings, 'vps "1"').content
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", content)) == {"2001", "2002", "2004"}
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
