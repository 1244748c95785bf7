"""What is read at the masked tokens: the LM head runs there alone, one slice of the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tide_core.contracts.scores import TopKQuestion, Values
from tide_core.losses.head_pass import RunningSoftmax, columns_of


@dataclass(frozen=True, slots=True)
class Slices:
    """How much of the LM head's output exists at a time.

    Attributes:
        rows: masked tokens.
        vocab: vocabulary entries.
    """

    rows: int
    vocab: int


def target_log_probs(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    target_ids: Int[Tensor, " masked"],
    *,
    slices: Slices,
    boundary: Bool[Tensor, " vocab"] | None = None,
) -> Float[Tensor, " masked"] | Float[Tensor, "masked 2"]:
    """``lp_i = z_i[x_i] - logsumexp(z_i)`` with ``z = hidden @ head^T``, in float32.

    Args:
        hidden: final hidden states at the masked tokens.
        head: the LM head's weight.
        target_ids: clean ids.
        slices: bound of the logits that are held at a time.
        boundary: when given, a second column holds ``log sum p`` over these ids.
    """
    rows = zip(torch.split(hidden, slices.rows), torch.split(target_ids, slices.rows), strict=True)
    return torch.cat([_rows_log_probs(part, head, ids, boundary, slices.vocab) for part, ids in rows])


def top_k_bytes(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    question: TopKQuestion,
    *,
    slices: Slices,
) -> UInt8[Tensor, "masked bytes"]:
    """The likeliest ids of each row with their logits and the tails' masses, in the question's row format.

    Args:
        hidden: final hidden states at the masked tokens.
        head: the LM head's weight; only the ids below ``question.vocab`` are read.
        question: how many ids, and at which temperatures.
        slices: bound of the logits that are held at a time.
    """
    head = head[: question.vocab]
    return torch.cat(
        [_rows_bytes(rows, head, question, slices.vocab) for rows in torch.split(hidden, slices.rows)]
    )


def as_values(answer: Tensor) -> Values:
    """An answer on the host as the contract has it: bfloat16 numbers become their bits, uint16."""
    if answer.dtype == torch.bfloat16:
        return answer.view(torch.int16).numpy().view(np.uint16)
    return answer.numpy()


def _rows_bytes(hidden: Tensor, head: Tensor, question: TopKQuestion, vocab_slice: int) -> Tensor:
    """The fields of ``question.row_format`` one after the other, without gaps."""
    ids, logits, tails = _rows_top_k(hidden, head, question, vocab_slice)
    fields = (ids.to(torch.int32), logits.to(torch.float16), tails)
    return torch.cat([field.contiguous().view(torch.uint8) for field in fields], dim=1)


def _rows_log_probs(
    hidden: Tensor, head: Tensor, targets: Tensor, boundary: Tensor | None, vocab_slice: int
) -> Tensor:
    """Running log-sum-exp over the slices; the target's logit is picked from the slice that holds it.

    Taken in float64 from float32 logits: where the teacher is sure, ``1 - p`` is far below what float32
    keeps of a log-sum-exp, and Reverse CALM multiplies by its logarithm.
    """
    everything, inside = RunningSoftmax(len(hidden), hidden), RunningSoftmax(len(hidden), hidden)
    target_logits = torch.zeros_like(everything.log_total)
    for start in range(0, head.shape[0], vocab_slice):
        logits = float32_logits(hidden, head[start : start + vocab_slice])
        everything.add(logits)
        is_here, column = columns_of(targets, start, logits.shape[1])
        picked = logits.gather(1, column[:, None])[:, 0]
        target_logits = torch.where(is_here, picked.double(), target_logits)
        if boundary is not None:
            inside.add(logits.masked_fill_(~boundary[start : start + vocab_slice], -torch.inf))
    log_probs = (target_logits - everything.log_total).float()
    if boundary is None:
        return log_probs
    return torch.stack([log_probs, (inside.log_total - everything.log_total).float()], dim=1)


def _rows_top_k(
    hidden: Tensor, head: Tensor, question: TopKQuestion, vocab_slice: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and logits of the k likeliest, and ``log sum exp(z / T)`` of the others, less the largest logit.

    What a slice pushes out of the k joins the tails, so no mass is ever found by subtraction.
    """
    temperatures = torch.tensor(question.temperatures, dtype=torch.float32, device=hidden.device)
    best = torch.empty((hidden.shape[0], 0), dtype=torch.float32, device=hidden.device)
    best_ids = best.long()
    tails = torch.full((hidden.shape[0], len(temperatures)), -torch.inf, device=hidden.device)
    for start in range(0, head.shape[0], vocab_slice):
        logits = float32_logits(hidden, head[start : start + vocab_slice])
        here = torch.arange(start, start + logits.shape[1], device=hidden.device).expand_as(logits)
        both, both_ids = torch.cat([best, logits], dim=1), torch.cat([best_ids, here], dim=1)
        best, place = both.topk(min(question.k, both.shape[1]), dim=1)
        best_ids = both_ids.gather(1, place)
        others = both.scatter_(1, place, -torch.inf)
        for number, temperature in enumerate(question.temperatures):
            tails[:, number] = torch.logaddexp(tails[:, number], (others / temperature).logsumexp(dim=1))
    largest = best[:, :1]
    return best_ids, best - largest, tails - largest / temperatures


def float32_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Logits in float32: rounding them to 8 bits of mantissa would move a log-probability by up to 0.1."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return hidden.float() @ head.float().T
