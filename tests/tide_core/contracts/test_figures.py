"""The table of figures: names are unique, series find their figure, and no other source spells a name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tide_core.contracts.figures import FIGURES, Figure, figure_of, gauges

ROOT = Path(__file__).resolve().parents[3]
COMMON_WORDS = {"loss", "lambda", "held_out"}
"""Names of figures that also mean something else in the code."""
FIELDS_OF_THAT_NAME = {("workers/demo/presentation.py", "tokens_per_second")}
"""Where the string names a field of `Speeds` in the manifest, not a series."""


def test_no_two_figures_share_a_name_or_a_gauge() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    names = [name for name, _ in gauges()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_series_finds_its_figure(figure: Figure) -> None:
    if figure.member_label:
        assert figure_of(figure.of("first")) == (figure, "first")
        assert (figure_of(figure.name) is not None) == bool(figure.whole)
    else:
        assert figure_of(figure.name) == (figure, "")
        assert figure_of(f"{figure.name}/first") is None
    assert figure.title
    assert figure.meaning.endswith(".")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_on_the_page_of_metrics(figure: Figure) -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    assert f"| `{figure.name}` |" in page
    assert figure.meaning in page


def test_no_other_source_spells_a_figures_name() -> None:
    names = {figure.name for figure in FIGURES} - COMMON_WORDS
    found = []
    for package in ("tide", "tide_core", "service", "workers", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            if place == "tide_core/contracts/figures.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    name = node.value.split("/")[0]
                    if name in names and (place, name) not in FIELDS_OF_THAT_NAME:
                        found.append(f"{place}:{node.lineno}: {node.value}")
    assert not found, "use the constants of tide_core/contracts/figures.py"
