"""The statistics of a study: paired differences, their intervals and tests, and what a study can see.

In: arrays of one number an item (or a seed and an item), the same items for both models. Out: differences
``a - b`` with intervals, p-values and verdicts. Pure functions; the same seed gives the same numbers.

Resampling is by Philox counters. A percentile interval of few items is too short, since the resamples spread
by ``sqrt((n - 1) / n)`` too little and know no t distribution; all intervals here are *expanded* percentile
intervals (Hesterberg 2015, arXiv 1411.5279, section 5.3): the quantile levels are widened until a normal
sample would give its t interval. From some hundred items on, the two are the same to three digits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError

_DRAWS_AT_ONCE = 2_000_000
"""Bounds the memory of one batch of resamples to some 40 MB."""
_SEEDS_DOUBT = 0.2
"""Degrees of freedom suppose the seeds' mean square at the upper end of an 80% bound. With the estimate
itself (Satterthwaite), 7.7% of null differences were found at 3 seeds and 1,319 items, instead of 5%."""
_EXACT_ITEMS = 16
"""Up to so many items, a permutation test counts every assignment of signs instead of sampling."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairedResult:
    """Difference ``a - b`` with its interval.

    Attributes:
        difference: on the items as they are.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class PermutationResult:
    """Difference ``a - b`` and the two-sided p-value of no difference."""

    difference: float
    p_value: float


@dataclass(frozen=True)
class McNemarResult:
    """Two models on items that are right or wrong.

    Attributes:
        only_a: items that only the first model solves.
        only_b: items that only the second model solves.
        difference: of the two shares solved, ``a - b``.
        p_value: two-sided, exact.
    """

    only_a: int
    only_b: int
    difference: float
    p_value: float


@dataclass(frozen=True)
class EquivalenceResult:
    """Two one-sided tests against a margin.

    Attributes:
        difference: ``a - b``.
        low, high: the interval of level ``2 * level - 1`` that lies inside the margin if both tests reject.
        p_value: the larger of the two one-sided ones.
        is_equivalent: whether the difference is shown to be smaller than the margin.
    """

    difference: float
    low: float
    high: float
    p_value: float
    is_equivalent: bool


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PairedResult:
    """Bootstrap interval of the difference between two models over the same items.

    Ratios of sums are supported: a NELBO per token is ``sum of nll / sum of tokens``, and its interval comes
    from resampling sequences, since the tokens of one sequence are not independent.

    Args:
        a: one number an item for the first model: a mean's summand, or the numerator of a ratio.
        b: the same items, in the same order, for the second model.
        weights: the ratio's denominator per item (such as its tokens); None counts each item as 1.
        clusters: a label per item; items of one label are drawn together (questions about one text, say).
        seed: of the resampling.
        resamples: number of bootstrap resamples.
        level: coverage of the interval, in (0, 1).

    Returns:
        With a single item (or cluster) the interval is unbounded: nothing is known of the spread.

    Raises:
        ShapeError: when the inputs are not one-dimensional, of one length, with at least one item.
        NonFiniteError: when a number is NaN or infinite.
        InvalidInputError: when a weight is not positive or a setting is out of range.
    """
    first, second, divisor = _check_pairs(a, b, weights)
    _check_settings(seed, resamples, level)
    gaps = first - second
    if clusters is not None:
        gaps, divisor = _sum_clusters(gaps, divisor, clusters)
    difference = float(gaps.sum() / divisor.sum())
    if gaps.size < 2:
        return PairedResult(difference, -math.inf, math.inf, 1.0)
    drawn = np.concatenate(list(_resample_ratio(gaps, divisor, seed, resamples)))
    freedom = gaps.size - 1.0
    return _expand(drawn, difference, math.sqrt(gaps.size / freedom), freedom, level)


def two_level_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> PairedResult:
    """Interval of a difference over training seeds and items at once: would it hold for new ones of both?

    Seeds and items are drawn independently (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics
    1(2)). The resamples give the interval's shape. Its width is the standard error of the two-way analysis of
    variance with random seeds and items times a t quantile, since resamples of three seeds spread too
    little. The p-value is that of the t statistic.

    Args:
        a: [seed, item], for the first model.
        b: [seed, item]: the same seeds and items.
        seed: of the resampling.
        resamples: number of bootstrap resamples.
        level: coverage of the interval.

    Raises:
        ShapeError: not two axes of one shape, or fewer than two seeds or items: compare items alone then.
        NonFiniteError: when a number is NaN or infinite.
        InvalidInputError: when a setting is out of range.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for name, values in (("a", first), ("b", second)):
        if values.ndim != 2 or values.shape != first.shape or min(values.shape) < 2:
            raise ShapeError(
                f"{name} has shape {values.shape}; a and b must be [seed, item] of one shape, with at "
                "least two of each. With one seed, compare items alone by paired_bootstrap.",
                param=name,
            )
        _check_finite(name, values)
    _check_settings(seed, resamples, level)
    gaps = first - second
    if np.ptp(gaps) == 0.0:  # no spread at all: rounding alone would make an interval and a p-value
        difference = float(gaps.flat[0])
        return PairedResult(difference, difference, difference, 2.0 / (resamples + 1) if difference else 1.0)
    drawn = np.concatenate(list(_resample_two_levels(gaps, seed, resamples)))
    difference, spread = float(gaps.mean()), float(drawn.std())
    error, freedom = _two_way_error(gaps)
    shares = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    # The resamples give the shape, the analysis of variance the width: quantiles of three seeds have an end.
    width = error / spread * float(stats.t.ppf(shares[1], freedom) / stats.norm.ppf(shares[1]))
    low, high = difference + width * (np.quantile(drawn, shares) - difference)
    p_value = 2.0 * float(stats.t.sf(abs(difference) / error, freedom))
    return PairedResult(difference, float(low), float(high), min(1.0, p_value))


def paired_permutation(
    a: ArrayLike, b: ArrayLike, *, seed: int, resamples: int = 10_000
) -> PermutationResult:
    """Sign-flip test: under no difference, each item's ``a - b`` is as likely positive as negative.

    Exact up to 16 items; else by random signs, the sample itself counted as one of them (Phipson and Smyth
    2010), so that no p-value is 0.

    Raises:
        ShapeError, NonFiniteError, InvalidInputError: as `paired_bootstrap`.
    """
    first, second, _ = _check_pairs(a, b, None)
    _check_settings(seed, resamples, 0.95)
    gaps = first - second
    bound = abs(gaps.sum()) * (1.0 - 1e-12)  # sums in another order differ in the last bits
    if gaps.size <= _EXACT_ITEMS:
        bits = (np.arange(2**gaps.size)[:, None] >> np.arange(gaps.size)) & 1
        p_value = float((abs((1 - 2 * bits) @ gaps) >= bound).mean())
    else:
        beyond = sum(int((abs(sums) >= bound).sum()) for sums in _flip_signs(gaps, seed, resamples))
        p_value = (beyond + 1) / (resamples + 1)
    return PermutationResult(float(gaps.mean()), p_value)


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemarResult:
    """McNemar's test in its exact form: of the items that one model alone solves, is it a fair coin whose?

    Args:
        a: 0 or 1 an item, for the first model.
        b: the same items.

    Raises:
        ShapeError: as `paired_bootstrap`.
        InvalidInputError: when a value is neither 0 nor 1.
    """
    first, second, _ = _check_pairs(a, b, None)
    for name, values in (("a", first), ("b", second)):
        if not np.isin(values, (0.0, 1.0)).all():
            raise InvalidInputError(f"{name} must hold 0 (wrong) or 1 (right) for each item", param=name)
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    discordant = only_a + only_b
    p_value = float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemarResult(only_a, only_b, (only_a - only_b) / first.size, p_value)


def holm(p_values: ArrayLike) -> Array:
    """P-values adjusted for so many comparisons, in their order: Holm's step-down (1979).

    Rejecting those at most ``alpha`` keeps the chance of any false rejection at ``alpha``, whatever the
    dependence between the tests.

    Raises:
        ShapeError, InvalidInputError: not one axis of numbers in [0, 1].
    """
    given = _check_p_values(p_values)
    order = np.argsort(given, kind="stable")
    steps = given[order] * (given.size - np.arange(given.size))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """P-values adjusted to the false discovery rate (Benjamini and Hochberg 1995), in their order.

    Raises:
        ShapeError, InvalidInputError: not one axis of numbers in [0, 1].
    """
    given = _check_p_values(p_values)
    return np.asarray(stats.false_discovery_control(given, method="bh"), dtype=np.float64)


def equivalence(a: ArrayLike, b: ArrayLike, *, margin: float, level: float = 0.95) -> EquivalenceResult:
    """Two one-sided t tests (Schuirmann 1987): is the difference shown to lie within ``-margin .. margin``?

    Not being significantly different is no proof of being equal; this is.

    Args:
        a: one number an item, for the first model.
        b: the same items.
        margin: the largest difference that does not matter, stated before the data are seen.
        level: one minus the chance of calling models equivalent that are not.

    Raises:
        ShapeError, NonFiniteError: as `paired_bootstrap`; also with a single item.
        InvalidInputError: ``margin`` is not positive, or ``level`` not in (0.5, 1).
    """
    first, second, _ = _check_pairs(a, b, None)
    if not (margin > 0 and math.isfinite(margin)):
        raise InvalidInputError(f"margin must be positive, got {margin}", param="margin")
    if not 0.5 < level < 1.0:
        raise InvalidInputError(f"level must lie in (0.5, 1), got {level}", param="level")
    if first.size < 2:
        raise ShapeError("equivalence needs at least two items", param="a")
    gaps = first - second
    difference = float(gaps.mean())
    error = float(gaps.std(ddof=1)) / math.sqrt(gaps.size)
    if error == 0.0:
        inside = abs(difference) < margin
        return EquivalenceResult(difference, difference, difference, 0.0 if inside else 1.0, inside)
    student = stats.t(gaps.size - 1)
    reach = float(student.ppf(level)) * error
    p_value = float(
        max(student.sf((difference + margin) / error), student.cdf((difference - margin) / error))
    )
    return EquivalenceResult(
        difference, difference - reach, difference + reach, p_value, p_value <= 1.0 - level
    )


def power(
    effect: float,
    *,
    items: int,
    seeds: int = 1,
    item_sd: float,
    seed_sd: float = 0.0,
    noise_sd: float = 0.0,
    level: float = 0.95,
) -> float:
    """Chance that a study finds a true difference, by a two-sided t test: to be asked before the study.

    The difference of seed s on item i is ``effect + seed effect + item effect + noise``; its mean has the
    variance ``seed_sd^2 / seeds + item_sd^2 / items + noise_sd^2 / (seeds * items)``.

    Args:
        effect: the true difference ``a - b``.
        items: items that both models answer.
        seeds: training seeds of each arm; with 1, what is found holds for these two runs alone.
        item_sd: spread of the difference between items, after averaging over seeds.
        seed_sd: spread of the mean difference between seeds.
        noise_sd: spread that belongs to one seed on one item.
        level: one minus the chance of a false finding.

    Raises:
        InvalidInputError: a count below 2 items or 1 seed, a negative spread, no spread at all, or a level
            outside (0, 1).
    """
    error, freedom = _planned_error(items, seeds, item_sd, seed_sd, noise_sd, level)
    return _chance(effect, error, freedom, level)


def minimum_detectable_effect(
    *,
    items: int,
    seeds: int = 1,
    item_sd: float,
    seed_sd: float = 0.0,
    noise_sd: float = 0.0,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """The smallest true difference that such a study finds with the asked chance (see `power`).

    Raises:
        InvalidInputError: as `power`; also where ``power`` is not between ``1 - level`` and 1.
    """
    error, freedom = _planned_error(items, seeds, item_sd, seed_sd, noise_sd, level)
    if not 1.0 - level < power < 1.0:
        raise InvalidInputError(
            f"power must lie between {1.0 - level:g} (a false finding) and 1, got {power}", param="power"
        )
    low, high = 0.0, error
    while _chance(high, error, freedom, level) < power:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _chance(middle, error, freedom, level) < power else (low, middle)
    return high


def _expand(drawn: Array, difference: float, widening: float, freedom: float, level: float) -> PairedResult:
    """Interval and p-value of resampled differences whose quantile levels are widened.

    A standard normal quantile ``z`` of the resamples stands for ``widening``-times less of a t quantile:
    ``z = widening * t``.
    """
    reach = widening * float(stats.t.ppf((1.0 + level) / 2.0, freedom))
    low, high = np.quantile(drawn, stats.norm.cdf([-reach, reach]))
    # The sample itself counts as one resample: no p-value of exactly 0.
    tail = (min(int((drawn <= 0.0).sum()), int((drawn >= 0.0).sum())) + 1) / (drawn.size + 1)
    score = float(stats.norm.isf(tail)) / widening
    p_value = min(1.0, 2.0 * float(stats.t.sf(score, freedom))) if score > 0 else 1.0
    return PairedResult(difference, float(low), float(high), p_value)


def _resample_ratio(gaps: Array, divisor: Array, seed: int, resamples: int) -> Iterator[Array]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    at_once = max(1, _DRAWS_AT_ONCE // gaps.size)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        chosen = generator.integers(gaps.size, size=(count, gaps.size))
        yield gaps[chosen].sum(axis=1) / divisor[chosen].sum(axis=1)


def _resample_two_levels(gaps: Array, seed: int, resamples: int) -> Iterator[Array]:
    """How often each seed and item is drawn weighs its rows and columns."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    seeds, items = gaps.shape
    at_once = max(1, _DRAWS_AT_ONCE // items)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        rows = generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=count)
        columns = generator.multinomial(items, np.full(items, 1.0 / items), size=count)
        yield ((rows @ gaps) * columns).sum(axis=1) / gaps.size


def _two_way_error(gaps: Array) -> tuple[float, float]:
    """Standard error of the mean of [seed, item] with both random, and its degrees of freedom."""
    seeds, items = gaps.shape
    of_seed, of_item, mean = gaps.mean(axis=1), gaps.mean(axis=0), gaps.mean()
    rest = gaps - of_seed[:, None] - of_item[None, :] + mean
    of_seeds = items * float(((of_seed - mean) ** 2).sum()) / (seeds - 1)
    of_items = seeds * float(((of_item - mean) ** 2).sum()) / (items - 1)
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (items - 1))
    # Where the noise happens to exceed an effect's own square, that effect's estimate is 0, not negative.
    total = max(of_seeds + of_items - of_rest, of_seeds, of_items, of_rest)
    upper = of_seeds * (seeds - 1) / float(stats.chi2.ppf(_SEEDS_DOUBT, seeds - 1))
    share = upper / (upper + max(0.0, of_items - of_rest)) if upper > 0 else 0.0
    freedom = 1.0 / (share**2 / (seeds - 1) + (1.0 - share) ** 2 / (items - 1))
    return math.sqrt(total / gaps.size), max(1.0, freedom)


def _flip_signs(gaps: Array, seed: int, resamples: int) -> Iterator[Array]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    at_once = max(1, _DRAWS_AT_ONCE // gaps.size)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        signs = 1 - 2 * generator.integers(2, size=(count, gaps.size), dtype=np.int8)
        yield signs @ gaps


def _planned_error(
    items: int, seeds: int, item_sd: float, seed_sd: float, noise_sd: float, level: float
) -> tuple[float, float]:
    if items < 2 or seeds < 1:
        raise InvalidInputError(
            f"a study needs at least 2 items and 1 seed, got {items} and {seeds}", param="items"
        )
    spreads = {"item_sd": item_sd, "seed_sd": seed_sd, "noise_sd": noise_sd}
    for name, value in spreads.items():
        if not (value >= 0 and math.isfinite(value)):
            raise InvalidInputError(f"{name} must be 0 or more, got {value}", param=name)
    if not any(spreads.values()):
        raise InvalidInputError("without any spread every difference is found", param="item_sd")
    if not 0.0 < level < 1.0:
        raise InvalidInputError(f"level must lie in (0, 1), got {level}", param="level")
    of_seeds = seed_sd**2 / seeds
    of_items = item_sd**2 / items + noise_sd**2 / (items * seeds)
    total = of_seeds + of_items
    parts = of_items**2 / (items - 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    return math.sqrt(total), total**2 / parts if parts > 0 else float(max(1, seeds - 1))


def _chance(effect: float, error: float, freedom: float, level: float) -> float:
    """Chance that a two-sided t test rejects: the noncentral t distribution beyond the critical value."""
    critical = float(stats.t.ppf((1.0 + level) / 2.0, freedom))
    shift = abs(effect) / error
    above, below = stats.nct.sf(critical, freedom, shift), stats.nct.cdf(-critical, freedom, shift)
    return float(min(1.0, above + (below if math.isfinite(below) else 0.0)))


def _sum_clusters(gaps: Array, divisor: Array, clusters: Sequence[Hashable]) -> tuple[Array, Array]:
    if len(clusters) != gaps.size:
        raise ShapeError(
            f"clusters names {len(clusters)} items; it must have one label for each of the {gaps.size}",
            param="clusters",
        )
    numbers = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[label] for label in clusters])
    sums = [np.bincount(index, weights=values).astype(np.float64) for values in (gaps, divisor)]
    return sums[0], sums[1]


def _check_pairs(a: ArrayLike, b: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    first = np.asarray(a, dtype=np.float64)
    second = np.asarray(b, dtype=np.float64)
    divisor = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, values in (("a", first), ("b", second), ("weights", divisor)):
        if values.ndim != 1 or values.shape != first.shape or values.size == 0:
            raise ShapeError(
                f"{name} has shape {values.shape}; a, b and weights must be one number for each of the same "
                "items",
                param=name,
            )
        _check_finite(name, values)
    if (divisor <= 0.0).any():
        raise InvalidInputError("every weight must be positive", param="weights")
    return first, second, divisor


def _check_finite(name: str, values: Array) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{name} holds a NaN or an infinity", param=name)


def _check_settings(seed: int, resamples: int, level: float) -> None:
    if resamples < 1 or not 0.0 < level < 1.0 or seed < 0:
        raise InvalidInputError(
            f"need resamples >= 1, level in (0, 1) and seed >= 0, got {resamples}, {level} and {seed}",
            param="resamples",
        )


def _check_p_values(p_values: ArrayLike) -> Array:
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or given.size == 0:
        raise ShapeError(f"p_values has shape {given.shape}; it must be a list of numbers", param="p_values")
    if not ((given >= 0) & (given <= 1)).all():
        raise InvalidInputError("every p-value must lie in [0, 1]", param="p_values")
    return given
