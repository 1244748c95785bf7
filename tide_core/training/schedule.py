"""How long training runs and how the learning rate moves: functions of the step alone."""

from __future__ import annotations

import math

from tide_core.contracts.errors import DataError
from tide_core.contracts.job import Hyperparameters


def total_steps(hyper: Hyperparameters, rows_per_epoch: int) -> int:
    """Optimiser steps of the whole run.

    Args:
        hyper: with `max_steps` or `epochs` (the paper trains 10).
        rows_per_epoch: sequences that one pass visits.

    Raises:
        DataError: nothing to train on.
    """
    if rows_per_epoch < 1:
        raise DataError(
            "No training sequence is left after preparation: look at the counts by reason.",
            code="empty_dataset",
            param="data.sources",
        )
    return hyper.count_steps(rows_per_epoch)


def learning_rate(step: int, total: int, hyper: Hyperparameters) -> float:
    """Learning rate of the optimiser step number `step` (0 .. total - 1).

    Rises linearly over the first ``ceil(warmup_ratio * total)`` steps, then follows the schedule down to 0:
    ``(1 + cos(pi x)) / 2`` or ``1 - x`` with ``x = (step - warmup) / (total - warmup)``. The TIDE paper
    (arXiv 2604.26951) trains with cosine and a warm-up of one tenth.
    """
    warmup = math.ceil(hyper.warmup_ratio * total)
    if step < warmup:
        # One step ahead, so that the very first step already moves.
        return hyper.learning_rate * (step + 1) / warmup
    x = (step - warmup) / max(1, total - warmup)
    match hyper.learning_rate_schedule:
        case "cosine":
            return hyper.learning_rate * 0.5 * (1.0 + math.cos(math.pi * x))
        case "linear":
            return hyper.learning_rate * (1.0 - x)
        case "constant":
            return hyper.learning_rate


def training_progress(step: int, total: int) -> float:
    """``p = step / max_steps`` in [0, 1): the axis along which TIDAL's interpolation grows."""
    return min(1.0, step / total)
