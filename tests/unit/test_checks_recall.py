"""What is remembered is what was written last, wherever there was room for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import recall
from checks.contract.paths import ALERT_RUNTIME
from checks.host import Host
from checks.samples import Store, StoreFullError


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "db") as store:
        yield store


def write(host: Host, store: Store | None, value: int) -> None:
    recall.remember(host, store, "key", recall.recall(host, store, "key"), {"value": value})


def value(host: Host, store: Store | None) -> object:
    return recall.recall(host, store, "key").get("value")


def test_nothing_is_empty(host: Host, store: Store) -> None:
    assert recall.recall(host, store, "key") == {}
    assert recall.recall(host, None, "key") == {}


def test_it_outlives_a_reboot(host: Host, store: Store) -> None:
    write(host, store, 1)
    host.path(f"{ALERT_RUNTIME}/key.json").unlink()
    assert value(host, store) == 1


def test_a_full_disk_forgets_nothing(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("no space")

    write(host, store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", full)
        write(host, store, 2)
        write(host, store, 3)
    assert value(host, store) == 3
    write(host, store, 4)
    host.path(f"{ALERT_RUNTIME}/key.json").unlink()
    assert value(host, store) == 4


def test_without_memory_the_store_is_enough(host: Host, store: Store) -> None:
    host.path("/run").write_text("no directory")
    write(host, store, 1)
    assert value(host, store) == 1


def test_nowhere_to_write_is_an_error(host: Host) -> None:
    host.path("/run").write_text("no directory")
    with pytest.raises(OSError, match="run"):
        write(host, None, 1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"written": "1"}', "null"])
def test_what_is_damaged_is_as_good_as_missing(host: Host, store: Store, text: str) -> None:
    store.put("key", text)
    recall.make_runtime_directory(host)
    host.path(f"{ALERT_RUNTIME}/key.json").write_text(text)
    assert recall.recall(host, store, "key") == {}


def test_only_root_reads_it(host: Host) -> None:
    write(host, None, 1)
    assert host.path(ALERT_RUNTIME).stat().st_mode & 0o777 == 0o700
    assert host.path(f"{ALERT_RUNTIME}/key.json").stat().st_mode & 0o777 == 0o600
