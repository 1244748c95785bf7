"""Documents lead to things that exist, and every page can be reached."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FIRST_LINES = 8
"""Lines of a module docstring in which what comes in and what goes out must be said."""


def links_of(document: Path) -> list[str]:
    """Targets of a document's links into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    return [target for target in found if not target.startswith(("http", "mailto:"))]


def anchors_of(document: Path) -> set[str]:
    """What a link may name after `#`: the headings, as GitHub spells them in addresses."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def way_of_a_job() -> str:
    """The numbered list in the architecture page."""
    text = (ROOT / "docs/architecture.md").read_text()
    return text.split("## One job in ten links")[1].split("\n## ")[0]


def linked_modules() -> list[str]:
    """Python files that the architecture page links to, from the root."""
    targets = re.findall(r"\]\(\.\./([\w/]+\.py)\)", (ROOT / "docs/architecture.md").read_text())
    return sorted(set(targets))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in links_of(document):
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), f"{document.name} points at {target}"
        if anchor:
            assert anchor in anchors_of(place), f"{document.name} points at {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = {START}, [START]
    while ahead:
        page = ahead.pop()
        for target in links_of(page):
            place = (page.parent / target.split("#")[0]).resolve()
            if place.suffix == ".md" and place not in reached:
                reached.add(place)
                ahead.append(place)
    missing = sorted(str(page.relative_to(ROOT)) for page in DOCUMENTS if page not in reached)
    assert not missing, f"link these pages from docs/README.md or docs/decisions/README.md: {missing}"


def test_the_way_of_a_job_has_ten_links() -> None:
    numbers = re.findall(r"^(\d+)\. ", way_of_a_job(), flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]
    for entry in re.split(r"^\d+\. ", way_of_a_job(), flags=re.MULTILINE)[1:]:
        assert re.search(r"\.py\)", entry), f"a link without a module: {entry}"


@pytest.mark.parametrize("module", linked_modules())
def test_a_linked_module_says_what_comes_in_and_what_goes_out(module: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / module).read_text())) or ""
    beginning = "\n".join(docstring.splitlines()[:FIRST_LINES])
    assert re.search(r"(?s)\bIn: \S.*\bOut: \S", beginning), (
        f"the docstring of {module} must say 'In: ... Out: ...' in its first {FIRST_LINES} lines"
    )


def test_every_decision_names_the_check_that_enforces_it() -> None:
    for note in (ROOT / "docs/decisions").glob("0*.md"):
        assert "**Enforced by.**" in note.read_text(), note.name
