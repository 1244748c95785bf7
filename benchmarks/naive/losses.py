"""The losses of the naive arm: full logits, float32 log-softmax, dense chunk matrices.

The numbers are those of :mod:`tide_core.losses`; the way to them is the released trainer's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.naive.batch import NaiveBatch
from benchmarks.scenario import PROGRESS
from tide_core.contracts.objective import (
    AnyChunkTerm,
    CalmTerm,
    CrossEntropyTerm,
    ForwardKLTerm,
    ObjectiveTerm,
    PositionTerm,
    ReverseCalmTerm,
    ReverseKLTerm,
    TidalCalmTerm,
    TidalSchedule,
    TidalTerm,
)
from tide_core.schedules.tidal import tidal_lambda, timestep_weight


def total_loss(
    terms: tuple[ObjectiveTerm, ...], logits: Tensor, teacher_logits: Tensor | None, batch: NaiveBatch
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the terms, and each term's value.

    Args:
        terms: of the objective; cross-entropy, CALM, CALM-TIDAL, Reverse CALM, KL, reverse KL or TIDAL.
        logits: the student's at the noisy copy, [batch, student_seq, vocab].
        teacher_logits: [batch, teacher_seq, teacher_vocab] in pipeline A, [batch, student_seq, shared] in B.
        batch: what they belong to.
    """
    total = logits.new_zeros(())
    parts: dict[str, float] = {}
    log_probs = logits.float().log_softmax(-1)
    for term in terms:
        if isinstance(term, CrossEntropyTerm):
            value = _cross_entropy(log_probs, batch)
        elif isinstance(term, PositionTerm):
            assert teacher_logits is not None
            value = _divergence(term, logits, teacher_logits, batch)
        else:
            assert teacher_logits is not None
            value = _chunk_loss(term, log_probs, teacher_logits, batch)
        parts[term.type] = float(value.detach())
        total = total + term.weight * value
    return total, parts


def _cross_entropy(log_probs: Tensor, batch: NaiveBatch) -> Tensor:
    nll = -log_probs.gather(-1, batch.x_0[..., None])[..., 0]
    weights = (1.0 / (batch.t + 1e-6))[:, None] * batch.is_masked
    return (nll * weights).sum() / batch.maskable


def _chunk_loss(term: AnyChunkTerm, log_probs: Tensor, teacher_logits: Tensor, batch: NaiveBatch) -> Tensor:
    teacher_lp = teacher_logits.float().log_softmax(-1).gather(-1, batch.teacher_ids[..., None])[..., 0]
    student_lp = log_probs.gather(-1, batch.x_0[..., None])[..., 0]
    width = max(batch.chunk_counts)
    ours = _chunk_matrix(batch.student_chunks, width, student_lp.dtype)
    theirs = _chunk_matrix(batch.teacher_chunks, width, teacher_lp.dtype)
    is_active = torch.arange(width, device=ours.device) < _tensor(batch.chunk_counts, ours)[:, None]
    low, high = term.probability_floor, 1.0 - term.probability_floor
    p_s = (torch.einsum("bl,blc->bc", student_lp, ours) / term.temperature).exp().clamp(low, high)
    p_t = (torch.einsum("bl,blc->bc", teacher_lp, theirs) / term.temperature).exp().clamp(low, high)
    match term:
        case CalmTerm():
            values = _bernoulli(p_t, p_s)
        case ReverseCalmTerm():
            values = _bernoulli(p_s, p_t)
        case TidalCalmTerm():
            share = _share(term.schedule, batch)[:, None]
            mixed = ((1.0 - share) * p_s + share * p_t).detach()
            values = _bernoulli(mixed, p_s) * timestep_weight(batch.t, term.timestep_weight)[:, None]
        case _:
            raise NotImplementedError(f"the released trainer has no {term.type}")
    return (values * is_active).sum() / batch.active_chunks


def _bernoulli(p: Tensor, q: Tensor) -> Tensor:
    return -(p * q.log() + (1.0 - p) * (1.0 - q).log())


def _chunk_matrix(chunks: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Dense [batch, seq, chunk] with a one where a token belongs to a chunk."""
    return (chunks[..., None] == torch.arange(width, device=chunks.device)).to(dtype)


def _tensor(values: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)


def _divergence(term: PositionTerm, logits: Tensor, teacher_logits: Tensor, batch: NaiveBatch) -> Tensor:
    temperature = term.temperature
    student = logits[..., : teacher_logits.shape[-1]].float()
    teacher = teacher_logits.float()
    log_s = (student / temperature).log_softmax(-1)
    match term:
        case ForwardKLTerm():
            log_target = (teacher / temperature).log_softmax(-1)
            divergence = (log_target.exp() * (log_target - log_s)).sum(-1)
        case ReverseKLTerm():
            log_t = (teacher / temperature).log_softmax(-1)
            divergence = (log_s.exp() * (log_s - log_t)).sum(-1)
        case TidalTerm():
            share = _share(term.schedule, batch)[:, None, None]
            mixed = ((1.0 - share) * student.detach() + share * teacher) / temperature
            log_target = mixed.log_softmax(-1)
            divergence = (log_target.exp() * (log_target - log_s)).sum(-1)
            divergence = divergence * timestep_weight(batch.t, term.timestep_weight)[:, None]
    is_compared = batch.is_masked & (batch.positions >= 0)
    return temperature**2 * (divergence * is_compared).sum() / batch.is_masked.sum()


def _share(schedule: TidalSchedule, batch: NaiveBatch) -> Tensor:
    assert schedule.growth != "adaptive"
    return tidal_lambda(
        PROGRESS,
        batch.t,
        lambda_init=schedule.lambda_init,
        lambda_max=schedule.lambda_max,
        growth=schedule.growth,
        axes=schedule.axes,
    )
