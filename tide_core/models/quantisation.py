"""Weights in 8 or 4 bits: less memory for a teacher that is only read.

Each row of a matrix is cut along the input axis into groups of 32 numbers. A group keeps one bfloat16 scale
and, for every number, the whole multiple of the scale that lies nearest: from -128 to 127 in 8 bits, from -8
to 7 in 4. The scale carries a sign and is chosen so that the number of largest size falls on the lowest
multiple, the end of the range that reaches furthest (as in the ``Q4_0`` format of ggml). Multiples are taken
of the scale as stored, so its rounding to bfloat16 costs next to nothing.

What is quantised: the linear layers of attention and feed-forward and the stacked experts, which are nearly
all of a model. Embedding, norms, router, biases and LM head stay as they are: they are small, and the
router's choice and the logits depend on them most.

A product restores the matrix that it needs in the input's dtype, uses it and drops it: the same numbers on
CPU and GPU, at the price of that work in each forward. Why this is not a library's: docs/decisions, 0010.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import BFloat16, Float, Int8, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional

from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.contracts.job import Quantisation
from tide_core.contracts.teacher import QUANTISATION_BITS, QUANTISATION_GROUP
from tide_core.models.mixture import Experts

_HALF = QUANTISATION_GROUP // 2


def quantise(
    weight: Float[Tensor, "row column"], bits: int
) -> tuple[Int8[Tensor, "row padded"], BFloat16[Tensor, "row group"]]:
    """Multiples and scales of a matrix; columns are padded with zeros to whole groups.

    Args:
        weight: finite numbers.
        bits: 8 or 4; the multiples of 4 bits lie in -8 .. 7.
    """
    lowest = -(1 << (bits - 1))
    padded = functional.pad(weight.float(), (0, -weight.shape[1] % QUANTISATION_GROUP))
    groups = _split(padded, QUANTISATION_GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = (extreme / lowest).bfloat16()
    # A group of zeros has no scale; any divisor gives the multiples 0.
    steps = scales.float().masked_fill(scales == 0, 1.0)
    multiples = (groups / steps).round().clamp(lowest, -lowest - 1).to(torch.int8)
    return multiples.flatten(1), scales.squeeze(2)


def pack(multiples: Int8[Tensor, "row padded"]) -> UInt8[Tensor, "row half"]:
    """Two 4-bit multiples a byte: the first half of each group in the low bits, the second in the high."""
    groups = _split((multiples + 8).view(torch.uint8), QUANTISATION_GROUP)
    packed: Tensor = groups[..., :_HALF] | groups[..., _HALF:] << 4
    return packed.flatten(1)


def unpack(packed: UInt8[Tensor, "*rows half"]) -> Int8[Tensor, "*rows padded"]:
    """The multiples that ``pack`` put together."""
    halves = _split(packed, _HALF)
    return torch.cat((halves & 15, halves >> 4), dim=-1).view(torch.int8).sub_(8).flatten(-2)


def _split(numbers: Shaped[Tensor, "*rows column"], size: int) -> Shaped[Tensor, "*rows part size"]:
    return numbers.view(*numbers.shape[:-1], -1, size)


class QuantisedMatrix(nn.Module):
    """A matrix, or a stack of equal ones, held as multiples and scales.

    Args:
        weight: [row, column] or [expert, row, column].
        quantisation: ``int8`` or ``int4``.
        name: of the weight, for errors.

    Raises:
        InvalidInputError: an unknown quantisation.
        NonFiniteError: the weight holds a NaN or an infinity, which quantisation would hide.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Shaped[Tensor, "..."], quantisation: Quantisation, name: str) -> None:
        super().__init__()
        if quantisation not in QUANTISATION_BITS:
            raise InvalidInputError(
                f"Unknown quantisation {quantisation!r}: use one of {', '.join(QUANTISATION_BITS)}.",
                param="quantisation",
            )
        if not bool(weight.isfinite().all()):
            raise NonFiniteError(
                f"{name} holds a NaN or an infinity: fetch the checkpoint again.", param=name
            )
        self.bits = QUANTISATION_BITS[quantisation]
        self.columns = weight.shape[-1]
        self.elements = weight.numel()
        # One matrix of a stack at a time: what quantising needs beside it is several times its size.
        matrices = [self._quantise(matrix) for matrix in weight.detach().reshape(-1, *weight.shape[-2:])]
        codes, scales = (torch.stack(parts) for parts in zip(*matrices, strict=True))
        self.register_buffer("codes", codes if weight.ndim == 3 else codes[0])
        self.register_buffer("scales", scales if weight.ndim == 3 else scales[0])

    def _quantise(self, matrix: Float[Tensor, "row column"]) -> tuple[Tensor, Tensor]:
        multiples, scales = quantise(matrix, self.bits)
        return (multiples if self.bits == 8 else pack(multiples)), scales

    def restore(self, dtype: torch.dtype, index: int | None = None) -> Float[Tensor, "*expert row column"]:
        """The matrix (of a stack: all, or the one at ``index``) as multiples times scales, in ``dtype``."""
        codes, scales = (
            (self.codes, self.scales) if index is None else (self.codes[index], self.scales[index])
        )
        multiples = codes if self.bits == 8 else unpack(codes)
        groups = _split(multiples.to(dtype), QUANTISATION_GROUP)
        whole: Tensor = groups.mul_(scales[..., None].to(dtype)).flatten(-2)
        return whole[..., : self.columns]


class QuantisedLinear(nn.Module):
    """A linear layer with a quantised weight; the bias stays as it is."""

    def __init__(self, linear: nn.Linear, quantisation: Quantisation, name: str) -> None:
        super().__init__()
        self.matrix = QuantisedMatrix(linear.weight, quantisation, f"{name}.weight")
        self.bias = linear.bias

    def forward(self, inputs: Float[Tensor, "*axes column"]) -> Float[Tensor, "*axes row"]:
        return functional.linear(inputs, self.matrix.restore(inputs.dtype), self.bias)


class QuantisedExperts(Experts):
    """Stacked experts with quantised weights.

    The loop restores the experts that have tokens, one at a time; the grouped product restores a layer's
    stack, the largest temporary there is (1.5 GiB in bfloat16 for LLaDA2.0-mini).
    """

    def __init__(self, experts: Experts, quantisation: Quantisation, name: str) -> None:
        nn.Module.__init__(self)
        self.count, self.width = experts.count, experts.width
        self.gate_up_matrix = QuantisedMatrix(experts.gate_up, quantisation, f"{name}.gate_up")
        self.down_matrix = QuantisedMatrix(experts.down, quantisation, f"{name}.down")

    def matrices(self, used: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for expert in used:
            yield self.gate_up_matrix.restore(dtype, expert), self.down_matrix.restore(dtype, expert)

    def stacks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.gate_up_matrix.restore(dtype), self.down_matrix.restore(dtype)


def quantise_layer(layer: nn.Module, quantisation: Quantisation, name: str) -> None:
    """Replace a decoder layer's linear layers and experts by quantised ones, in place.

    Raises:
        InvalidInputError: an unknown quantisation.
        NonFiniteError: a weight holds a NaN or an infinity; ``param`` names it.
    """
    for path, module in list(layer.named_modules()):
        for child_name, child in list(module.named_children()):
            child_path = ".".join(part for part in (name, path, child_name) if part)
            if isinstance(child, nn.Linear):
                setattr(module, child_name, QuantisedLinear(child, quantisation, child_path))
            elif isinstance(child, Experts):
                setattr(module, child_name, QuantisedExperts(child, quantisation, child_path))


def parameter_count(model: nn.Module) -> int:
    """Numbers in a model's weights, quantised or not; tied ones once."""
    quantised = (module.elements for module in model.modules() if isinstance(module, QuantisedMatrix))
    return sum(parameter.numel() for parameter in model.parameters()) + sum(quantised)


def memory_bytes(model: nn.Module) -> int:
    """Bytes that a model's weights take, scales included; tied ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
