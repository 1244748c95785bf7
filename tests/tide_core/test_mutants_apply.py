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
