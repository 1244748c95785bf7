"""Documents point at things that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http", "#", "mailto:")):
            assert (document.parent / target.split("#")[0]).exists(), f"{document.name} points at {target}"


def test_the_way_of_a_job_has_ten_links() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    way = text.split("## One job in ten links")[1].split("\n## ")[0]
    assert re.findall(r"^(\d+)\. ", way, flags=re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_every_decision_names_the_check_that_enforces_it() -> None:
    for note in (ROOT / "docs/decisions").glob("0*.md"):
        assert "**Enforced by.**" in note.read_text(), note.name
