"""TIDAL: how far the student trusts its teacher, by training progress and by timestep.

TIDE (arXiv 2604.26951), TIDAL section: ``lambda_train(p) = l0 + (l1 - l0) g(p)`` and
``lambda_t = lambda_train(p) (1 - t)``. A nearly clean sequence (small ``t``) lets the teacher speak with
confidence; a nearly masked one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.objective import TidalSchedule

Growth = Literal["cosine", "linear"]
Axes = Literal["both", "training", "timestep"]
TimestepWeight = Literal["uniform", "midrange"]

MIDRANGE_CENTRE = 0.5
MIDRANGE_WIDTH = 0.15


def tidal_lambda(
    progress: float,
    t: Float[Tensor, " batch"],
    *,
    lambda_init: float = 0.1,
    lambda_max: float = 0.9,
    growth: Growth = "cosine",
    axes: Axes = "both",
) -> Float[Tensor, " batch"]:
    """The teacher's share ``lambda_t`` in the interpolated target, one number a sequence.

    Args:
        progress: training progress ``p = step / max_steps`` in [0, 1].
        t: diffusion timestep of each sequence, in [0, 1].
        lambda_init: ``l0``, the share at the start of training.
        lambda_max: ``l1``, the share at its end.
        growth: ``g``: "cosine" is ``(1 - cos(pi p)) / 2``, "linear" is ``p``.
        axes: "both" is ``lambda_train(p) (1 - t)``, "training" is ``lambda_train(p)``,
            "timestep" is ``l1 (1 - t)``.

    Returns:
        Shares in [0, 1], with the shape and dtype of ``t``.

    Raises:
        InvalidInputError: when a number is out of its range or a name is unknown.
    """
    _require_unit("progress", progress)
    _require_unit("lambda_init", lambda_init)
    _require_unit("lambda_max", lambda_max)
    _require_unit_tensor("t", t)
    trained = lambda_init + (lambda_max - lambda_init) * _growth(progress, growth)
    match axes:
        case "both":
            return trained * (1.0 - t)
        case "training":
            return torch.full_like(t, trained)
        case "timestep":
            return lambda_max * (1.0 - t)
        case _:
            raise _refuse_choice("axes", axes, get_args(Axes))


@dataclass(frozen=True)
class TrainingProgress:
    """How far training is, on the two axes that a schedule may grow along.

    Attributes:
        linear: ``step / max_steps`` in [0, 1].
        adaptive: TAID's loss-driven progress; None where it is not kept.
    """

    linear: float
    adaptive: float | None = None


def scheduled_lambda(
    schedule: TidalSchedule, progress: TrainingProgress, t: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``lambda_t`` of each sequence under a term's schedule.

    Adaptive growth is TAID's: the loss-driven progress, taken as it is.

    Raises:
        InvalidInputError: the schedule grows with the adaptive progress, and there is none.
    """
    if schedule.growth != "adaptive":
        return _lambda(schedule, progress.linear, t, schedule.growth)
    if progress.adaptive is None:
        raise InvalidInputError(
            "a schedule with adaptive growth needs TrainingProgress.adaptive", param="adaptive_progress"
        )
    return _lambda(schedule, progress.adaptive, t, "linear")


def _lambda(schedule: TidalSchedule, progress: float, t: Tensor, growth: Growth) -> Tensor:
    return tidal_lambda(
        progress,
        t,
        lambda_init=schedule.lambda_init,
        lambda_max=schedule.lambda_max,
        growth=growth,
        axes=schedule.axes,
    )


def timestep_weight(t: Float[Tensor, " batch"], kind: TimestepWeight) -> Float[Tensor, " batch"]:
    """Weight ``w2(t)`` of a distillation term: 1, or a Gaussian bump around one half.

    Args:
        t: diffusion timestep of each sequence, in [0, 1].
        kind: "uniform" is 1, "midrange" is ``exp(-(t - 0.5)^2 / (2 * 0.15^2))``.

    Returns:
        Weights in (0, 1], with the shape and dtype of ``t``.

    Raises:
        InvalidInputError: when ``t`` is outside [0, 1] or the kind is unknown.
    """
    _require_unit_tensor("t", t)
    match kind:
        case "uniform":
            return torch.ones_like(t)
        case "midrange":
            return torch.exp(-((t - MIDRANGE_CENTRE) ** 2) / (2 * MIDRANGE_WIDTH**2))
        case _:
            raise _refuse_choice("kind", kind, get_args(TimestepWeight))


def _growth(progress: float, growth: Growth) -> float:
    match growth:
        case "cosine":
            return (1.0 - math.cos(math.pi * progress)) / 2.0
        case "linear":
            return progress
        case _:
            raise _refuse_choice("growth", growth, get_args(Growth))


def _require_unit(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InvalidInputError(f"{name} must lie in [0, 1], got {value}", param=name)


def _require_unit_tensor(name: str, value: Tensor) -> None:
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise InvalidInputError(f"every element of {name} must lie in [0, 1]", param=name)


def _refuse_choice(name: str, value: object, known: tuple[object, ...]) -> InvalidInputError:
    return InvalidInputError(f"unknown {name} {value!r}; choose one of {list(known)}", param=name)
