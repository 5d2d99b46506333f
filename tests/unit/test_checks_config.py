"""The configuration is read whole, and every defect of it is one line that names the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from checks.contract.config import ConfigError, load
from tests.unit.checks_support import CLOUD, config_data, make_config, write_config


def test_every_value_arrives(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert config.model.stamp_path == "/opt/local-llm/models/tiny.gguf.stamp"
    assert config.ports == (8765, 8766)
    assert config.files[0].mode == 0o644
    assert config.response_limit_seconds == 5.0


def test_a_cloud_arrives_or_is_none(tmp_path: Path) -> None:
    assert make_config(tmp_path).cloud is None
    cloud = make_config(tmp_path, cloud=CLOUD).cloud
    assert cloud is not None
    assert (cloud.url, cloud.models) == ("https://api.example.com/v1", ("big", "bigger"))


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    limit = make_config(tmp_path, response_limit_seconds=7).response_limit_seconds
    assert limit == 7.0
    assert isinstance(limit, float)


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    assert make_config(tmp_path, from_the_future=1).release


@pytest.mark.parametrize("key", sorted(config_data()))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    data = config_data()
    del data[key]
    path = tmp_path / "checks.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=f"“{key}” is missing") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_max_mib": "3072"}, "memory_max_mib.*whole number"),
        ({"memory_max_mib": True}, "memory_max_mib.*whole number"),
        ({"memory_max_mib": 0}, "memory_max_mib.*at least 1"),
        ({"response_limit_seconds": -1.0}, "response_limit_seconds.*more than 0"),
        ({"response_limit_seconds": None}, "response_limit_seconds.*a number"),
        ({"firewall": "yes"}, "firewall.*true or false"),
        ({"denied_ports": [70000]}, "denied_ports.*70000"),
        ({"cloud": "https://x"}, "cloud.*an object"),
        ({"cloud": {**CLOUD, "api": "gopher"}}, r"cloud\.api"),
        ({"cloud": {**CLOUD, "models": []}}, r"cloud\.models.*list of text"),
        ({"cloud": {**CLOUD, "models": [1]}}, r"cloud\.models.*list of text"),
        ({"cloud": {**CLOUD, "url": "x"}}, r"cloud\.url"),
        ({"drill_weekly": 1}, "drill_weekly.*true or false"),
        ({"admin_socket": "run/s"}, "admin_socket"),
        ({"api_url": "127.0.0.1:8765"}, "api_url"),
        ({"api_url": "http://127.0.0.1:port"}, "api_url"),
        ({"api_url": "http://127.0.0.1:70000"}, "api_url.*not an address"),
        ({"api_url": "http://[::1"}, "api_url.*not an address"),
        ({"service_user": ""}, "service_user.*not a usable value"),
        ({"service_user": "root\nother"}, "service_user.*not a usable value"),
        ({"service_unit": "local-llm; reboot"}, "service_unit"),
        ({"release": "../other"}, "release"),
        ({"model": "tiny.gguf"}, "model.*an object"),
        ({"model": {"name": "x"}}, r"model\.path.*missing"),
        ({"files": [{"path": "/x", "mode": "rw-", "owner": "a", "group": "b"}]}, r"files\[0\]\.mode"),
        ({"files": ["/x"]}, r"files\[0\].*object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **change)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is missing.*--config"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_file_that_is_not_an_object(tmp_path: Path, text: str | bytes) -> None:
    path = write_config(tmp_path)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=r"not valid JSON|not a JSON object"):
        load(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
