"""Looks at a study before its end, without paying for them in false findings.

In: when a study is looked at, as shares of its data. Out: the p-value that a look must reach to stop there.
The chance of a false finding is spent little by little (Lan and DeMets 1983): looking five times at 5% each
would find something in 14% of the studies in which there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tide_core.contracts.errors import InvalidInputError

SpendingRule = Literal["obrien_fleming", "pocock"]
_REACH, _STEPS = 8.0, 2001
"""The grid of the statistic: so many standard deviations either way, in so many steps."""


def spent_alpha(share: float, *, level: float = 0.95, rule: SpendingRule = "obrien_fleming") -> float:
    """How much of ``alpha = 1 - level`` may be spent once a share of the data is in (two-sided).

    ``obrien_fleming``: on each side ``2 - 2 Phi(z / sqrt(share))`` with ``z`` the quantile of
    ``1 - alpha / 4``: next to nothing early. ``pocock``: ``alpha ln(1 + (e - 1) share)``: about evenly.

    Raises:
        InvalidInputError: a share outside (0, 1], or a level outside (0, 1).
    """
    if not 0.0 < share <= 1.0:
        raise InvalidInputError(f"a look needs a share of the data in (0, 1], got {share}", param="looks")
    if not 0.0 < level < 1.0:
        raise InvalidInputError(f"level must lie in (0, 1), got {level}", param="level")
    alpha = 1.0 - level
    match rule:
        case "obrien_fleming":
            return float(4.0 * stats.norm.sf(stats.norm.isf(alpha / 4.0) / math.sqrt(share)))
        case "pocock":
            return alpha * math.log(1.0 + (math.e - 1.0) * share)


def sequential_thresholds(
    looks: Sequence[float], *, level: float = 0.95, rule: SpendingRule = "obrien_fleming"
) -> list[float]:
    """The two-sided p-value at or below which each look may stop the study.

    The statistics of the looks are joint normal with independent increments (Armitage, McPherson and Rowe
    1969); the chance of passing no bound so far is carried on a grid.

    Args:
        looks: rising shares of the data, the last one 1.
        level: one minus the chance of a false finding over all looks together.
        rule: see `spent_alpha`.

    Raises:
        InvalidInputError: the shares do not rise or do not end at 1; or as `spent_alpha`.
    """
    shares = list(looks)
    if not shares or shares[-1] != 1.0 or any(b <= a for a, b in pairwise(shares)):
        raise InvalidInputError(
            f"looks must be rising shares of the data that end at 1, got {shares}", param="looks"
        )
    grid = np.linspace(-_REACH, _REACH, _STEPS)
    density: NDArray[np.float64] | None = None
    thresholds, spent, before = [], 0.0, 0.0
    for share in shares:
        density = _carry_on(grid, density, before, share)
        target = spent_alpha(share, level=level, rule=rule)
        bound = _find_bound(grid, density, target - spent)
        thresholds.append(float(2.0 * stats.norm.sf(bound)))
        density = np.where(abs(grid) < bound, density, 0.0)
        spent, before = target, share
    return thresholds


def _carry_on(
    grid: NDArray[np.float64], density: NDArray[np.float64] | None, before: float, share: float
) -> NDArray[np.float64]:
    """Density of the z statistic at a look, of the studies that no earlier look has stopped."""
    if density is None:
        return np.asarray(stats.norm.pdf(grid), dtype=np.float64)
    step = grid[1] - grid[0]
    # Brownian motion: z(share) sqrt(share) = z(before) sqrt(before) + a normal of variance share - before.
    mean = grid[None, :] * math.sqrt(before / share)
    kernel = stats.norm.pdf(grid[:, None], mean, math.sqrt((share - before) / share))
    return np.asarray(kernel @ density * step, dtype=np.float64)


def _find_bound(grid: NDArray[np.float64], density: NDArray[np.float64], alpha: float) -> float:
    """Where both tails of a symmetric density together hold ``alpha``."""
    step = grid[1] - grid[0]
    upper = np.cumsum(density[::-1])[::-1] * step  # mass at and above each point
    upper = upper - density * step / 2.0
    return float(np.interp(-alpha / 2.0, -upper, grid))
