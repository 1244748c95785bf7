"""Chunk likelihoods across tokenizers: CALM and its relatives (pipeline A).

A chunk is a group of whole tokens that covers the same bytes in both tokenisations, so its likelihood means
the same to both models although their vocabularies differ: ``LP = sum of lp over the chunk``,
``p = exp(LP / T)``. Each function compares the Bernoulli variable "this chunk" of student and teacher.
Sources: TIDE (arXiv 2604.26951), cross-tokenizer objectives; ALM (arXiv 2503.20083).

Everything is computed in log space. ``floor`` keeps ``p`` in [floor, 1 - floor] as the reference does; its
price is a gradient of exactly zero for hard chunks (``p_S < floor``). With ``floor`` = 0 no chunk is cut off;
only ``p`` above ``1 - eps / 2``, which the dtype cannot tell from 1, is held there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.tidal import require_shares
from tide_core.losses.validation import (
    accumulation_dtype,
    require_ids,
    require_log_probs,
    require_same_shape,
    require_temperature,
)

DEFAULT_FLOOR = 1e-7


class LogBernoulli(NamedTuple):
    """``log p`` and ``log(1 - p)`` of one outcome."""

    yes: Tensor
    no: Tensor


def chunk_log_probs(
    token_log_probs: Float[Tensor, "batch seq"], chunk_ids: Int[Tensor, "batch seq"], n_chunks: int
) -> Float[Tensor, "batch chunk"]:
    """Sum the log-probabilities of each chunk's tokens, by one scatter.

    Args:
        token_log_probs: ``lp_i`` of the clean tokens.
        chunk_ids: chunk of each token in 0 .. n_chunks - 1, -1 for tokens of no chunk (these are left out).
        n_chunks: size of the chunk axis; chunks without a token get 0.

    Returns:
        ``LP``, float ``[batch, chunk]``, in the dtype of the input.

    Raises:
        ShapeError: when the shapes differ.
        InvalidInputError: when a chunk id lies outside -1 .. n_chunks - 1.
    """
    require_same_shape("chunk_ids", chunk_ids, "token_log_probs", token_log_probs)
    require_ids("chunk_ids", chunk_ids + 1, n_chunks + 1)
    # Tokens of no chunk go to a column of their own, past the end, that is then cut off.
    columns = torch.where(chunk_ids < 0, n_chunks, chunk_ids).long()
    sums = token_log_probs.new_zeros(token_log_probs.shape[0], n_chunks + 1)
    return sums.scatter_add(1, columns, token_log_probs)[:, :n_chunks]


def forward_calm(
    student_chunk_lp: Float[Tensor, "*chunk"],
    teacher_chunk_lp: Float[Tensor, "*other"],
    *,
    temperature: float,
    floor: float = DEFAULT_FLOOR,
) -> Float[Tensor, "*chunk"]:
    """CALM: ``-[p_T log p_S + (1 - p_T) log(1 - p_S)]`` per chunk.

    Gradient with respect to ``LP_S``: ``-(1 / T) (p_T - p_S) / (1 - p_S)``; it diverges as ``p_S -> 1``.

    Args:
        student_chunk_lp: ``LP_S``, at most 0.
        teacher_chunk_lp: ``LP_T``, same shape; no gradient flows into it.
        temperature: ``T > 0``.
        floor: in [0, 0.5), see the module.

    Returns:
        float32 (float64 for float64 input) per chunk, not averaged.

    Raises:
        ShapeError: when the shapes differ.
        NonFiniteError: when a log-probability is NaN or infinite.
        InvalidInputError: when one is above 0, or the temperature or floor is out of range.
    """
    student, teacher = _bernoulli_pair(student_chunk_lp, teacher_chunk_lp, temperature, floor)
    return _cross_entropy(teacher.yes.exp(), teacher.no.exp(), student)


def tidal_calm(
    student_chunk_lp: Float[Tensor, "*chunk"],
    teacher_chunk_lp: Float[Tensor, "*other"],
    lambda_t: Float[Tensor, "*share"] | float,
    *,
    temperature: float,
    floor: float = DEFAULT_FLOOR,
) -> Float[Tensor, "*chunk"]:
    """CALM-TIDAL: CALM towards ``p_mix = (1 - lambda) p_S + lambda p_T``, detached, instead of ``p_T``.

    The gradient is ``lambda`` times CALM's. Not yet multiplied by the timestep weight ``w2(t)``.

    Args:
        student_chunk_lp, teacher_chunk_lp, temperature, floor: as in :func:`forward_calm`.
        lambda_t: the teacher's share in [0, 1]: one number, one a chunk, or one a row of ``[batch, chunk]``.

    Raises:
        As :func:`forward_calm`, and InvalidInputError when a share lies outside [0, 1].
    """
    student, teacher = _bernoulli_pair(student_chunk_lp, teacher_chunk_lp, temperature, floor)
    share = _per_chunk(lambda_t, student.yes)
    yes = (1.0 - share) * student.yes.detach().exp() + share * teacher.yes.exp()
    no = (1.0 - share) * student.no.detach().exp() + share * teacher.no.exp()
    return _cross_entropy(yes, no, student)


def reverse_calm(
    student_chunk_lp: Float[Tensor, "*chunk"],
    teacher_chunk_lp: Float[Tensor, "*other"],
    *,
    temperature: float,
    floor: float = DEFAULT_FLOOR,
) -> Float[Tensor, "*chunk"]:
    """Reverse CALM: ``-[p_S log p_T + (1 - p_S) log(1 - p_T)]`` per chunk.

    Gradient with respect to ``LP_S``: ``-(p_S / T) log(p_T / (1 - p_T))``. It is bounded by ``16.12 p_S / T``
    at the default floor, zero where ``p_T = 1/2`` (the teacher does not know) and as ``p_S -> 0`` (the
    student does not): both noisy ends are filtered out. The paper calls this a Bernoulli KL up to a constant;
    it is not, because the student's entropy that it lacks depends on the parameters. The true divergence
    is :func:`reverse_bernoulli_kl`.

    Arguments, result and errors as in :func:`forward_calm`.
    """
    student, teacher = _bernoulli_pair(student_chunk_lp, teacher_chunk_lp, temperature, floor)
    return _cross_entropy(student.yes.exp(), student.no.exp(), teacher)


def reverse_bernoulli_kl(
    student_chunk_lp: Float[Tensor, "*chunk"],
    teacher_chunk_lp: Float[Tensor, "*other"],
    *,
    temperature: float,
    floor: float = DEFAULT_FLOOR,
) -> Float[Tensor, "*chunk"]:
    """``KL(p_S || p_T)`` of the two Bernoulli variables: Reverse CALM minus the student's entropy.

    Gradient with respect to ``LP_S``: ``(p_S / T) (logit(p_S) - logit(p_T))``; it vanishes where both agree.
    Arguments, result and errors as in :func:`forward_calm`.
    """
    student, teacher = _bernoulli_pair(student_chunk_lp, teacher_chunk_lp, temperature, floor)
    yes = student.yes.exp() * (student.yes - teacher.yes)
    return yes + student.no.exp() * (student.no - teacher.no)


def log1mexp(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """``log(1 - exp(x))`` for ``x < 0`` without cancellation at either end, with a finite gradient."""
    is_near_zero = x > -math.log(2.0)
    # Each branch sees only arguments that it can handle: the gradient of the branch not taken is multiplied
    # by zero, and zero times infinity would be NaN.
    near = torch.log(-torch.expm1(x.clamp(min=-math.log(2.0))))
    far = torch.log1p(-torch.exp(x.clamp(max=-math.log(2.0))))
    return torch.where(is_near_zero, near, far)


def _cross_entropy(yes: Tensor, no: Tensor, model: LogBernoulli) -> Tensor:
    return -(yes * model.yes + no * model.no)


def _bernoulli_pair(
    student_chunk_lp: Tensor, teacher_chunk_lp: Tensor, temperature: float, floor: float
) -> tuple[LogBernoulli, LogBernoulli]:
    require_temperature(temperature)
    if not 0.0 <= floor < 0.5:
        raise InvalidInputError(f"the probability floor must lie in [0, 0.5), got {floor}", param="floor")
    require_same_shape("teacher_chunk_lp", teacher_chunk_lp, "student_chunk_lp", student_chunk_lp)
    require_log_probs("student_chunk_lp", student_chunk_lp)
    require_log_probs("teacher_chunk_lp", teacher_chunk_lp)
    dtype = accumulation_dtype(student_chunk_lp)
    student = _bernoulli(student_chunk_lp.to(dtype), temperature, floor)
    return student, _bernoulli(teacher_chunk_lp.detach().to(dtype), temperature, floor)


def _bernoulli(chunk_lp: Tensor, temperature: float, floor: float) -> LogBernoulli:
    lowest = math.log(floor) if floor > 0.0 else None
    highest = min(math.log1p(-floor), -torch.finfo(chunk_lp.dtype).eps / 2)
    yes = (chunk_lp / temperature).clamp(min=lowest, max=highest)
    return LogBernoulli(yes, log1mexp(yes))


def _per_chunk(lambda_t: Tensor | float, like: Tensor) -> Tensor:
    share = torch.as_tensor(lambda_t, dtype=like.dtype, device=like.device)
    require_shares(share)
    if share.ndim == 1 and like.ndim == 2:
        share = share[:, None]
    try:
        return share.expand_as(like)
    except RuntimeError as error:
        raise ShapeError(
            f"lambda_t has shape {tuple(share.shape)}, which does not fit chunks {tuple(like.shape)}",
            param="lambda_t",
        ) from error
