"""The fused boundary probability of ALM's debiasing against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.losses.debiasing import boundary_log_probs, linear_boundary_log_probs

VOCAB, WIDTH = 23, 6


def operands(rows: int = 5, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=draws, dtype=torch.float64) * scale
    head = torch.randn(VOCAB, WIDTH, generator=draws, dtype=torch.float64)
    return hidden, head, torch.arange(VOCAB) % 4 == 1


@pytest.mark.parametrize("slice_size", [1, 7, 40, 10_000])
@pytest.mark.parametrize("scale", [1.0, 80.0])
def test_equals_a_loop(slice_size: int, scale: float) -> None:
    hidden, head, is_boundary = operands(scale=scale)
    found = linear_boundary_log_probs(hidden, head, is_boundary, slice_size=slice_size)
    for row, value in zip(hidden.tolist(), found.tolist(), strict=True):
        logits = [math.fsum(h * w for h, w in zip(row, weights, strict=True)) for weights in head.tolist()]
        peak = max(logits)
        total = math.fsum(math.exp(z - peak) for z in logits)
        chosen = [z for z, inside in zip(logits, is_boundary.tolist(), strict=True) if inside]
        part = max(chosen)
        inside = math.fsum(math.exp(z - part) for z in chosen)
        assert value == pytest.approx(part + math.log(inside) - peak - math.log(total), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(found, boundary_log_probs(hidden @ head.T, is_boundary))


@pytest.mark.parametrize("slice_size", [9, 10_000])
def test_gradients(slice_size: int) -> None:
    hidden, head, is_boundary = operands(3)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_boundary_log_probs(h, w, is_boundary, slice_size=slice_size),
        (hidden.requires_grad_(), head.requires_grad_()),
    )


def test_no_row_gives_no_value() -> None:
    hidden, head, is_boundary = operands()
    assert linear_boundary_log_probs(hidden[:0], head, is_boundary).shape == (0,)


def test_bad_input_is_named() -> None:
    hidden, head, is_boundary = operands()
    with pytest.raises(InvalidInputError, match="begins a pre-token"):
        linear_boundary_log_probs(hidden, head, torch.zeros_like(is_boundary))
    hidden[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        linear_boundary_log_probs(hidden, head, is_boundary)
