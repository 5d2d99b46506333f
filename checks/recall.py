"""What alerts and healing remember between runs: in the store, and beside it in memory for when the disk is full.

A state that could not be written would raise the same alert at every run. So each is written to both places, and the
one that was written last is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from checks.contract.paths import ALERT_RUNTIME
from checks.samples import Store, StoreError

if TYPE_CHECKING:
    from checks.host import Host

_NUMBER = "written"


def recall(host: Host, store: Store | None, key: str) -> dict[str, Any]:
    """What was remembered last under this key; empty if nothing can be read."""
    found = [each for each in (_from_memory(host, key), _from_store(store, key)) if each]
    return max(found, key=lambda each: int(each[_NUMBER]), default={})


def remember(
    host: Host, store: Store | None, key: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a state in the place of the one before and return it; raises OSError where neither place takes it."""
    written = {**now, _NUMBER: int(before.get(_NUMBER, 0)) + 1}
    text = json.dumps(written, separators=(",", ":"))
    stored = False
    if store is not None:
        try:
            store.put(key, text)
            stored = True
        except StoreError:
            pass
    try:
        make_runtime_directory(host)
        host.replace(f"{ALERT_RUNTIME}/{key}.json", text, 0o600)
    except OSError:
        if not stored:
            raise
    return written


def make_runtime_directory(host: Host) -> None:
    """The directory in memory that is root's alone; it is gone after a reboot."""
    host.path(ALERT_RUNTIME).mkdir(mode=0o700, parents=True, exist_ok=True)


def _from_memory(host: Host, key: str) -> dict[str, Any]:
    try:
        return _parsed(host.read(f"{ALERT_RUNTIME}/{key}.json"))
    except OSError:
        return {}


def _from_store(store: Store | None, key: str) -> dict[str, Any]:
    try:
        return _parsed(store.get(key)) if store else {}
    except StoreError:
        return {}


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text or "")
    except ValueError:
        return {}
    return data if isinstance(data, dict) and isinstance(data.get(_NUMBER), int) else {}
