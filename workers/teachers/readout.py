"""What is read at the masked tokens: the LM head runs there alone, one slice of the vocabulary at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor


def target_log_probs(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    target_ids: Int[Tensor, " masked"],
    *,
    row_slice: int,
    vocab_slice: int,
) -> Float[Tensor, " masked"]:
    """``lp_i = z_i[x_i] - logsumexp(z_i)`` with ``z = hidden @ head^T``, in float32.

    Never holds more than ``row_slice x vocab_slice`` logits.

    Args:
        hidden: final hidden states at the masked tokens.
        head: the LM head's weight.
        target_ids: clean ids.
        row_slice: masked tokens at a time.
        vocab_slice: vocabulary entries at a time.
    """
    parts = [
        _rows_log_probs(rows, head, targets, vocab_slice)
        for rows, targets in zip(
            torch.split(hidden, row_slice), torch.split(target_ids, row_slice), strict=True
        )
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def hidden_bits(hidden: Float[Tensor, "masked hidden"]) -> npt.NDArray[np.uint16]:
    """Hidden states as the bits of bfloat16 numbers, uint16 ``[masked, hidden]``."""
    bits = hidden.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(np.uint16)
    return np.ascontiguousarray(bits)


def _rows_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, vocab_slice: int) -> Tensor:
    """Running log-sum-exp over the slices; the target's logit is picked from the slice that holds it."""
    normaliser = torch.full((hidden.shape[0],), -torch.inf, dtype=torch.float32, device=hidden.device)
    target_logits = torch.zeros_like(normaliser)
    for start in range(0, head.shape[0], vocab_slice):
        logits = _float32_logits(hidden, head[start : start + vocab_slice])
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=1))
        local = targets - start
        is_here = (local >= 0) & (local < logits.shape[1])
        picked = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        target_logits = torch.where(is_here, picked, target_logits)
    return target_logits - normaliser


def _float32_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Logits in float32: rounding them to 8 bits of mantissa would move a log-probability by up to 0.1."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return hidden.float() @ head.float().T
