"""Settings: everything wrong is said at once, in one line each, and what is right is accepted."""

import re
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.contract import paths
from settings import CATALOGUE, SECTIONS, Settings, allowed_values, parse
from settings.page import page

CUSTOM = {
    "model": "custom",
    "model_name": "mine",
    "model_url": "https://example.net/mine.gguf",
    "model_sha256": "a" * 64,
    "model_size_bytes": 1000,
}


def problems(**data: object) -> list[str]:
    return parse(data)[1]


def test_defaults_are_valid_and_as_asked_for() -> None:
    settings, errors = parse({})
    assert errors == []
    assert settings is not None
    assert settings.selected_model.name == "qwen2.5-1.5b-instruct"
    assert (settings.memory_max_mib, settings.cpu_quota_percent, settings.api_port) == (3072, 200, 8765)


def test_pyinfras_own_data_is_no_setting() -> None:
    assert problems(ssh_user="ubuntu", ssh_port=2222, _sudo=True) == []


def test_every_problem_is_one_line_with_name_value_and_what_is_allowed() -> None:
    lines = problems(context_tokens="2048", parallel=99, health_interval_minutes=7, contxt_tokens=1, api_port=80)
    assert lines == [
        "context_tokens = '2048': allowed: a whole number from 512 to 131072 tokens",
        "parallel = 99: allowed: a whole number from 1 to 8",
        "api_port = 80: allowed: a whole number from 1024 to 65535",
        "health_interval_minutes = 7: allowed: 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 min",
        "contxt_tokens = 1: no such setting; did you mean context_tokens?",
    ]


def test_problems_between_settings_are_found_beside_wrong_ones() -> None:
    lines = problems(parallel=0, api_port=9000, metrics_port=9000, memory_goal_mib=4000)
    assert len(lines) == 3
    assert any(line.startswith("metrics_port = 9000: allowed: a port other than") for line in lines)
    assert any(line.startswith("memory_goal_mib = 4000: allowed: up to memory_max_mib (3072)") for line in lines)


@pytest.mark.parametrize("name", ["llama_cpp_repository", "model_url"])
@pytest.mark.parametrize("user", ["me:hunter2", "hunter2", ":hunter2", "hunter2%40x:y@z"])
def test_an_address_with_a_password_is_refused_and_not_shown(name: str, user: str) -> None:
    for scheme in ("https", "http"):
        data = CUSTOM | {name: f"{scheme}://{user}@example.net/mine.gguf"}
        [problem] = problems(**data)
        assert problem.startswith(f"{name}: allowed: an address without user and password")
        assert "hunter2" not in problem
    assert problems(**CUSTOM | {name: "https://example.net/a@b?c=@d"}) == []


@pytest.mark.parametrize("missing", ["model_name", "model_url", "model_sha256", "model_size_bytes"])
def test_a_custom_model_needs_all_of_its_settings(missing: str) -> None:
    data = {name: value for name, value in CUSTOM.items() if name != missing}
    assert problems(**data) == [f'{missing} is missing: model = "custom" needs it']


def test_a_custom_model_is_what_its_settings_say() -> None:
    settings, _ = parse(CUSTOM)
    assert settings is not None
    assert settings.selected_model.url == "https://example.net/mine.gguf"


def test_custom_settings_without_a_custom_model_are_refused() -> None:
    assert problems(model_name="mine") == ["model_name = 'mine': only with model = \"custom\""]


@pytest.mark.parametrize(
    "data",
    [
        {"llama_cpp_repository": "http://mirror.example/llama.cpp"},
        {"llama_cpp_repository": "git://mirror.example/llama.cpp"},
        {**CUSTOM, "model_url": "http://mirror.example/m.gguf"},
    ],
)
def test_plain_http_needs_to_be_allowed(data: dict[str, object]) -> None:
    assert len(problems(**data)) == 1
    assert problems(**data, allow_insecure_downloads=True) == []


@pytest.mark.parametrize("url", ["--upload-pack=x", "https://x/a b", "https://x/'", "file:///etc", "ext::sh -c x"])
def test_an_address_that_a_shell_or_git_could_misread_is_refused(url: str) -> None:
    assert problems(llama_cpp_repository=url)[0].startswith(f"llama_cpp_repository = {url!r}: allowed: the https://")


@pytest.mark.parametrize("ports", [["443"], ["0/tcp"], ["70000/tcp"], ["90:80/tcp"], ["22/icmp"], ["8765/tcp"]])
def test_wrong_firewall_ports_are_refused(ports: list[str]) -> None:
    assert len(problems(firewall_allowed_ports=ports)) == 1


def test_firewall_ports_may_come_as_a_list() -> None:
    settings, errors = parse({"firewall_allowed_ports": ["443/tcp", "60000:61000/udp"]})
    assert errors == []
    assert settings is not None
    assert settings.firewall_allowed_ports == ("443/tcp", "60000:61000/udp")


@given(
    st.dictionaries(
        st.sampled_from(sorted(Settings.model_fields)),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.floats(), st.lists(st.text())),
        max_size=4,
    )
)
def test_whatever_is_given_ends_in_settings_or_in_lines(data: dict[str, object]) -> None:
    settings, lines = parse(data)
    assert (settings is None) == bool(lines)
    assert all(line and "\n" not in line for line in lines)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_why_and_what_is_allowed(name: str) -> None:
    assert Settings.model_fields[name].description
    assert allowed_values(name)


def test_the_settings_page_is_current() -> None:
    assert Path("docs/SETTINGS.md").read_text() == page(), "run `make docs`"


def test_each_setting_is_one_sections() -> None:
    assert list(chain.from_iterable(section.model_fields for section in SECTIONS)) == list(Settings.model_fields)


def under_headings(text: str, setting: str) -> dict[str, list[str]]:
    """The names of settings under each heading of the second level; `setting`: what the line of one looks like."""
    _, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return {part.partition("\n")[0]: re.findall(setting, part, re.MULTILINE) for part in parts}


def test_the_settings_page_has_each_sections_settings_under_its_heading_and_sentence() -> None:
    text = Path("docs/SETTINGS.md").read_text()
    found = under_headings(text, r"^\| `(\w+)` \|")
    sections = {str(section.model_config["title"]): section for section in SECTIONS}
    assert list(found)[: len(SECTIONS)] == list(sections)
    for title, section in sections.items():
        assert found[title] == list(section.model_fields)
        assert re.search(rf"^## {title}\n\n[A-Za-z][^\n]+\.\n\n\| setting", text, re.MULTILINE)


def test_group_data_has_the_order_and_the_headings_of_the_settings_page() -> None:
    sections = {section.model_config["title"]: list(section.model_fields) for section in SECTIONS}
    found = under_headings(Path("group_data/all.py").read_text(), r"^(?:# )?(\w+) = ")
    assert list(found) == [title for title in sections if title in found]
    for title, names in found.items():
        assert names == [name for name in sections[title] if name in names] != []


def test_group_data_names_real_settings() -> None:
    lines = Path("group_data/all.py").read_text().splitlines()
    examples = [line.removeprefix("# ") for line in lines if " = " in line]
    assert len(examples) >= 8
    assert all(example.split(" = ")[0] in Settings.model_fields for example in examples)


def test_catalogue_models_are_pinned() -> None:
    for model in CATALOGUE.values():
        assert len(model.sha256) == 64
        revision = model.url.split("/resolve/")[1].split("/")[0]
        assert len(revision) == 40


@pytest.mark.parametrize("field", ["cloud_models", "cloud_model_aliases"])
@pytest.mark.parametrize("own", [*CATALOGUE, "mine"])
def test_a_name_that_the_host_has_or_had_is_none_of_the_clouds(field: str, own: str) -> None:
    """Whatever model is served now: programs that name one of before mean to stay on the host."""
    custom: dict[str, object] = {
        "model": "custom", "model_name": "mine", "model_url": "https://example.com/m.gguf", "model_sha256": "0" * 64,
        "model_size_bytes": 4096,
    }  # fmt: skip
    cloud = {"cloud_url": "https://api.example.com/v1", "cloud_models": ["large"]}
    catalogue: list[dict[str, object]] = [{"model": name} for name in CATALOGUE if own != "mine"]
    for served in [custom, *catalogue]:
        assert parse({**served, **cloud})[1] == []
        assert parse({**served, **cloud, field: ["large", own]})[1] == [
            f"{field} contains {own!r}: that name is a model of the host's own"
        ]


@pytest.mark.parametrize("name", ["service_user", "service_group"])
def test_an_account_of_the_systems_or_of_another_unit_is_refused(name: str) -> None:
    for account in ("root", paths.GATEWAY_USER, paths.BUILD_USER):
        settings, found = parse({name: account})
        assert settings is None
        assert found == [f"{name} = {account!r}: allowed: an account that has no other task, such as 'local-llm'"]


def test_openclaw_has_a_user_of_its_own() -> None:
    for account in ("local-llm", paths.GATEWAY_USER, paths.BUILD_USER):
        assert parse({"openclaw_user": account})[0] is None
