"""What the documents say of this checkout is so."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SETUP = (ROOT / "docs" / "SETUP.md").read_text()
FAULTS = re.findall(r"^\| (\d+) \| (.+?) \| .+? \| `(?:tests/)?((?:vm/)?\w+\.py)::(\w+)` \|$", SETUP, re.MULTILINE)


def test_every_fault_of_the_table_is_one_of_its_own_and_has_its_test() -> None:
    assert [int(number) for number, *_ in FAULTS] == list(range(1, len(FAULTS) + 1))
    assert len(FAULTS) == len(re.findall(r"^\| \d+ \| .*::", SETUP, re.MULTILINE)) >= 40
    assert len({fault for _, fault, *_ in FAULTS}) == len({test for *_, test in FAULTS}) == len(FAULTS)
    for _, _, file, test in FAULTS:
        path = ROOT / "tests" / (file if file.startswith("vm/") else f"container/{file}")
        assert f"def {test}(" in path.read_text(), f"{path} has no {test}"


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = {page: page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    assert len(pages) > 5
    for page, text in pages.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"
