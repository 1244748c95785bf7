"""Outcome debiasing and the chunk filter of ALM (arXiv 2503.20083), options for the chunk objectives.

A tokenizer that has read the whole text knows where a chunk ends; the model does not. Multiplying the
chunk's likelihood by the probability that a pre-token boundary follows makes the two tokenisations comparable
("the chunk occurs, and ends here"); chunks at whose end the teacher does not expect a boundary are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.fused_linear import (
    GradientSink,
    RunningSoftmax,
    resolved_slice_size,
    slice_logits,
    vocabulary_slices,
)
from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite,
    require_log_probs,
    require_same_shape,
)


def boundary_log_probs(
    logits: Float[Tensor, "chunk vocab"], is_boundary: Bool[Tensor, " vocab"]
) -> Float[Tensor, " chunk"]:
    """Log-probability that the token at the place after each chunk begins a new pre-token.

    Args:
        logits: at the position that follows each chunk.
        is_boundary: which tokens of the vocabulary begin a pre-token.

    Raises:
        ShapeError: when the vocabularies differ.
        InvalidInputError: when no token begins a pre-token.
        NonFiniteError: when a logit is NaN or infinite.
    """
    _require_boundaries(is_boundary, logits.shape[1])
    require_finite("logits", logits)
    scores = logits.to(accumulation_dtype(logits))
    inside = scores.masked_fill(~is_boundary, float("-inf")).logsumexp(dim=-1)
    return inside - scores.logsumexp(dim=-1)


def linear_boundary_log_probs(
    hidden: Float[Tensor, "chunk hidden"],
    head: Float[Tensor, "vocab hidden"],
    is_boundary: Bool[Tensor, " vocab"],
    *,
    slice_size: int | None = None,
) -> Float[Tensor, " chunk"]:
    """The fused form of :func:`boundary_log_probs`, from hidden states; differentiable in both.

    Raises:
        ShapeError, InvalidInputError, NonFiniteError: as the plain form.
    """
    if hidden.shape[1] != head.shape[1]:
        raise ShapeError(
            f"hidden {tuple(hidden.shape)} and head {tuple(head.shape)} do not fit", param="head"
        )
    _require_boundaries(is_boundary, head.shape[0])
    log_probs: Tensor = _BoundaryLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head, is_boundary, resolved_slice_size(slice_size, hidden)
    )
    require_finite("logits", log_probs)
    return log_probs


def debias(
    chunk_lp: Float[Tensor, "*chunk"], boundary_lp: Float[Tensor, "*other"]
) -> Float[Tensor, "*chunk"]:
    """``LP`` of "the chunk occurs and a boundary follows": the sum of both log-probabilities.

    Raises:
        ShapeError: when the shapes differ.
        NonFiniteError, InvalidInputError: when ``boundary_lp`` does not hold log-probabilities.
    """
    require_same_shape("boundary_lp", boundary_lp, "chunk_lp", chunk_lp)
    require_log_probs("boundary_lp", boundary_lp)
    return chunk_lp + boundary_lp


def keep_chunks(teacher_boundary_lp: Float[Tensor, "*chunk"], threshold: float) -> Bool[Tensor, "*chunk"]:
    """Chunks after which the teacher expects a boundary with probability of at least ``threshold`` (gamma).

    Raises:
        InvalidInputError: when the threshold lies outside [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise InvalidInputError(f"threshold must lie in [0, 1], got {threshold}", param="threshold")
    return teacher_boundary_lp.exp() >= threshold


def _require_boundaries(is_boundary: Tensor, vocab: int) -> None:
    if is_boundary.shape[0] != vocab:
        raise ShapeError(
            f"is_boundary names {is_boundary.shape[0]} tokens, the vocabulary has {vocab}",
            param="is_boundary",
        )
    if not bool(is_boundary.any()):
        raise InvalidInputError("no token of the vocabulary begins a pre-token", param="is_boundary")


class _BoundaryLogProbs(torch.autograd.Function):
    """``lse(z over the boundary ids) - lse(z)``; its gradient is the difference of the two softmaxes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, is_boundary: Tensor, slice_size: int) -> Tensor:
        inside, everything = RunningSoftmax(hidden), RunningSoftmax(hidden)
        for start, stop in vocabulary_slices(hidden.shape[0], head.shape[0], slice_size):
            logits = slice_logits(hidden, head, start, stop)
            inside.add(logits.masked_fill(~is_boundary[start:stop], float("-inf")))
            everything.add(logits)
        dtype = accumulation_dtype(hidden)
        ctx.save_for_backward(
            hidden, head, is_boundary, inside.log_total.to(dtype), everything.log_total.to(dtype)
        )
        ctx.slice_size = slice_size
        return (inside.log_total - everything.log_total).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        hidden, head, is_boundary, inside, everything = ctx.saved_tensors
        sink = GradientSink(ctx, hidden, head)
        for start, stop in vocabulary_slices(hidden.shape[0], head.shape[0], ctx.slice_size):
            logits = slice_logits(hidden, head, start, stop)
            share = (logits - inside[:, None]).exp_().mul_(is_boundary[start:stop])
            share -= logits.sub_(everything[:, None]).exp_()
            sink.add(share.mul_(grad[:, None]), start, stop)
        return sink.hidden, sink.head, None, None
