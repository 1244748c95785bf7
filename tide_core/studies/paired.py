"""Paired comparison of two models over the same held-out sequences, by the bootstrap.

Both models are measured on every sequence; sequences are resampled, so what makes a sequence hard for both
cancels out. Ratios of sums are supported: a NELBO per token is ``sum of nll / sum of tokens``, and its
interval comes from resampling sequences, not tokens, because tokens of one sequence are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError

_DRAWS_AT_ONCE = 2_000_000
"""Bounds the memory of one batch of resamples to some 40 MB."""


@dataclass(frozen=True)
class PairedResult:
    """Difference ``a - b`` with its bootstrap interval.

    Attributes:
        difference: ``sum(a) / sum(weights) - sum(b) / sum(weights)`` on the sequences as they are.
        low: lower end of the percentile interval.
        high: upper end of the percentile interval.
        p_value: two-sided: twice the smaller share of resamples at or beyond 0, at least
            ``2 / (resamples + 1)`` and at most 1.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PairedResult:
    """Bootstrap interval of the difference between two models over the same sequences.

    Args:
        a: one number a sequence for the first model: a mean's summand, or the numerator of a ratio.
        b: the same sequences, in the same order, for the second model.
        weights: the ratio's denominator per sequence (such as its tokens); None counts each sequence as 1.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap resamples.
        level: coverage of the interval, in (0, 1).

    Raises:
        ShapeError: when the inputs are not one-dimensional, of one length, with at least one sequence.
        NonFiniteError: when a number is NaN or infinite.
        InvalidInputError: when a weight is not positive or a setting is out of range.
    """
    first, second, divisor = _check_inputs(a, b, weights)
    if resamples < 1 or not 0.0 < level < 1.0 or seed < 0:
        raise InvalidInputError(
            f"need resamples >= 1, level in (0, 1) and seed >= 0, got {resamples}, {level} and {seed}",
            param="resamples",
        )
    gaps = first - second
    differences = np.concatenate(list(_resample(gaps, divisor, seed, resamples)))
    low, high = np.quantile(differences, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    # The sample itself counts as one resample: no p-value of exactly 0.
    tail = min(int((differences <= 0.0).sum()), int((differences >= 0.0).sum())) + 1
    p_value = min(1.0, 2.0 * tail / (resamples + 1))
    return PairedResult(float(gaps.sum() / divisor.sum()), float(low), float(high), p_value)


def _resample(
    gaps: NDArray[np.float64], divisor: NDArray[np.float64], seed: int, resamples: int
) -> Iterator[NDArray[np.float64]]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    at_once = max(1, _DRAWS_AT_ONCE // gaps.size)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        chosen = generator.integers(gaps.size, size=(count, gaps.size))
        yield gaps[chosen].sum(axis=1) / divisor[chosen].sum(axis=1)


def _check_inputs(
    a: ArrayLike, b: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    first = np.asarray(a, dtype=np.float64)
    second = np.asarray(b, dtype=np.float64)
    divisor = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, values in (("a", first), ("b", second), ("weights", divisor)):
        if values.ndim != 1 or values.shape != first.shape or values.size == 0:
            raise ShapeError(
                f"{name} has shape {values.shape}; a, b and weights must be one number for each of the same "
                "sequences",
                param=name,
            )
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{name} holds a NaN or an infinity", param=name)
    if (divisor <= 0.0).any():
        raise InvalidInputError("every weight must be positive", param="weights")
    return first, second, divisor
