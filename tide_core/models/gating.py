"""The gated activation ``silu(gate) * up``, with a backward pass that writes one gradient for both halves."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def apply_gate(gate_up: Float[Tensor, "*axes twice"]) -> Float[Tensor, "*axes width"]:
    """``silu(gate) * up`` of the two halves of the last axis.

    Keeps its input alone for the backward pass, and builds the input's gradient in place: left to autograd,
    three tensors are kept and the halves' gradients are made apart and then joined.
    """
    activated: Tensor = _Gated.apply(gate_up)  # type: ignore[no-untyped-call]
    return activated


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (grad,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=-1)
        grad_up.copy_(functional.silu(gate)).mul_(grad)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return result
