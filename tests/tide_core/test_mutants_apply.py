"""The list of mutants stays in step with the code that it breaks."""

import ast
from pathlib import Path

import pytest

from tests.support.method_mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.before[:40]}")
def test_each_mutant_changes_one_place_and_still_parses(mutant: Mutant) -> None:
    text = (ROOT / mutant.module).read_text()
    assert mutant.before in text
    changed = text.replace(mutant.before, mutant.after, 1)
    assert changed != text
    ast.parse(changed)


def test_there_are_enough_mutants() -> None:
    assert len({(mutant.module, mutant.before, mutant.after) for mutant in MUTANTS}) == len(MUTANTS) >= 40


def test_the_page_of_verification_holds_every_mutant() -> None:
    """After a change: `python tests/support/method_mutants.py MODULE` prints the rows of one module."""
    page = (ROOT / "docs/verification.md").read_text()
    for mutant in MUTANTS:
        before, after = (" ".join(text.replace("|", "\\|").split()) for text in (mutant.before, mutant.after))
        assert f"| {mutant.module} | `{before}` | `{after}` | yes |" in page, f"no row for {mutant.before}"
    assert page.count("| yes |") == len(MUTANTS)
