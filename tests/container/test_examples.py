"""The requests in docs/examples, put to the deployed gateway: each goes where the table in docs/OPENCLAW.md says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.servers.cloud import Cloud
from settings import Settings
from tests.container.clouds import deployed_with
from tests.container.machine import ROOT, Machine

pytestmark = pytest.mark.distribution(-1)

DOCS = ROOT / "docs"
LOCAL_MODEL = json.dumps(Settings().selected_model.name)
DEPLOYED_MODEL = json.dumps("tiny")
CLOUD_MODEL = "large"
"""What the examples call a model of the cloud."""


@dataclass(frozen=True)
class Example:
    """A row of the table. `header` is empty where none is needed."""

    file: Path
    header: str
    rule: str
    route: str


def examples() -> list[Example]:
    """The table's rows, in their order."""
    lines = (DOCS / "OPENCLAW.md").read_text().splitlines()
    rows = [line for line in lines if ".json](examples/" in line]
    found = []
    for row in rows:
        _, link, _, header, rule, route = (cell.strip(" `") for cell in row.strip("|").split("|"))
        file = DOCS / link.partition("](")[2].rstrip(")")
        found.append(Example(file, header, rule, route.replace(" ", "-")))
    return found


@pytest.fixture(scope="module")
def clouded(deployed: Machine) -> Iterator[Machine]:
    """The machine with a cloud; afterwards deployed without it."""
    with Cloud() as cloud, deployed_with(deployed, cloud, cloud_models=[CLOUD_MODEL]) as machine:
        yield machine


def test_every_example_is_in_the_table() -> None:
    assert {example.file for example in examples()} == set((DOCS / "examples").iterdir())


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example.file.stem}-{example.rule}")
def test_each_example_goes_where_the_table_says(clouded: Machine, example: Example) -> None:
    body = example.file.read_text().replace(LOCAL_MODEL, DEPLOYED_MODEL)
    headers = ["Content-Type: application/json", "X-LLM-Explain: 1", *filter(None, [example.header])]
    given = " ".join(f"-H {shlex.quote(header)}" for header in headers)
    status, _, said = clouded.http(
        f"{given} --data-binary {shlex.quote(body)} http://127.0.0.1:8765/v1/chat/completions"
    )
    assert status == 200, said
    explained = json.loads(said)
    assert (explained["rule"], explained["route"]) == (example.rule, example.route)
