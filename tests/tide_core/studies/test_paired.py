"""The paired bootstrap: its estimate, its interval's coverage, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.studies.paired import paired_bootstrap

PAIRS = st.lists(
    st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.floats(0.5, 20)), min_size=1, max_size=20
)


@settings(max_examples=50)
@given(PAIRS)
def test_the_difference_is_one_of_ratios_of_sums(pairs: list[tuple[float, float, float]]) -> None:
    a, b, weights = (list(column) for column in zip(*pairs, strict=True))
    result = paired_bootstrap(a, b, weights=weights, seed=0, resamples=50)
    assert result.difference == pytest.approx(sum(a) / sum(weights) - sum(b) / sum(weights), abs=1e-9)
    plain = paired_bootstrap(a, b, seed=0, resamples=50)
    assert plain.difference == pytest.approx((sum(a) - sum(b)) / len(a), abs=1e-9)
    assert result.low <= result.high
    assert 0.0 < result.p_value <= 1.0


def test_the_interval_equals_a_loop_over_the_same_resamples() -> None:
    a, b, weights = [3.0, 1.0, 4.0, 1.5], [2.5, 1.5, 3.0, 1.0], [2.0, 1.0, 3.0, 1.0]
    result = paired_bootstrap(a, b, weights=weights, seed=5, resamples=200, level=0.9)
    rows = np.random.Generator(np.random.Philox(key=5)).integers(4, size=(200, 4))
    gaps = [sum(a[i] - b[i] for i in row) / sum(weights[i] for i in row) for row in rows.tolist()]
    assert result.low == pytest.approx(float(np.quantile(gaps, 0.05)))
    assert result.high == pytest.approx(float(np.quantile(gaps, 0.95)))
    beyond = min(sum(gap <= 0 for gap in gaps), sum(gap >= 0 for gap in gaps)) + 1
    assert result.p_value == pytest.approx(min(1.0, 2 * beyond / 201))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits, rejections, trials = 0, 0, 300
    for trial in range(trials):
        hardness = generator.normal(size=80) * 5
        a = hardness + generator.normal(size=80)
        b = hardness + generator.normal(size=80)
        result = paired_bootstrap(a, b, seed=trial, resamples=400)
        hits += result.low <= 0.0 <= result.high
        rejections += result.p_value < 0.05
    assert 0.90 <= hits / trials <= 0.98
    assert rejections / trials <= 0.10


def test_pairing_finds_a_gap_that_hard_sequences_would_hide() -> None:
    generator = np.random.default_rng(1)
    hardness = generator.normal(size=200) * 10
    result = paired_bootstrap(hardness + 0.2 + 0.1 * generator.normal(size=200), hardness, seed=0)
    assert result.low > 0.15
    assert result.p_value < 0.001


def test_the_seed_fixes_the_interval_and_equal_models_differ_by_nothing() -> None:
    a, b = [1.0, 2.0, 4.0], [1.5, 2.0, 3.0]
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3, resamples=100) != paired_bootstrap(a, b, seed=4, resamples=100)
    same = paired_bootstrap(a, a, seed=0, resamples=100)
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_large_studies_are_resampled_in_batches() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=3000), generator.normal(size=3000)
    result = paired_bootstrap(a, b, seed=0, resamples=1500)
    assert result.high - result.low == pytest.approx(2 * 1.96 * math.sqrt(2 / 3000), rel=0.1)


def test_bad_input_is_refused() -> None:
    for a, b, weights, param in (
        ([1.0], [1.0, 2.0], None, "b"),
        ([], [], None, "a"),
        ([[1.0]], [[1.0]], None, "a"),
        ([1.0], [1.0], [1.0, 2.0], "weights"),
    ):
        with pytest.raises(ShapeError) as caught:
            paired_bootstrap(a, b, weights=weights, seed=0)
        assert caught.value.param == param
    with pytest.raises(NonFiniteError):
        paired_bootstrap([math.nan], [1.0], seed=0)
    with pytest.raises(InvalidInputError):
        paired_bootstrap([1.0], [1.0], weights=[0.0], seed=0)
    for options in ({"resamples": 0}, {"level": 1.0}, {"seed": -1}):
        with pytest.raises(InvalidInputError):
            paired_bootstrap([1.0], [1.0], **({"seed": 0} | options))
