"""The student's own loss: cross-entropy at masked positions (MDLM, arXiv 2406.07524; BD3LM, 2503.09573).

``L_CE = sum_{i in M} w(t) (-log p_S(x_i)) / N``. The functions here give the per-position part; weights and
the global normaliser ``N`` are applied by the objective.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import ShapeError
from tide_core.losses.validation import accumulation_dtype, require_finite, require_ids


def target_log_probs(
    logits: Float[Tensor, "masked vocab"], target_ids: Int[Tensor, " masked"]
) -> Float[Tensor, " masked"]:
    """``lp_i = z_i[x_i] - logsumexp(z_i)``, the log-probability of each clean token.

    Args:
        logits: at the masked positions.
        target_ids: the clean token at each of them.

    Returns:
        float32 (float64 for float64 logits), never above 0 but for rounding.

    Raises:
        NonFiniteError: when a logit is NaN or infinite.
        InvalidInputError: when an id lies outside the vocabulary.
        ShapeError: when the numbers of positions differ.
    """
    if target_ids.shape[0] != logits.shape[0]:
        raise ShapeError(
            f"target_ids names {target_ids.shape[0]} positions, logits {logits.shape[0]}", param="target_ids"
        )
    require_finite("logits", logits)
    require_ids("target_ids", target_ids, logits.shape[1])
    log_probs = logits.to(accumulation_dtype(logits)).log_softmax(dim=-1)
    return log_probs.gather(1, target_ids.long()[:, None])[:, 0]


def masked_cross_entropy(
    student_logits: Float[Tensor, "masked vocab"], target_ids: Int[Tensor, " masked"]
) -> Float[Tensor, " masked"]:
    """``-log p_S(x_i)`` per masked position, unweighted; raises as :func:`target_log_probs`."""
    return -target_log_probs(student_logits, target_ids)
