"""Outcome debiasing and the chunk filter of ALM (arXiv 2503.20083), options for the chunk objectives.

A tokenizer that has read the whole text knows where a chunk ends; the model does not. Multiplying the
chunk's likelihood by the probability that a pre-token boundary follows makes the two tokenisations comparable
("the chunk occurs, and ends here"); chunks at whose end the teacher does not expect a boundary are left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.head_pass import RunningSoftmax, Shelf, Statistic, statistics_of
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
    keep_bytes: int | None = None,
) -> Float[Tensor, " chunk"]:
    """The fused form of :func:`boundary_log_probs`, from hidden states; differentiable in both.

    Raises:
        ShapeError, InvalidInputError, NonFiniteError: as the plain form.
    """
    statistic = BoundaryLogProbs(is_boundary)
    return statistics_of(hidden, head, [statistic], slice_size=slice_size, keep_bytes=keep_bytes)[0]


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


class BoundaryLogProbs(Statistic):
    """``lse(z over the boundary ids) - lse(z)``; its gradient is the difference of the two softmaxes.

    Args:
        is_boundary: which ids begin a pre-token.
        rows: the hidden states' rows; None for all.
    """

    def __init__(self, is_boundary: Bool[Tensor, " vocab"], rows: Int[Tensor, " own"] | None = None) -> None:
        super().__init__(rows)
        self._is_boundary = is_boundary

    def check(self, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        _require_boundaries(self._is_boundary, head.shape[0])

    def begin(self, rows: int, like: Tensor) -> None:
        """See :class:`Statistic`."""
        self._inside, self._everything = RunningSoftmax(rows, like), RunningSoftmax(rows, like)

    def observe(self, logits: Tensor, start: int, shelf: Shelf) -> None:
        """See :class:`Statistic`."""
        is_boundary = self._is_boundary[start : start + logits.shape[1]]
        self._inside.add(logits.masked_fill(~is_boundary, float("-inf")))
        self._everything.add(logits)

    def value(self, dtype: torch.dtype) -> Tensor:
        """See :class:`Statistic`."""
        return (self._inside.log_total - self._everything.log_total).to(dtype)

    def gradient(self, logits: Tensor, start: int, shelf: Shelf, grad: Tensor) -> Tensor:
        """See :class:`Statistic`."""
        inside, everything = self._inside.log_total, self._everything.log_total
        is_boundary = self._is_boundary[start : start + logits.shape[1]]
        share = (logits - inside.to(logits.dtype)[:, None]).exp_().mul_(is_boundary)
        share -= (logits - everything.to(logits.dtype)[:, None]).exp_()
        return share.mul_(grad[:, None])
