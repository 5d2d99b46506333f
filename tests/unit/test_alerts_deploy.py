"""What a deploy makes of the settings of alerts: limits for the checks, a secret, and units that hold up nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from checks.contract import paths
from settings import Settings, parse
from tasks import alerts
from tasks.secret_files import SecretError


def test_units_are_the_ones_that_the_checks_start() -> None:
    for channel, unit in paths.ALERT_UNITS.items():
        (file,) = [file for file in alerts.unit_files() if file.path.endswith(unit)]
        assert f"ExecStart=/usr/local/bin/local-llm alerts --deliver {channel}\n" in file.content
        assert re.search(r"^TimeoutStartSec=\d+$", file.content, re.MULTILINE)


def test_without_a_webhook_there_is_none() -> None:
    assert alerts.operators_webhook(Settings()) is None
    assert alerts.thresholds(Settings()).webhook_format is None


def test_a_webhook_is_a_secret_and_not_in_the_checks_configuration() -> None:
    settings = Settings(alert_webhook_url="https://hooks.example.com/T0P", alert_webhook_format="slack")
    assert alerts.operators_webhook(settings) == "https://hooks.example.com/T0P\n"
    assert "T0P" not in str(alerts.thresholds(settings))
    assert alerts.thresholds(settings).webhook_format == "slack"


def test_a_file_holds_address_and_headers(tmp_path: Path) -> None:
    file = tmp_path / "webhook"
    file.write_text("\n https://ntfy.example.com/topic \n\nAuthorization: Bearer tk_1\n")
    settings = Settings(alert_webhook_file=str(file))
    assert alerts.operators_webhook(settings) == "https://ntfy.example.com/topic\nAuthorization: Bearer tk_1\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "first line"),
        ("http://hooks.example.com/T0P", "first line"),
        ("https://user:T0P@example.com/", "first line"),
        ("https://hooks.example.com/T0P\nno header T0P", "after its first line"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_without_its_content(
    tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "webhook"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SecretError, match=words) as caught:
        alerts.operators_webhook(Settings(alert_webhook_file=str(file)))
    assert "T0P" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"alert_webhook_url": "http://example.com/x"},
        {"alert_webhook_url": "ftp://example.com/x"},
        {"alert_webhook_url": "https://a b/x"},
        {"alert_webhook_url": "https://a.example/x", "alert_webhook_file": "y"},
        {"alert_command": "notify.sh"},
        {"alert_after_checks": 0},
        {"uptime_goal_percent": 100.0},
    ],
)
def test_wrong_settings_are_refused(data: dict[str, object]) -> None:
    assert parse(data)[1]


@pytest.mark.parametrize(
    ("address", "usable"),
    [
        ("https://hooks.example.com/a'b\"c\\d", True),
        ("https://hooks.example.com/größe", True),
        ("http://localhost:8080/x", True),
        ("https://hooks.example.com/a\x01b", False),
        ("https://user:T0P@example.com/", False),
        ("https://hooks.example.com\\@example.net/", False),
        ("http://localhost.example.com/", False),
    ],
)
def test_setting_and_file_take_the_same_addresses(tmp_path: Path, address: str, usable: bool) -> None:
    file = tmp_path / "webhook"
    file.write_text(address)
    assert (parse({"alert_webhook_url": address})[1] == []) == usable
    if usable:
        assert alerts.operators_webhook(Settings(alert_webhook_file=str(file))) == f"{address}\n"
    else:
        with pytest.raises(SecretError):
            alerts.operators_webhook(Settings(alert_webhook_file=str(file)))


@pytest.mark.parametrize(
    "url", ["https://hooks.slack.com/services/T/B/x", "http://127.0.0.1:8080/", "https://ntfy.sh/topic?auth=x"]
)
def test_usable_addresses(url: str) -> None:
    assert alerts.operators_webhook(Settings(alert_webhook_url=url)) == f"{url}\n"
