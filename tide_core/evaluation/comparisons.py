"""From hidden states to figures: log-probabilities, hits and divergences, a slice of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

SLICE_ELEMENTS = 2**22
"""Logits held at once."""


@dataclass(frozen=True)
class TargetReading:
    """What a model says at masked positions.

    Attributes:
        log_probs: of the clean tokens.
        is_hit: whether the most probable token is the clean one.
    """

    log_probs: Float32[Tensor, " masked"]
    is_hit: Bool[Tensor, " masked"]


@torch.no_grad()
def read_targets(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    target_ids: Int[Tensor, " masked"],
) -> TargetReading:
    """Log-probability of each clean token, and whether it is the model's first choice."""
    log_probs, hits = [], []
    for rows in _row_slices(hidden.shape[0], head.shape[0]):
        logits = (hidden[rows].to(head.dtype) @ head.T).float()
        chosen = logits.gather(1, target_ids[rows, None])[:, 0]
        log_probs.append(chosen - logits.logsumexp(dim=1))
        hits.append(logits.argmax(dim=1) == target_ids[rows])
    return TargetReading(
        torch.cat([*log_probs, torch.zeros(0, device=hidden.device)]),
        torch.cat([*hits, torch.zeros(0, dtype=torch.bool, device=hidden.device)]),
    )


@torch.no_grad()
def divergences(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    shared_vocab: int,
) -> tuple[Float32[Tensor, " masked"], Float32[Tensor, " masked"]]:
    """``KL(teacher || student)`` and ``KL(student || teacher)`` in nats at temperature 1.

    Both distributions are cut to the first `shared_vocab` ids and renormalised, as in pipeline B's losses.
    """
    forward, reverse = [], []
    ours, theirs = student_head[:shared_vocab], teacher_head[:shared_vocab]
    for rows in _row_slices(student_hidden.shape[0], 2 * shared_vocab):
        student = (student_hidden[rows].to(ours.dtype) @ ours.T).float().log_softmax(dim=1)
        teacher = (teacher_hidden[rows].to(theirs.dtype) @ theirs.T).float().log_softmax(dim=1)
        forward.append((teacher.exp() * (teacher - student)).sum(dim=1))
        reverse.append((student.exp() * (student - teacher)).sum(dim=1))
    nothing = torch.zeros(0, device=student_hidden.device)
    return torch.cat([*forward, nothing]), torch.cat([*reverse, nothing])


def bernoulli_divergence(
    first_log_probs: Float[Tensor, " chunk"], second_log_probs: Float[Tensor, " chunk"]
) -> Float[Tensor, " chunk"]:
    """``KL(Bernoulli(p) || Bernoulli(q))`` from ``log p`` and ``log q`` of chunks, in float64 nats.

    ``p log(p/q) + (1-p) log((1-p)/(1-q))``; the chunk is either produced or not. Source: ALM (arXiv
    2503.20083), at temperature 1.
    """
    # A likelihood of exactly 1 has no finite log(1 - p): kept one rounding step away.
    p = first_log_probs.double().clamp(max=-1e-12)
    q = second_log_probs.double().clamp(max=-1e-12)
    log_rest_p, log_rest_q = torch.log(-torch.expm1(p)), torch.log(-torch.expm1(q))
    return p.exp() * (p - q) + log_rest_p.exp() * (log_rest_p - log_rest_q)


def _row_slices(rows: int, width: int) -> list[slice]:
    size = max(1, SLICE_ELEMENTS // max(1, width))
    return [slice(start, start + size) for start in range(0, rows, size)]
