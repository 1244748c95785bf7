"""Divergences from a teacher's k most likely tokens and the mass of its tail.

What such scores can know: the teacher's probabilities of k ids, and that all others together have ``p_tail``.
What they cannot: how the tail is spread. By the data-processing inequality every teacher that agrees with the
scores has at least the divergence of the k + 1 outcomes "id 1, ..., id k, anything else"; the bound is
attained by the teacher whose tail is shaped like the student's. So the k + 1 outcomes give the largest lower
bound, and their gradient is the one that claims nothing about the tail but its mass: it scales the tail as a
whole. Renormalising the k ids instead would teach the student to give the tail no mass at all, and spreading
the tail evenly would pull it towards a uniform distribution.

The same holds for TIDAL: with a tail shaped like the student's, the mixture's bucket is
``q_tail^(1 - lambda) p_tail^lambda`` (an upper bound of the true one, by Hölder's inequality), which is the
dense formula on k + 1 outcomes.

Sources: TIDE (arXiv 2604.26951) for the divergences.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.fused_linear import (
    GradientSink,
    RunningSoftmax,
    resolved_slice_size,
    slice_logits,
    vocabulary_slices,
)
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.tidal import tidal_kl
from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite,
    require_ids,
    require_temperature,
)


class TopK(NamedTuple):
    """The k most likely ids of each row, their log-probabilities, and the log mass of all others."""

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor


def top_k_of_logits(teacher_logits: Float[Tensor, "masked vocab"], k: int, *, temperature: float) -> TopK:
    """What a teacher answers: ids and log-probs ``[masked, topk]``, log tail mass ``[masked]``.

    Raises:
        InvalidInputError: when k is outside 1 .. vocab or the temperature is not positive.
        NonFiniteError: when a logit is NaN or infinite.
    """
    require_temperature(temperature)
    if not 1 <= k <= teacher_logits.shape[1]:
        raise InvalidInputError(f"k must lie in 1 .. {teacher_logits.shape[1]}, got {k}", param="k")
    require_finite("teacher_logits", teacher_logits)
    log_probs = (teacher_logits.to(accumulation_dtype(teacher_logits)) / temperature).log_softmax(dim=-1)
    top, ids = log_probs.topk(k, dim=-1)
    # Summing the rest itself keeps a tail of 1e-30, which 1 - sum(top) would lose in rounding.
    log_tail = log_probs.scatter(1, ids, float("-inf")).logsumexp(dim=-1)
    return TopK(ids, top, log_tail)


def bucket_log_probs(
    student_logits: Float[Tensor, "masked vocab"],
    ids: Int[Tensor, "masked topk"],
    *,
    temperature: float,
) -> Float[Tensor, "masked outcome"]:
    """The student's log-probabilities of the teacher's k ids and, last, of everything else.

    Raises:
        NonFiniteError: when a logit is NaN or infinite.
        InvalidInputError: when an id lies outside the vocabulary or the temperature is not positive.
    """
    require_temperature(temperature)
    require_finite("student_logits", student_logits)
    require_ids("ids", ids, student_logits.shape[1])
    dtype = accumulation_dtype(student_logits)
    log_probs = (student_logits.to(dtype) / temperature).log_softmax(dim=-1)
    log_tail = log_probs.scatter(1, ids.long(), float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs.gather(1, ids.long()), log_tail], dim=1)


def linear_bucket_log_probs(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    ids: Int[Tensor, "masked topk"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
) -> Float[Tensor, "masked outcome"]:
    """The fused form of :func:`bucket_log_probs` over the first ``shared_vocab`` ids, from hidden states.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when an id or a setting is out of range.
        NonFiniteError: when a logit is NaN or infinite.
    """
    require_temperature(temperature)
    if hidden.shape[1] != head.shape[1] or ids.shape[0] != hidden.shape[0]:
        raise ShapeError(
            f"hidden {tuple(hidden.shape)}, head {tuple(head.shape)} and ids {tuple(ids.shape)} do not fit",
            param="ids",
        )
    if not 1 <= shared_vocab <= head.shape[0]:
        raise InvalidInputError(
            f"shared_vocab must lie in 1 .. {head.shape[0]}, got {shared_vocab}", param="shared_vocab"
        )
    require_ids("ids", ids, shared_vocab)
    buckets: Tensor = _BucketLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden,
        head,
        ids.long(),
        _Tiling(shared_vocab, temperature, resolved_slice_size(slice_size, hidden)),
    )
    require_finite("logits", buckets[:, :-1])
    return buckets


def sparse_forward_kl(
    student_buckets: Float[Tensor, "masked outcome"],
    teacher_log_probs: Float[Tensor, "masked topk"],
    teacher_log_tail: Float[Tensor, " masked"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(teacher || student)`` over k + 1 outcomes: at most the exact one, and equal at full k.

    Args:
        student_buckets: from :func:`linear_bucket_log_probs` at the same temperature.
        teacher_log_probs, teacher_log_tail: the teacher's, at the same temperature.
        temperature: sets the factor ``T^2``.

    Raises:
        ShapeError: when the number of outcomes differs.
        NonFiniteError: when a score is NaN.
    """
    student, teacher = _outcomes(student_buckets, teacher_log_probs, teacher_log_tail)
    return temperature**2 * forward_kl(student, teacher, temperature=1.0)


def sparse_reverse_kl(
    student_buckets: Float[Tensor, "masked outcome"],
    teacher_log_probs: Float[Tensor, "masked topk"],
    teacher_log_tail: Float[Tensor, " masked"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(student || teacher)`` over k + 1 outcomes; arguments and errors as the forward form."""
    student, teacher = _outcomes(student_buckets, teacher_log_probs, teacher_log_tail)
    return temperature**2 * reverse_kl(student, teacher, temperature=1.0)


def sparse_tidal_kl(
    student_buckets: Float[Tensor, "masked outcome"],
    teacher_log_probs: Float[Tensor, "masked topk"],
    teacher_log_tail: Float[Tensor, " masked"],
    lambda_t: Float[Tensor, " masked"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """TIDAL's ``T^2 KL(r || student)`` over k + 1 outcomes; arguments and errors as the forward form."""
    student, teacher = _outcomes(student_buckets, teacher_log_probs, teacher_log_tail)
    return temperature**2 * tidal_kl(student, teacher, lambda_t, temperature=1.0)


def _outcomes(
    student_buckets: Tensor, teacher_log_probs: Tensor, teacher_log_tail: Tensor
) -> tuple[Tensor, Tensor]:
    # An empty tail has log mass -inf on one or both sides; the smallest normal number stands in for 0.
    lowest = math.log(torch.finfo(student_buckets.dtype).tiny)
    teacher = torch.cat([teacher_log_probs, teacher_log_tail[:, None]], dim=1).to(student_buckets.dtype)
    student_tail = student_buckets[:, -1:].clamp(min=lowest)
    teacher_tail = teacher[:, -1:].clamp(min=lowest)
    student = torch.cat([student_buckets[:, :-1], student_tail], dim=1)
    return student, torch.cat([teacher[:, :-1], teacher_tail], dim=1)


class _Tiling(NamedTuple):
    shared_vocab: int
    temperature: float
    slice_size: int


class _BucketLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, ids: Tensor, tiling: _Tiling) -> Tensor:
        dtype = accumulation_dtype(hidden)
        top = hidden.new_zeros(ids.shape, dtype=dtype)
        tail_side = RunningSoftmax(hidden)
        for start, stop in vocabulary_slices(hidden.shape[0], tiling.shared_vocab, tiling.slice_size):
            logits = slice_logits(hidden, head, start, stop).div_(tiling.temperature)
            row, place = ((ids >= start) & (ids < stop)).nonzero(as_tuple=True)
            column = ids[row, place] - start
            top[row, place] = logits[row, column]
            logits[row, column] = float("-inf")
            tail_side.add(logits)
        tail = tail_side.log_total.to(dtype)
        total = torch.logaddexp(tail, top.logsumexp(dim=1))
        ctx.save_for_backward(hidden, head, ids, tail, total)
        ctx.tiling = tiling
        return torch.cat([top, tail[:, None]], dim=1) - total[:, None]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, head, ids, tail, total = ctx.saved_tensors
        tiling: _Tiling = ctx.tiling
        sink = GradientSink(ctx, hidden, head)
        grad_sum = grad.sum(dim=1, keepdim=True)
        for start, stop in vocabulary_slices(hidden.shape[0], tiling.shared_vocab, tiling.slice_size):
            logits = slice_logits(hidden, head, start, stop).div_(tiling.temperature)
            row, place = ((ids >= start) & (ids < stop)).nonzero(as_tuple=True)
            column = ids[row, place] - start
            tail_share = (logits - tail[:, None]).exp()
            tail_share[row, column] = 0.0
            grad_logits = grad[:, -1:] * tail_share - grad_sum * (logits - total[:, None]).exp_()
            grad_logits[row, column] += grad[row, place]
            sink.add(grad_logits.div_(tiling.temperature), start, stop)
        return sink.hidden, sink.head, None, None
