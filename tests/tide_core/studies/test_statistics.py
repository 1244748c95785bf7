"""Paired differences: estimates against loops, error rates by simulation, and what is refused."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.studies.statistics import (
    benjamini_hochberg,
    equivalence,
    holm,
    mcnemar,
    minimum_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    power,
    two_level_bootstrap,
)

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
    # Widened: the normal quantile sqrt(n / (n - 1)) t stands for the t quantile.
    reach = math.sqrt(4 / 3) * stats.t.ppf(0.95, 3)
    assert result.low == pytest.approx(float(np.quantile(gaps, stats.norm.cdf(-reach))))
    assert result.high == pytest.approx(float(np.quantile(gaps, stats.norm.cdf(reach))))
    beyond = min(sum(gap <= 0 for gap in gaps), sum(gap >= 0 for gap in gaps)) + 1
    score = stats.norm.isf(beyond / 201) / math.sqrt(4 / 3)
    assert result.p_value == pytest.approx(2 * stats.t.sf(score, 3))


def test_clusters_are_drawn_whole() -> None:
    generator = np.random.default_rng(3)
    labels = [f"text {number // 4}" for number in range(80)]
    shared = np.repeat(generator.normal(size=20), 4)
    a = shared + 0.1 * generator.normal(size=80)
    clustered = paired_bootstrap(a, np.zeros(80), clusters=labels, seed=0)
    sums = a.reshape(20, 4).sum(axis=1)
    whole = paired_bootstrap(sums, np.zeros(20), weights=np.full(20, 4.0), seed=0)
    assert (clustered.low, clustered.high) == pytest.approx((whole.low, whole.high))
    alone = paired_bootstrap(a, np.zeros(80), seed=0)
    assert clustered.high - clustered.low > 1.7 * (alone.high - alone.low)  # four items of one text are one


def _null_gaps(kind: str, items: int, generator: np.random.Generator) -> np.ndarray:
    if kind == "binary":
        return generator.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=items)
    return generator.normal(size=items)


def _is_near(count: int, trials: int, expected: float = 0.05) -> bool:
    """Within four Monte-Carlo standard errors, or below: a test may be too careful, never too bold."""
    return count / trials <= expected + 4 * math.sqrt(expected * (1 - expected) / trials)


@pytest.mark.parametrize("kind", ["normal", "binary"])
@pytest.mark.parametrize("items", [20, 164, 1319])
def test_no_difference_is_found_as_seldom_as_promised(items: int, kind: str) -> None:
    generator = np.random.default_rng(items)
    trials = 600 if items < 1000 else 200
    found, missed, flipped = 0, 0, 0
    for trial in range(trials):
        gaps = _null_gaps(kind, items, generator)
        result = paired_bootstrap(gaps, np.zeros(items), seed=trial, resamples=300)
        found += result.p_value < 0.05
        missed += not result.low <= 0.0 <= result.high
        flipped += paired_permutation(gaps, np.zeros(items), seed=trial, resamples=300).p_value <= 0.05
    assert _is_near(found, trials)
    assert _is_near(missed, trials)
    assert _is_near(flipped, trials)


@pytest.mark.parametrize("spread", [(0.0, 1.0), (0.2, 1.0), (0.5, 0.5), (1.0, 0.2)], ids=str)
@pytest.mark.parametrize(("seeds", "items"), [(3, 20), (3, 164), (5, 164), (10, 20)])
def test_two_levels_are_never_too_bold(seeds: int, items: int, spread: tuple[float, float]) -> None:
    """Whether the seeds differ not at all, a little, or are all that matters."""
    seed_sd, noise_sd = spread
    generator = np.random.default_rng(seeds * items)
    trials, found, missed = 400, 0, 0
    for trial in range(trials):
        gaps = (
            seed_sd * generator.normal(size=(seeds, 1))
            + generator.normal(size=(1, items)) * (noise_sd if seed_sd == 1.0 else 1.0)
            + noise_sd * generator.normal(size=(seeds, items))
        )
        result = two_level_bootstrap(gaps, np.zeros_like(gaps), seed=trial, resamples=200)
        found += result.p_value < 0.05
        missed += not result.low <= 0.0 <= result.high
    assert _is_near(found, trials)
    assert _is_near(missed, trials, 0.06)  # the shape's quantiles of 200 resamples wobble


def test_two_levels_see_a_gap_that_holds_for_seeds_and_items() -> None:
    generator = np.random.default_rng(4)
    hardness = 5 * generator.normal(size=(1, 100))
    b = hardness + 0.1 * generator.normal(size=(5, 100))
    a = b + 0.3 + 0.05 * generator.normal(size=(5, 1)) + 0.2 * generator.normal(size=(5, 100))
    result = two_level_bootstrap(a, b, seed=0)
    assert 0.2 < result.low < 0.3 < result.high < 0.45
    assert result == two_level_bootstrap(a, b, seed=0)
    same = two_level_bootstrap(a, a, seed=0, resamples=50)
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("gap", [0.1, 0.3, 0.7, -1.0])
def test_two_levels_without_any_spread_are_one_point(gap: float) -> None:
    result = two_level_bootstrap(np.full((3, 20), gap), np.zeros((3, 20)), seed=0, resamples=99)
    assert (result.difference, result.low, result.high, result.p_value) == (gap, gap, gap, 0.02)


def test_two_levels_count_noise_that_cancels_in_every_mean() -> None:
    gaps = np.array([[1.0, -1.0], [-1.0, 1.0]])
    result = two_level_bootstrap(gaps, np.zeros((2, 2)), seed=0, resamples=200)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.low < 0.0 < result.high


def test_a_permutation_of_few_items_is_counted_whole() -> None:
    gaps = [0.5, -0.2, 0.9, 1.4, 0.3, -0.1]
    sums = [abs(sum(s * g for s, g in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=6)]
    expected = sum(value >= abs(sum(gaps)) - 1e-9 for value in sums) / 64
    assert paired_permutation(gaps, np.zeros(6), seed=0).p_value == pytest.approx(expected)
    assert (
        paired_permutation(gaps, np.zeros(6), seed=0).p_value
        == paired_permutation(gaps, np.zeros(6), seed=9).p_value
    )
    many = np.random.default_rng(0).normal(0.4, 1.0, size=40)
    sampled = paired_permutation(many, np.zeros(40), seed=0, resamples=20_000).p_value
    assert sampled == pytest.approx(float(stats.ttest_1samp(many, 0.0).pvalue), rel=0.3)


def test_mcnemar_is_the_fair_coin_of_the_items_that_differ() -> None:
    a, b = [1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1, 0]
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b, result.difference) == (5, 1, 0.5)
    tail = sum(math.comb(6, k) for k in (5, 6)) / 2**6
    assert result.p_value == pytest.approx(2 * tail)
    assert mcnemar([1, 0], [1, 0]).p_value == 1.0


def test_adjusted_p_values_are_those_of_their_definitions() -> None:
    given = [0.04, 0.001, 0.03, 0.5, 0.02]
    order = sorted(range(5), key=lambda number: given[number])
    steps, running = {}, 0.0
    for rank, number in enumerate(order):
        running = max(running, min(1.0, (5 - rank) * given[number]))
        steps[number] = running
    assert holm(given) == pytest.approx([steps[number] for number in range(5)])
    falling, running = {}, 1.0
    for rank in reversed(range(5)):
        running = min(running, given[order[rank]] * 5 / (rank + 1))
        falling[order[rank]] = running
    assert benjamini_hochberg(given) == pytest.approx([falling[number] for number in range(5)])


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    generator = np.random.default_rng(5)
    false = sum(bool((holm(generator.uniform(size=8)) <= 0.05).any()) for _ in range(2000))
    assert _is_near(false, 2000)


def test_equivalence_needs_the_whole_interval_inside_the_margin() -> None:
    generator = np.random.default_rng(6)
    close = 0.01 + 0.2 * generator.normal(size=400)
    result = equivalence(close, np.zeros(400), margin=0.05)
    assert result.is_equivalent
    assert -0.05 < result.low < result.high < 0.05
    assert not equivalence(close[:20], np.zeros(20), margin=0.05).is_equivalent  # too few to show it
    assert equivalence([1.0, 1.0], [1.0, 1.0], margin=0.1).is_equivalent
    bold = sum(
        equivalence(0.05 + 0.2 * generator.normal(size=164), np.zeros(164), margin=0.05).is_equivalent
        for _ in range(1000)
    )
    assert _is_near(bold, 1000)


def test_power_is_how_often_a_simulated_study_finds_the_effect() -> None:
    generator = np.random.default_rng(7)
    found = sum(stats.ttest_1samp(0.3 + generator.normal(size=80), 0.0).pvalue < 0.05 for _ in range(2000))
    assert power(0.3, items=80, item_sd=1.0) == pytest.approx(found / 2000, abs=0.04)
    assert power(0.0, items=80, item_sd=1.0) == pytest.approx(0.05, abs=1e-6)
    smallest = minimum_detectable_effect(items=80, item_sd=1.0)
    assert power(smallest, items=80, item_sd=1.0) == pytest.approx(0.8, abs=1e-6)
    # The gain that TIDE reports, +1.53 points, with its unpaired standard error of 0.84.
    assert power(1.53, items=1000, item_sd=0.84 * math.sqrt(1000)) == pytest.approx(0.44, abs=0.02)


def test_more_seeds_help_where_seeds_differ_and_more_items_do_not() -> None:
    few = minimum_detectable_effect(items=1319, seeds=3, item_sd=0.1, seed_sd=0.5)
    assert minimum_detectable_effect(items=10_000, seeds=3, item_sd=0.1, seed_sd=0.5) == pytest.approx(
        few, rel=0.01
    )
    assert minimum_detectable_effect(items=1319, seeds=10, item_sd=0.1, seed_sd=0.5) < few / 2


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
    with pytest.raises(ShapeError, match="clusters"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], clusters=["x"], seed=0)
    with pytest.raises(ShapeError, match="one seed"):
        two_level_bootstrap([[1.0, 2.0]], [[1.0, 2.0]], seed=0)
    with pytest.raises(NonFiniteError):
        two_level_bootstrap([[1.0, math.inf]] * 2, [[1.0, 2.0]] * 2, seed=0)
    with pytest.raises(InvalidInputError, match="or 1"):
        mcnemar([0.5], [1.0])
    for p_values in ([], [[0.1]], [1.5], [math.nan]):
        for adjust in (holm, benjamini_hochberg):
            with pytest.raises(InvalidInputError):
                adjust(p_values)
    for options in ({"margin": 0.0}, {"margin": math.inf}, {"margin": 1.0, "level": 0.4}):
        with pytest.raises(InvalidInputError):
            equivalence([1.0, 2.0], [1.0, 2.0], **options)
    for options in ({"items": 1}, {"seeds": 0}, {"item_sd": -1.0}, {"item_sd": 0.0}, {"level": 1.0}):
        with pytest.raises(InvalidInputError):
            power(0.1, **({"items": 10, "item_sd": 1.0} | options))
    with pytest.raises(InvalidInputError, match="false finding"):
        minimum_detectable_effect(items=10, item_sd=1.0, power=0.01)


def test_one_item_says_nothing_of_the_spread() -> None:
    result = paired_bootstrap([2.0], [1.0], seed=0, resamples=10)
    assert (result.difference, result.low, result.high, result.p_value) == (1.0, -math.inf, math.inf, 1.0)
