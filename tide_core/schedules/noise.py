"""Noise schedules of masked diffusion: how much of a sequence is masked at a timestep.

``alpha(t)`` is the probability that a token survives at timestep ``t``; a token is masked with probability
``1 - alpha(t)``. The cross-entropy weight is ``w(t) = -alpha'(t) / (1 - alpha(t))`` (MDLM, arXiv 2406.07524,
and BD3LM, arXiv 2503.09573). The reference code of TIDE (arXiv 2604.26951) adds 1e-6 to that denominator;
here the weight is exact, because timesteps start at 1e-3.

All methods take a Python float, a NumPy array or a torch tensor and return the same kind; nothing here
needs torch to be imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    Time = TypeVar("Time", float, NDArray[np.float64], Tensor)
else:
    # Run-time type checks must not have to import torch either.
    Time = TypeVar("Time")


@runtime_checkable
class NoiseSchedule(Protocol):
    """What corruption and cross-entropy need to know about a schedule."""

    def alpha(self, t: Time) -> Time:
        """Probability that a token survives at timestep ``t``."""
        ...

    def alpha_derivative(self, t: Time) -> Time:
        """Derivative of ``alpha`` with respect to ``t`` (never positive)."""
        ...

    def weight(self, t: Time) -> Time:
        """Cross-entropy weight ``-alpha'(t) / (1 - alpha(t))``."""
        ...


@dataclass(frozen=True)
class LinearNoise:
    """``alpha(t) = 1 - t``, hence ``w(t) = 1 / t``. The default."""

    def alpha(self, t: Time) -> Time:
        """Survival probability ``1 - t``."""
        return 1.0 - t

    def alpha_derivative(self, t: Time) -> Time:
        """``-1`` in the shape of ``t``."""
        return t * 0.0 - 1.0

    def weight(self, t: Time) -> Time:
        """``1 / t``; raises :class:`InvalidInputError` unless every ``t`` is in (0, 1]."""
        _require_timestep(t)
        return 1.0 / t


@dataclass(frozen=True)
class CosineNoise:
    """``alpha(t) = 1 - cos(pi/2 (1 - t))``, hence ``w(t) = (pi/2) tan(pi/2 (1 - t))``."""

    def alpha(self, t: Time) -> Time:
        """Survival probability ``1 - cos(pi/2 (1 - t))``."""
        return 1.0 - _sine(t * (math.pi / 2))

    def alpha_derivative(self, t: Time) -> Time:
        """``-(pi/2) sin(pi/2 (1 - t))``."""
        return _sine((1.0 - t) * (math.pi / 2)) * (-math.pi / 2)

    def weight(self, t: Time) -> Time:
        """``(pi/2) sin(pi/2 (1 - t)) / sin(pi/2 t)``: the tangent, written so that it is exactly 0 at 1.

        Raises:
            InvalidInputError: unless every ``t`` is in (0, 1].
        """
        _require_timestep(t)
        return -self.alpha_derivative(t) / _sine(t * (math.pi / 2))


def noise_schedule(name: Literal["linear", "cosine"]) -> LinearNoise | CosineNoise:
    """The schedule that a job spec names.

    Raises:
        InvalidInputError: when the name is unknown.
    """
    match name:
        case "linear":
            return LinearNoise()
        case "cosine":
            return CosineNoise()
        case _:
            raise InvalidInputError(
                f"unknown noise schedule {name!r}; choose 'linear' or 'cosine'", param="noise.schedule"
            )


def _sine(x: Time) -> Time:
    number: Any = x
    if isinstance(number, (float, int)):
        number = math.sin(number)
    else:
        number = np.sin(number) if isinstance(number, (np.ndarray, np.generic)) else number.sin()
    sine: Time = number
    return sine


def _require_timestep(t: Any) -> None:
    is_valid = (t > 0) & (t <= 1)
    if not (is_valid if isinstance(is_valid, bool) else bool(is_valid.all())):
        raise InvalidInputError("the cross-entropy weight needs timesteps in (0, 1]", param="t")
