"""Collecting the hosts' reports, and writing them into one page on this machine."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

from pyinfra import host, state
from pyinfra.api import Host, State, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.state import StateStage

from checks.goals import Verdict
from checks.week import Report
from facts.base import read
from facts.report import HostReport, ReportError
from operations.remote import call, fail
from reporting.page import Row, render, write
from tasks.tables import show

_collected: dict[str, Report | ReportError] = {}
"""By host, from `collected` to `written`."""


@operation()
def collected(days: int) -> Generator[PyinfraCommand, None, None]:
    """Ask the host for its report. A host that has none fails in `written` only: the page is to name it."""
    yield from ()
    if state.current_stage != StateStage.Execute:
        return
    found = read(HostReport, days=days)
    _collected[host.name] = found
    if isinstance(found, Report):
        rows = [(goal.title, goal.verdict.value, goal.text, goal.target, goal.detail) for goal in found.goals]
        show(f"Report: {host.name}", ("goal", "status", "measured", "goal is", "detail"), rows)
    host.noop("the report is here" if isinstance(found, Report) else "there is no report")


@operation()
def written(path: str) -> Generator[PyinfraCommand, None, None]:
    """Write the page, once; then fail for each host that gave no report or missed a goal."""
    if state.current_stage != StateStage.Execute:
        return
    if host == _writer(state):
        rows = _rows(state)
        try:
            write(Path(path), render(rows, time.time()))
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror or error}"
            yield call(lambda _s, host: fail(host, message))
            return
        host.log_styled(f"{path}: {len(rows)} host{'s' if len(rows) != 1 else ''}", bold=True)
    problem = _problem(_collected[host.name])
    if problem:
        yield call(lambda _s, host: fail(host, problem))
        return
    host.noop("no goal is missed")


def _inventory(state: State) -> list[Host]:
    """The hosts that were asked for, in the inventory's order."""
    return [each for each in state.inventory if state.is_host_in_limit(each)]


def _writer(state: State) -> Host:
    return next(each for each in _inventory(state) if each in state.active_hosts)


def _rows(state: State) -> list[Row]:
    return [_row(state, each) for each in _inventory(state)]


def _row(state: State, of: Host) -> Row:
    found = _collected.get(of.name)
    if isinstance(found, Report):
        return Row(of.name, found)
    if found is not None:
        return Row(of.name, problem=str(found))
    lost = of in state.activated_hosts
    return Row(of.name, problem="the connection was lost" if lost else "it could not be reached")


def _problem(found: Report | ReportError) -> str:
    if isinstance(found, ReportError):
        return f"No report: {found}"
    missed = [goal for goal in found.goals if goal.verdict is Verdict.FAIL]
    return "\n".join(f"{goal.title}: {goal.text}; goal: {goal.target}" for goal in missed)
