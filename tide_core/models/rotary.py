"""Rotary position embeddings: the frequencies of a configuration, and their application.

Half-rotation form (the first half of the rotated dimensions is paired with the second), as in Llama, Qwen and
LLaDA2. Scaled variants follow the published definitions: linear interpolation, Llama 3.1's smoothed one, and
YaRN (arXiv 2309.00071), each as transformers computes it.
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


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: dimensions that turn often within the original length are kept, those that turn rarely divided by
    ``factor``, those between interpolated; cosines and sines are multiplied by ``attention_factor``.

    Attributes:
        beta_fast: turns within the original length from which a dimension is kept.
        beta_slow: turns up to which a dimension is divided by the whole factor.
        truncate: round the bounds between these outwards to whole dimensions.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling
_KINDS: dict[type[RotaryScaling], str] = {
    LinearScaling: "linear",
    Llama3Scaling: "llama3",
    YarnScaling: "yarn",
}


@dataclass(frozen=True)
class RotarySettings:
    """Base of the frequencies, share of the head dimensions that are rotated, and an optional scaling."""

    theta: float = 10_000.0
    partial_factor: float = 1.0
    scaling: RotaryScaling | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling) else 1.0


def parse_rotary(payload: dict[str, Any], *, default_theta: float = 10_000.0) -> RotarySettings:
    """Rotary settings of a ``config.json``, in the older (``rope_theta``, ``rope_scaling``) or the newer
    (``rope_parameters``) spelling.

    Raises:
        CheckpointError: the two spellings contradict each other, or the scaling is of an unknown kind.
    """
    named = [name for name in ("rope_parameters", "rope_scaling") if payload.get(name)]
    found = [_parse_parameters(payload, payload[name], default_theta) for name in named]
    if len(found) == 2 and found[0] != found[1]:
        raise CheckpointError(
            "config.json gives two different rotary settings: rope_parameters "
            f"{payload['rope_parameters']} and rope_scaling {payload['rope_scaling']}. Remove one of them.",
            param="rope_scaling",
        )
    return found[0] if found else _parse_parameters(payload, {}, default_theta)


def rotary_json(settings: RotarySettings) -> dict[str, Any]:
    """The settings as fields of a ``config.json``, in the older spelling, which every reader understands."""
    fields: dict[str, Any] = {"rope_theta": settings.theta}
    if settings.partial_factor != 1.0:
        fields["partial_rotary_factor"] = settings.partial_factor
    if settings.scaling is not None:
        fields["rope_scaling"] = {"rope_type": _KINDS[type(settings.scaling)], **vars(settings.scaling)}
    return fields


def _parse_parameters(
    payload: dict[str, Any], parameters: dict[str, Any], default_theta: float
) -> RotarySettings:
    """Settings out of one of the two spellings and the fields beside it."""
    nested = sorted(name for name, value in parameters.items() if isinstance(value, dict))
    if nested:
        raise CheckpointError(
            f"Rotary settings for each kind of layer ({', '.join(nested)}) are not supported.",
            param="rope_parameters",
        )
    theta = payload.get("rope_theta")
    if theta is not None and parameters.get("rope_theta", theta) != theta:
        raise CheckpointError(
            f"config.json gives two values of rope_theta: {theta} and {parameters['rope_theta']}.",
            param="rope_theta",
        )
    partial = parameters.get("partial_rotary_factor", payload.get("partial_rotary_factor", 1.0))
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    # As transformers does where a scaling leaves out the length before it.
    longest = payload.get("original_max_position_embeddings", payload.get("max_position_embeddings"))
    return RotarySettings(
        theta=float(parameters.get("rope_theta", default_theta) if theta is None else theta),
        partial_factor=float(1.0 if partial is None else partial),
        scaling=_parse_scaling(kind, {"original_max_position_embeddings": longest, **parameters}, payload),
    )


def _parse_scaling(kind: str, parameters: dict[str, Any], payload: dict[str, Any]) -> RotaryScaling | None:
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
        if kind == "yarn":
            return _parse_yarn(parameters, payload.get("max_position_embeddings"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The rotary scaling {kind!r} is incomplete: {error}.", param="rope_scaling"
        ) from error
    raise CheckpointError(
        f"Rotary scaling {kind!r} is not supported: use a model with default, linear, llama3 or yarn.",
        param="rope_scaling",
    )


def _parse_yarn(parameters: dict[str, Any], longest: int | None) -> YarnScaling:
    original = int(parameters["original_max_position_embeddings"])
    factor = parameters["factor"]
    if factor is None and longest is not None:
        factor = longest / original
    factor = float(factor)
    amplitude = parameters.get("attention_factor")
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if amplitude is None and scale and scale_all:
        amplitude = _yarn_amplitude(factor, float(scale)) / _yarn_amplitude(factor, float(scale_all))
    truncates = parameters.get("truncate")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=float(_yarn_amplitude(factor) if amplitude is None else amplitude),
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=True if truncates is None else bool(truncates),
    )


def _yarn_amplitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


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
    if isinstance(scaling, YarnScaling):
        return _yarn_frequencies(frequencies, scaling, settings.theta, rotated)
    return frequencies


def _llama3_frequencies(
    frequencies: Float[Tensor, " half"], scaling: Llama3Scaling
) -> Float[Tensor, " half"]:
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def _yarn_frequencies(
    frequencies: Float[Tensor, " half"], scaling: YarnScaling, theta: float, rotated: int
) -> Float[Tensor, " half"]:
    def dimension(turns: float) -> float:
        """Where a dimension makes this many turns within the original length."""
        wavelengths = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return rotated * math.log(wavelengths) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    places = torch.arange(rotated // 2, dtype=torch.float32, device=frequencies.device)
    divided = ((places - low) / (0.001 if low == high else high - low)).clamp(0, 1)
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)


def rotary_tables(
    position_ids: Int[Tensor, "batch seq"], settings: RotarySettings, rotated: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch seq 1 half"], Float[Tensor, "batch seq 1 half"]]:
    """Cosines and sines of ``position * frequency`` times the settings' amplitude, one value for each rotated
    pair of dimensions.

    Computed on each forward, not kept: a buffer would be cast with the model and lose the float32 it needs.
    """
    frequencies = inverse_frequencies(settings, rotated, position_ids.device)
    angles = position_ids[..., None].to(torch.float32) * frequencies
    cosines, sines = angles.cos(), angles.sin()
    if settings.amplitude != 1.0:
        cosines, sines = cosines * settings.amplitude, sines * settings.amplitude
    return cosines.to(dtype)[:, :, None], sines.to(dtype)[:, :, None]


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
        return _rotate(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        cosines, sines = ctx.saved_tensors
        return _rotate(grad, cosines, -sines).to(ctx.dtype), None, None


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
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
