"""Outcome debiasing and the chunk filter of ALM (arXiv 2503.20083), options for the chunk objectives.

A tokenizer that has read the whole text knows where a chunk ends; the model does not. Multiplying the
chunk's likelihood by the probability that a pre-token boundary follows makes the two tokenisations comparable
("the chunk occurs, and ends here"); chunks at whose end the teacher does not expect a boundary are left out.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
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
    if is_boundary.shape[0] != logits.shape[1]:
        raise ShapeError(
            f"is_boundary names {is_boundary.shape[0]} tokens, logits {logits.shape[1]}", param="is_boundary"
        )
    if not bool(is_boundary.any()):
        raise InvalidInputError("no token of the vocabulary begins a pre-token", param="is_boundary")
    require_finite("logits", logits)
    scores = logits.to(accumulation_dtype(logits))
    inside = scores.masked_fill(~is_boundary, float("-inf")).logsumexp(dim=-1)
    return inside - scores.logsumexp(dim=-1)


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
