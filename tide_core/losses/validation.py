"""Checks that the losses share: each raises one clear error that names the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError

POSITIVE_LOG_PROB_TOLERANCE = 1e-2
"""Rounding in bfloat16 may lift the log-probability of a sure token a little above 0; more is a mistake."""


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise :class:`NonFiniteError` when the tensor holds a NaN or an infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"{name} holds a NaN or an infinity; the model that made it has diverged", param=name
        )


def require_finite_result(name: str, result: Tensor, **sources: Tensor) -> None:
    """Raise for a result that is not finite, naming the first source at fault, else ``name``."""
    if bool(torch.isfinite(result).all()):
        return
    for source_name, source in sources.items():
        require_finite(source_name, source)
    require_finite(name, result)


def require_same_shape(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raise :class:`ShapeError` unless both tensors have the same shape."""
    if tensor.shape != reference.shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}, but {reference_name} {tuple(reference.shape)}",
            param=name,
        )


def require_ids(name: str, ids: Tensor, size: int) -> None:
    """Raise :class:`InvalidInputError` unless every id lies in 0 .. size - 1."""
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
        raise InvalidInputError(f"{name} holds an id outside 0 .. {size - 1}", param=name)


def require_temperature(temperature: float) -> None:
    """Raise :class:`InvalidInputError` unless the temperature is positive and finite."""
    if not 0.0 < temperature < float("inf"):
        raise InvalidInputError(
            f"temperature must be positive and finite, got {temperature}", param="temperature"
        )


def require_log_probs(name: str, log_probs: Tensor) -> None:
    """Raise unless every element is a finite log-probability (at most 0, up to rounding)."""
    # Written so that a NaN fails the comparison: one reduction on the device for all three faults.
    if bool(((log_probs <= POSITIVE_LOG_PROB_TOLERANCE) & (log_probs > float("-inf"))).all()):
        return
    require_finite(name, log_probs)
    raise InvalidInputError(f"{name} holds log-probabilities above 0", param=name)


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for all else: the precision of sums and exponentials."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
