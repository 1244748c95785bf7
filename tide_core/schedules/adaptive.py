"""TAID's adaptive progress: move on faster while the loss falls (TAID, arXiv 2501.16937, algorithm 1).

An option for the progress that :func:`tide_core.schedules.tidal.tidal_lambda` takes. The state is a small
immutable value, so it can be stored in a checkpoint and every worker can advance it by the same global loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tide_core.contracts.errors import InvalidInputError, NonFiniteError


@dataclass(frozen=True)
class AdaptiveProgress:
    """Where training stands: progress in [0, 1], the momentum of loss changes, and the last loss."""

    progress: float = 0.0
    momentum: float = 0.0
    previous_loss: float | None = None


def advance(
    state: AdaptiveProgress,
    loss: float,
    *,
    linear_progress: float,
    step_size: float = 5e-4,
    momentum_decay: float = 0.99,
) -> AdaptiveProgress:
    """One step of the adaptive schedule.

    ``delta = (J_prev - J) / (J_prev + 1e-15)``, ``m = beta m + (1 - beta) delta``,
    ``p = min(1, max(linear, p + a sigmoid(m) (1 - p)))``. The linear schedule is a floor, so that training
    ends at 1 even when the loss never falls.

    Args:
        state: the state before this step.
        loss: the step's global loss (the same on every worker).
        linear_progress: ``step / max_steps`` in [0, 1].
        step_size: TAID's ``alpha``.
        momentum_decay: TAID's ``beta`` in [0, 1).

    Raises:
        NonFiniteError: when the loss is NaN or infinite.
        InvalidInputError: when a setting is out of its range.
    """
    if not math.isfinite(loss):
        raise NonFiniteError(f"adaptive progress needs a finite loss, got {loss}", param="loss")
    if not (0.0 <= linear_progress <= 1.0 and step_size > 0.0 and 0.0 <= momentum_decay < 1.0):
        raise InvalidInputError(
            "adaptive progress needs linear_progress in [0, 1], step_size > 0 and momentum_decay in [0, 1)",
            param="linear_progress",
        )
    previous = loss if state.previous_loss is None else state.previous_loss
    relative_fall = (previous - loss) / (previous + 1e-15)
    momentum = momentum_decay * state.momentum + (1.0 - momentum_decay) * relative_fall
    stride = step_size * _sigmoid(momentum) * (1.0 - state.progress)
    progress = min(1.0, max(linear_progress, state.progress + stride))
    return AdaptiveProgress(progress, momentum, loss)


def _sigmoid(x: float) -> float:
    # Two forms, because exp overflows for large positive arguments.
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
