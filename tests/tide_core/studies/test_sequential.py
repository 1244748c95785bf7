"""Sequential looks: published bounds, the error rate by simulation, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from tide_core.contracts.errors import InvalidInputError
from tide_core.studies.sequential import sequential_thresholds, spent_alpha

FIVE = (0.2, 0.4, 0.6, 0.8, 1.0)
# Two-sided bounds at 5% for five equal looks, as tables of Lan-DeMets spending give them.
PUBLISHED = {
    "obrien_fleming": (4.877, 3.357, 2.680, 2.290, 2.031),
    "pocock": (2.438, 2.427, 2.410, 2.397, 2.386),
}


@pytest.mark.parametrize("rule", PUBLISHED)
def test_bounds_are_the_published_ones(rule: str) -> None:
    found = [float(stats.norm.isf(p / 2)) for p in sequential_thresholds(FIVE, rule=rule)]
    assert found == pytest.approx(PUBLISHED[rule], abs=2e-3)


@pytest.mark.parametrize("rule", PUBLISHED)
def test_looking_five_times_costs_what_one_look_does(rule: str) -> None:
    steps = np.random.default_rng(0).normal(size=(100_000, 5)) * np.sqrt(0.2)
    scores = np.cumsum(steps, axis=1) / np.sqrt(FIVE)
    thresholds = np.array(sequential_thresholds(FIVE, rule=rule))
    stopped = (2 * stats.norm.sf(abs(scores)) <= thresholds).any(axis=1).mean()
    assert stopped == pytest.approx(0.05, abs=0.003)


def test_one_look_at_the_end_is_the_plain_test_and_everything_is_spent_there() -> None:
    assert sequential_thresholds([1.0]) == pytest.approx([0.05], abs=1e-4)
    for rule in PUBLISHED:
        assert spent_alpha(1.0, rule=rule) == pytest.approx(0.05)
        assert 0 < spent_alpha(0.3, rule=rule) < spent_alpha(0.6, rule=rule) < 0.05


@pytest.mark.parametrize("looks", [[], [0.5], [0.5, 0.4, 1.0], [0.0, 1.0], [0.5, 1.5]], ids=str)
def test_bad_looks_are_refused(looks: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        sequential_thresholds(looks)


def test_a_bad_level_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="level"):
        sequential_thresholds([1.0], level=1.0)
