"""What one check found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checks.contract.config import Config
    from checks.host import Host


class Status(Enum):
    PASS = "PASS"  # noqa: S105 - no password
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Result:
    """One measured fact beside its limit.

    `value` and `limit` are text with units; `remedy` says what a failure means and the command that helps,
    and is empty on PASS. `group` is set by the runner.
    """

    name: str
    status: Status
    value: str
    limit: str = ""
    remedy: str = ""
    group: str = ""


Check = Callable[["Config", "Host"], Iterator[Result]]


def judge(name: str, good: bool, value: str, limit: str, remedy: str, otherwise: Status = Status.FAIL) -> Result:
    """PASS if `good`, else `otherwise` with the remedy."""
    if good:
        return Result(name, Status.PASS, value, limit)
    return Result(name, otherwise, value, limit, remedy)
