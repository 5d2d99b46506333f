"""Every template renders with every variable it names, and says what the settings say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from checks.contract import paths
from checks.contract.config import load
from facts.machine import LoginState, MachineState
from operations.files import ManagedFile
from operations.llama_cpp import Release
from settings import Settings
from tasks import alerts, gateway, monitoring, openclaw, prometheus, service, units
from tasks.preflight import Target
from tasks.rendering import TEMPLATES, render, rendered
from tasks.routing import rules

CLOUD = Settings(
    cloud_url="https://api.example.com/api/v1",
    cloud_models=("large", "vendor/small"),
    cloud_model_aliases=("small",),
    requests_per_minute=60,
    cloud_requests_per_minute=30,
)
SETTINGS = [
    Settings(),
    Settings(service_user="nobody", service_group="nogroup", context_tokens=2048, kv_cache_type="q8_0"),
    CLOUD,
    Settings(api_port=9000, metrics_port=9001, parallel=2, queue_length=0, max_body_kib=4096, repack_weights=True),
]


def target(settings: Settings) -> Target:
    release = Release(settings.llama_cpp_repository, settings.llama_cpp_commit, settings.build_native, "x86_64 avx2")
    return Target(settings, LoginState("u", False, True, 22), MachineState(cores=2), release, ())


def all_files(settings: Settings) -> list[ManagedFile]:
    on = target(settings)
    return [
        *service.unit_files(on),
        service.publish_script(),
        service.environment_file(on, "stamp"),
        gateway.unit_file(settings, "stamp"),
        gateway.socket_unit_file(settings, "stamp", has_ipv6=True),
        gateway.configuration_file(settings, "stamp"),
        *gateway.reader_files(settings),
        monitoring.checks_configuration(on),
        rendered("/usr/local/bin/local-llm", root="/opt/local-llm"),
        monitoring.cron_file(settings),
        units.hardened(paths.DRILL_UNIT),
        *alerts.unit_files(),
        *(file for _, _, file in prometheus.stamped_units(settings, "vps")),
        *(file for _, _, file in prometheus.stamped_sockets(settings)),
        *prometheus.relay_files(settings),
        prometheus.slice_file(settings),
        prometheus.rules_file(settings),
        prometheus.configuration_file(settings, "vps"),
        *openclaw.configuration_files(settings, openclaw.patch(settings, {})),
        *openclaw.plugin_files(settings.model_copy(update={"openclaw_slim": True})),
        rendered(
            "/etc/logrotate.d/local-llm",
            health_log="/var/log/llm-health.log",
            metrics_log="/var/log/llm-metrics.log",
            log_retention_days=7,
        ),
    ]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_template_renders_completely(settings: Settings) -> None:
    files = {file.path: file.content for file in all_files(settings)}
    templates = {f"/{path.relative_to(TEMPLATES)}".removesuffix(".j2") for path in TEMPLATES.rglob("*.j2")}
    assert templates <= set(files)
    for path, content in files.items():
        assert content.endswith("\n"), path
        # Prometheus has templates of its own.
        content = re.sub(r"\{\{ (\$|\.|range|end)[^{}]*\}\}", "", content)
        assert not re.search(r"\{\{|\}\}\s|\{%|None", content), path


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_unit_sees_of_run_what_the_checks_expect(settings: Settings) -> None:
    files = {file.path.rpartition("/")[2]: file.content for file in all_files(settings) if ".service" in file.path}
    assert {*files} == {*units.OF_RUN, "local-llm-alert-command.service"}
    for unit in units.OF_RUN:
        assert "TemporaryFileSystem=/run:ro " in files[unit]
        bound = re.findall(r"^Bind(?:ReadOnly)?Paths=-?(/run/\S+)$", files[unit], re.MULTILINE)
        assert bound[: len(units.OF_RUN[unit])] == [*units.OF_RUN[unit]]
        assert {*bound} <= {*units.seen_of_run(unit)}


def test_a_missing_variable_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("/etc/cron.d/local-llm")


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_the_deploy_writes_for_the_checks_is_what_they_read(tmp_path: Path, settings: Settings) -> None:
    file = tmp_path / "checks.json"
    file.write_text(monitoring.checks_configuration(target(settings)).content)
    assert load(file) == monitoring.config(target(settings))


def test_templates_mirror_the_hosts_paths() -> None:
    assert {path.relative_to(TEMPLATES).parts[0] for path in TEMPLATES.rglob("*.j2")} == {"etc", "opt", "usr"}


def directives(content: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", content, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def sections(configuration: str) -> dict[str, str]:
    """The sections of haproxy.cfg by their first line."""
    parts = re.split(r"^(?=\w+(?: \w+)?$)", configuration, flags=re.MULTILINE)
    return {part.splitlines()[0]: part for part in parts}


def test_the_service_has_no_network_and_its_limits() -> None:
    unit = directives(service.unit_files(target(Settings()))[1].content)
    assert unit["PrivateNetwork"] == ["yes"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert (unit["MemoryMax"], unit["MemorySwapMax"], unit["CPUQuota"]) == (["3072M"], ["0"], ["200%"])
    assert (unit["User"], unit["Restart"], unit["StartLimitIntervalSec"]) == (["local-llm"], ["always"], ["0"])


def test_what_a_naive_install_gets_wrong_is_set() -> None:
    options = directives(service.environment_file(target(Settings()), "stamp").content)
    assert options["LLAMA_ARG_CACHE_RAM"] == ["16"]
    assert options["LLAMA_ARG_N_PARALLEL"] == ["1"]
    assert options["LLAMA_ARG_REPACK"] == ["0"]
    assert options["LLAMA_ARG_UI"] == ["0"]
    assert options["LLAMA_ARG_CORS_ORIGINS"] == ["https://no-origin.invalid"]
    assert options["LLAMA_ARG_HOST"] == ["/run/local-llm/llama.sock"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_gateway_listens_on_loopback_only(settings: Settings) -> None:
    configuration = gateway.configuration_file(settings, "stamp").content
    binds = set(re.findall(r"^\s+bind (\S+)", configuration, re.MULTILINE))
    assert {bind for bind in binds if not bind.startswith(("unix@/run/local-llm-gateway/", "fd@"))} == {
        f"127.0.0.1:{settings.api_port}",
        f"127.0.0.1:{settings.metrics_port}",
    }


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_gateway_takes_its_sockets_in_the_order_that_systemd_gives_them(settings: Settings) -> None:
    sockets = directives(gateway.socket_unit_file(settings, "stamp", has_ipv6=True).content)["ListenStream"]
    assert sockets == [
        f"127.0.0.1:{settings.api_port}",
        f"127.0.0.1:{settings.metrics_port}",
        paths.GATEWAY_ADMIN_SOCKET,
        paths.GATEWAY_API_SOCKET,
        f"[::1]:{settings.api_port}",
        f"[::1]:{settings.metrics_port}",
    ]
    unit = gateway.socket_unit_file(settings, "stamp", has_ipv6=False).content
    assert directives(unit)["ListenStream"] == sockets[:4]
    assert "FreeBind" not in unit
    configuration = gateway.configuration_file(settings, "stamp").content
    # Where systemd gives none, each has a place of its own.
    taken = re.findall(
        r"^\.if defined\(LISTEN_FDS\)\n +(?:bind|stats socket) fd@(\d)[^\n]*\n\.else\n"
        r" +(?:bind|stats socket) (\S+)[^\n]*\n\.endif$",
        configuration,
        re.MULTILINE,
    )
    assert dict(taken) == {
        "3": sockets[0],
        "4": sockets[1],
        "5": f"{paths.GATEWAY_RUNTIME}/admin.sock",
        "6": f"unix@{paths.GATEWAY_RUNTIME}/api.sock",
    }
    more = re.findall(r"^\.if streq\(\"\$LISTEN_FDS\",(\d)\)\n +bind fd@(\d)\n\.endif$", configuration, re.MULTILINE)
    assert more == [(str(len(sockets)), "7"), (str(len(sockets)), "8")]
    assert configuration.count("LISTEN_FDS") == configuration.count("fd@") == 6


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_gateways_buffers_fit_into_its_memory(settings: Settings) -> None:
    buffers = 3 * gateway.buffer_bytes(settings) * gateway.max_connections(settings)
    assert buffers <= settings.gateway_memory_max_mib * 1024**2


def test_the_access_log_has_no_place_for_a_prompt() -> None:
    configuration = gateway.configuration_file(CLOUD, "stamp").content
    formats = re.findall(r"log-format (.*)", configuration)
    assert len(formats) == 3  # the API's, root's and the cloud's
    for log_format in formats:
        assert set(re.findall(r"%\[(.*?)\]", log_format)) <= {
            "var(txn.reason)", "var(txn.backend)", "var(txn.provider_status)", "var(txn.queue_ms)",
        }  # fmt: skip
        # %HU and %r would carry a query string; %HP is the path alone.
        assert not re.search(r"%HU|%r|%HQ|%hr|%hs", log_format)


def test_no_limit_keeps_the_hosts_own_checks_out() -> None:
    """A refused check would look like a model that hangs."""
    root = sections(gateway.configuration_file(CLOUD, "stamp").content)["frontend root"]
    assert not re.search(r"rate|return|deny|lua|wait", root)
    assert "use_backend status if is_status" in root
    assert "default_backend local_only" in root


def test_every_body_is_read_before_any_rule_looks_at_it() -> None:
    """And what is refused by its headers is refused before."""
    api = sections(gateway.configuration_file(CLOUD, "stamp").content)["frontend api"]
    order = ["browser_refused", "unexpected_body", "allow if is_status", "wait-for-body", "lua.read_request"]
    order += ["invalid_json", "txn.reason) str(local-model)", "txn.route) str(local-only)", "use_backend cloud_only"]
    positions = [api.index(words) for words in order]
    assert positions == sorted(positions)


def test_only_listed_models_have_a_route_to_the_cloud() -> None:
    api = sections(gateway.configuration_file(CLOUD, "stamp").content)["frontend api"]
    assert "acl names_cloud_model var(txn.model) -m str large vendor/small small\n" in api
    routed = re.findall(r"set-var\(txn\.route\) str\((\S+)\)(.*)", api)
    assert routed[0] == ("local-only", "")
    assert {route for route, _ in routed[1:]} == {"local-first", "cloud-first", "cloud-only"}
    assert all(condition.startswith(" if names_cloud_model {") for _, condition in routed[1:])


def test_the_body_reader_is_loaded_by_its_path() -> None:
    configuration = gateway.configuration_file(CLOUD, "stamp").content
    assert {f"lua-load {file.path}" in configuration or f"map_str({file.path}," in configuration
            for file in gateway.reader_files(CLOUD)} == {True}  # fmt: skip


def test_without_a_shared_cache_nothing_is_reused() -> None:
    alone = Settings(share_prompt_cache=False)
    options = directives(service.environment_file(target(alone), "stamp").content)
    assert (options["LLAMA_ARG_CACHE_RAM"], options["LLAMA_ARG_CACHE_PROMPT"]) == (["0"], ["0"])
    assert "prompt_cache_off" in gateway.configuration_file(alone, "stamp").content
    shared = directives(service.environment_file(target(Settings()), "stamp").content)
    assert "LLAMA_ARG_CACHE_PROMPT" not in shared


def test_roots_own_way_leads_to_the_local_side_past_every_rule() -> None:
    """A check that a limit refuses would look like a model that hangs."""
    configuration = gateway.configuration_file(CLOUD, "stamp").content
    [section] = re.findall(r"^frontend root$.*?(?=^\w)", configuration, re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?:use|default)_backend (\w+)", section) == ["status", "local_only"]
    assert "probe" not in {rule.reason for rule in rules(CLOUD)}
    assert "probe" in configuration.split("local_llm_requests_total", 1)[1]


def test_what_stays_here_has_no_way_to_the_cloud() -> None:
    found = sections(gateway.configuration_file(CLOUD, "stamp").content)
    servers = {name.split()[1]: re.findall(r"^\s+server \S+ (\S+)", text, re.MULTILINE)
               for name, text in found.items() if " " in name}  # fmt: skip
    assert servers["local_only"] == ["unix@/run/local-llm-gateway/local.sock"]
    assert servers["llm"] == ["unix@/run/local-llm-sockets/llama.sock"]
    assert servers["cloud"] == ["api.example.com:443"]


def test_without_a_cloud_the_gateway_knows_none() -> None:
    configuration = gateway.configuration_file(Settings(), "stamp").content
    assert not re.search(r"server cloud|cloud\.sock|env\(", configuration)
    unit = directives(gateway.unit_file(Settings(), "stamp").content)
    assert (unit["IPAddressDeny"], unit["IPAddressAllow"]) == (["any"], ["localhost"])
    assert "EnvironmentFile" not in unit


def test_the_key_is_named_and_not_written() -> None:
    configuration = gateway.configuration_file(CLOUD, "stamp").content
    assert configuration.count("%[env(LOCAL_LLM_CLOUD_KEY)]") == 2  # requests, and the check
    assert directives(gateway.unit_file(CLOUD, "stamp").content)["EnvironmentFile"] == [
        "/etc/local-llm/secrets/cloud.env"
    ]


def test_a_stamp_changes_with_what_wants_a_restart_and_only_then() -> None:
    first = service.service_stamp(target(Settings()))
    assert first == service.service_stamp(target(Settings(queue_length=3, health_interval_minutes=10)))
    assert first != service.service_stamp(target(Settings(context_tokens=2048)))
    assert first != service.service_stamp(target(Settings(cpu_weight=100)))
    other_binary = replace(target(Settings()), release=Release("https://x", "f" * 40, True, "x86_64"))
    assert first != service.service_stamp(other_binary)


def test_the_checks_package_is_installed_whole() -> None:
    sources = {f"/opt/local-llm/{path}" for path in Path("checks").rglob("*.py")}
    assert {file.path for file in monitoring.checks_package()} == sources
