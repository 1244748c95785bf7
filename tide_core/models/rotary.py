"""Rotary position embeddings: the frequencies of a configuration, and their application.

Half-rotation form (the first half of the rotated dimensions is paired with the second), as in Llama, Qwen and
LLaDA2. Scaled variants follow the published definitions: linear interpolation, and Llama 3.1's smoothed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import CheckpointError


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by ``factor``."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths divided by ``factor``, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


RotaryScaling = LinearScaling | Llama3Scaling


@dataclass(frozen=True)
class RotarySettings:
    """Base of the frequencies, share of the head dimensions that are rotated, and an optional scaling."""

    theta: float = 10_000.0
    partial_factor: float = 1.0
    scaling: RotaryScaling | None = None


def parse_rotary(payload: dict[str, Any], *, default_theta: float = 10_000.0) -> RotarySettings:
    """Rotary settings of a ``config.json``, in the older (``rope_theta``, ``rope_scaling``) or the newer
    (``rope_parameters``) spelling.

    Raises:
        CheckpointError: the two spellings contradict each other, or the scaling is of an unknown kind.
    """
    parameters = dict(payload.get("rope_parameters") or payload.get("rope_scaling") or {})
    theta = payload.get("rope_theta")
    if theta is not None and parameters.get("rope_theta", theta) != theta:
        raise CheckpointError(
            f"config.json gives two values of rope_theta: {theta} and {parameters['rope_theta']}.",
            param="rope_theta",
        )
    partial = parameters.get("partial_rotary_factor", payload.get("partial_rotary_factor", 1.0))
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    return RotarySettings(
        theta=float(parameters.get("rope_theta", default_theta) if theta is None else theta),
        partial_factor=float(1.0 if partial is None else partial),
        scaling=_parse_scaling(kind, parameters),
    )


def rotary_json(settings: RotarySettings) -> dict[str, Any]:
    """The settings as fields of a ``config.json``, in the older spelling, which every reader understands."""
    fields: dict[str, Any] = {"rope_theta": settings.theta}
    if settings.partial_factor != 1.0:
        fields["partial_rotary_factor"] = settings.partial_factor
    scaling = settings.scaling
    if scaling is not None:
        kind = "linear" if isinstance(scaling, LinearScaling) else "llama3"
        fields["rope_scaling"] = {"rope_type": kind, **vars(scaling)}
    return fields


def _parse_scaling(kind: str, parameters: dict[str, Any]) -> RotaryScaling | None:
    if kind == "default":
        return None
    try:
        if kind == "linear":
            return LinearScaling(float(parameters["factor"]))
        if kind == "llama3":
            return Llama3Scaling(
                float(parameters["factor"]),
                float(parameters["low_freq_factor"]),
                float(parameters["high_freq_factor"]),
                int(parameters["original_max_position_embeddings"]),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The rotary scaling {kind!r} is incomplete: {error}.", param="rope_scaling"
        ) from error
    raise CheckpointError(
        f"Rotary scaling {kind!r} is not supported: use a model with default, linear or llama3.",
        param="rope_scaling",
    )


def inverse_frequencies(
    settings: RotarySettings, rotated: int, device: torch.device
) -> Float[Tensor, " half"]:
    """``theta^(-2i / rotated)`` for i in 0 .. rotated/2, scaled when the settings say so; float32.

    float32 throughout because the published checkpoints were trained with frequencies rounded to it.
    """
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    frequencies = 1.0 / (settings.theta**exponents)
    scaling = settings.scaling
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3_frequencies(frequencies, scaling)
    return frequencies


def _llama3_frequencies(
    frequencies: Float[Tensor, " half"], scaling: Llama3Scaling
) -> Float[Tensor, " half"]:
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotary_tables(
    position_ids: Int[Tensor, "batch seq"], settings: RotarySettings, rotated: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch seq 1 half"], Float[Tensor, "batch seq 1 half"]]:
    """Cosines and sines of ``position * frequency``, one value for each rotated pair of dimensions.

    Computed on each forward, not kept: a buffer would be cast with the model and lose the float32 it needs.
    """
    frequencies = inverse_frequencies(settings, rotated, position_ids.device)
    angles = position_ids[..., None].to(torch.float32) * frequencies
    return angles.cos().to(dtype)[:, :, None], angles.sin().to(dtype)[:, :, None]


def rotate(
    heads: Float[Tensor, "batch seq head dim"],
    cosines: Float[Tensor, "batch seq 1 half"],
    sines: Float[Tensor, "batch seq 1 half"],
) -> Float[Tensor, "batch seq head dim"]:
    """Rotate the first ``2 * half`` dimensions of every head; the rest pass unchanged.

    Differentiable in the heads alone; the backward pass is the rotation back.
    """
    turned: Tensor = _Rotation.apply(heads, cosines, sines)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    """Written out because autograd's own way through slices and a join takes thrice the memory traffic."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.dtype = heads.dtype
        return _rotated(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        cosines, sines = ctx.saved_tensors
        return _rotated(grad, cosines, -sines).to(ctx.dtype), None, None


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = cosines.shape[-1]
    sizes = (half, half, heads.shape[-1] - 2 * half)
    dtype = torch.promote_types(heads.dtype, cosines.dtype)
    result = torch.empty(heads.shape, dtype=dtype, device=heads.device)
    first, second, rest = heads.split_with_sizes(sizes, dim=-1)
    new_first, new_second, new_rest = result.split_with_sizes(sizes, dim=-1)
    new_first.copy_(first).mul_(cosines).sub_(second * sines)
    new_second.copy_(second).mul_(cosines).add_(first * sines)
    new_rest.copy_(rest)
    return result
