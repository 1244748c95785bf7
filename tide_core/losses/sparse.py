"""Divergences from a teacher's k most likely tokens and the mass of its tail.

What such scores can know: the teacher's probabilities of k ids, that all others together have ``p_tail``, and
that none of them is likelier than the k-th. What they cannot: how the tail is spread below that cap. Of all
teachers that agree with the scores, the one nearest to the student (in either direction of the divergence)
has the tail ``min(p_k, c q)`` with ``q`` the student and ``c`` such that the mass is right. Its divergence is
the largest lower bound that the scores support, and by the envelope theorem the bound's gradient is that of
the divergence from this teacher, held fixed. It claims nothing about the tail but its mass and its cap: the
student's tail is scaled as a whole, except where the student alone believes in a token that the teacher
cannot. Renormalising the k ids instead would teach the student to give the tail no mass at all.

The k ids, the student's own likeliest tail ids (``candidates``) and one bucket for the rest are the outcomes
that the dense formulas run over. Without candidates the cap goes unused.

Sources: TIDE (arXiv 2604.26951) for the divergences; the data-processing inequality for the bucket.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.head_pass import (
    RunningSoftmax,
    Shelf,
    Statistic,
    require_linear,
    resolve_slice_size,
    slice_product,
    statistics_of,
    vocabulary_slices,
)
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.tidal import tidal_kl
from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite,
    require_ids,
    require_log_probs,
    require_temperature,
)

DEFAULT_CANDIDATES = 64
"""Tail ids of the student's own that are held against the cap."""


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
    keep_bytes: int | None = None,
) -> Float[Tensor, "masked outcome"]:
    """The fused form of :func:`bucket_log_probs` over the first ``shared_vocab`` ids, from hidden states.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when an id or a setting is out of range.
        NonFiniteError: when a logit is NaN or infinite.
    """
    statistic = BucketLogProbs(ids, temperature=temperature, shared_vocab=shared_vocab)
    return statistics_of(hidden, head, [statistic], slice_size=slice_size, keep_bytes=keep_bytes)[0]


def tail_candidates(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    ids: Int[Tensor, "masked topk"],
    count: int = DEFAULT_CANDIDATES,
    *,
    shared_vocab: int,
    slice_size: int | None = None,
) -> Int[Tensor, "masked candidate"]:
    """The student's own likeliest ids outside the teacher's k, likeliest first; no gradient.

    Append them to ``ids`` for :func:`linear_bucket_log_probs`. There are fewer than ``count`` when the shared
    vocabulary has fewer other ids.

    Raises:
        As :func:`linear_bucket_log_probs`.
    """
    require_linear("hidden", hidden, "head", head)
    _require_buckets(hidden.shape[0], head, ids, shared_vocab)
    size = resolve_slice_size(slice_size, hidden)
    kept = min(count, shared_vocab - ids.shape[1])
    best = hidden.new_empty((hidden.shape[0], 0), dtype=accumulation_dtype(hidden))
    best_ids = ids.new_empty((hidden.shape[0], 0), dtype=torch.int64)
    with torch.no_grad():
        for start, stop in vocabulary_slices(hidden.shape[0], shared_vocab, size):
            logits = slice_product(hidden, head, start, stop).to(best.dtype)
            row, _, column = _inside(ids, start, stop)
            logits[row, column] = float("-inf")
            here, place = logits.topk(min(kept, stop - start), dim=1)
            both, both_ids = torch.cat([best, here], dim=1), torch.cat([best_ids, place + start], dim=1)
            best, order = both.topk(min(kept, both.shape[1]), dim=1)
            best_ids = both_ids.gather(1, order)
    return best_ids


def sparse_forward_kl(
    student_buckets: Float[Tensor, "masked outcome"],
    teacher_log_probs: Float[Tensor, "masked topk"],
    teacher_log_tail: Float[Tensor, " masked"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(teacher || student)`` from top-k scores: at most the exact one, and equal at full k.

    Args:
        student_buckets: the student's log-probabilities of the teacher's k ids, of its own candidates
            (likeliest first; there may be none) and of the rest, from :func:`linear_bucket_log_probs`.
        teacher_log_probs, teacher_log_tail: the teacher's, at the same temperature.
        temperature: sets the factor ``T^2``.

    Raises:
        ShapeError: when there are not more outcomes than the teacher's ids.
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
    """``T^2 KL(student || teacher)`` from top-k scores; arguments and errors as the forward form."""
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
    """TIDAL's ``T^2 KL(r || student)`` from top-k scores; arguments and errors as the forward form."""
    student, teacher = _outcomes(student_buckets, teacher_log_probs, teacher_log_tail)
    return temperature**2 * tidal_kl(student, teacher, lambda_t, temperature=1.0)


def _outcomes(
    student_buckets: Tensor, teacher_log_probs: Tensor, teacher_log_tail: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all outcomes: the student's, and the nearest teacher's."""
    k = teacher_log_probs.shape[1]
    for name, tensor in (("teacher_log_probs", teacher_log_probs), ("teacher_log_tail", teacher_log_tail)):
        if tensor.shape[0] != student_buckets.shape[0]:
            raise ShapeError(
                f"{name} has {tensor.shape[0]} rows, student_buckets {student_buckets.shape[0]}", param=name
            )
    if student_buckets.shape[1] <= k:
        raise ShapeError(
            f"student_buckets has {student_buckets.shape[1]} outcomes for a teacher's {k} ids; there must be "
            "one more, the tail",
            param="student_buckets",
        )
    require_log_probs("teacher_log_probs", teacher_log_probs)
    # An empty tail has log mass -inf, which is no fault.
    require_log_probs("teacher_log_tail", teacher_log_tail.clamp(min=-1e30))
    require_log_probs("student_buckets", student_buckets.detach().clamp(min=-1e30))
    # An empty tail has log mass -inf on one or both sides; the smallest normal number stands in for 0.
    lowest = math.log(torch.finfo(student_buckets.dtype).tiny)
    known, own_tail = student_buckets[:, :k], student_buckets[:, k:].clamp(min=lowest)
    tail = _nearest_tail(own_tail.detach(), teacher_log_probs[:, -1], teacher_log_tail)
    teacher = torch.cat([teacher_log_probs, tail.clamp(min=lowest)], dim=1).to(student_buckets.dtype)
    return torch.cat([known, own_tail], dim=1), teacher


def _nearest_tail(own_tail: Tensor, log_cap: Tensor, log_mass: Tensor) -> Tensor:
    """Log of ``min(p_k, c q)`` over candidates (descending) and the rest, by filling from the top.

    With the first j candidates at the cap, ``c = (p_tail - j p_k) / (q_tail - q_1 - ... - q_j)``; the right j
    is the first at which candidate j + 1 stays below the cap.
    """
    # The few numbers a row are computed in float64, relative to the tail's masses, so that no tail is too
    # small; the rest is never capped, since it stands for many ids.
    shares = (own_tail.double() - own_tail.double().logsumexp(dim=1, keepdim=True)).exp()
    mass = log_mass.double().clamp(min=-600.0)[:, None]
    cap = (log_cap.double()[:, None] - mass).exp()
    before = shares.cumsum(dim=1) - shares
    capped = torch.arange(shares.shape[1], device=shares.device)
    scale = (1.0 - capped * cap) / (1.0 - before).clamp(min=1e-300)
    fits = scale * shares <= cap
    fits[:, -1] = True
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    filled = torch.where(capped < first, cap, scale.gather(1, first) * shares)
    return filled.log() + mass


def _require_buckets(rows: int, head: Tensor, ids: Tensor, shared_vocab: int) -> None:
    if ids.shape[0] != rows:
        raise ShapeError(f"ids has {ids.shape[0]} rows, hidden {rows}", param="ids")
    if not 1 <= shared_vocab <= head.shape[0]:
        raise InvalidInputError(
            f"shared_vocab must lie in 1 .. {head.shape[0]}, got {shared_vocab}", param="shared_vocab"
        )
    require_ids("ids", ids, shared_vocab)


def _inside(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and place of the ids that lie in a slice, and their column in it."""
    row, place = ((ids >= start) & (ids < stop)).nonzero(as_tuple=True)
    return row, place, ids[row, place] - start


class BucketLogProbs(Statistic):
    """``[z_k / T, lse(rest / T)] - lse(z / T)`` over the shared vocabulary: the ids' and the tail's.

    Args:
        ids: of each row, distinct; the outcomes that are told apart.
        temperature: ``T > 0``.
        shared_vocab: ids below this are the outcomes at all.
        rows: the hidden states' rows that ``ids`` belongs to; None for all.
    """

    def __init__(
        self,
        ids: Int[Tensor, "own topk"],
        *,
        temperature: float,
        shared_vocab: int,
        rows: Int[Tensor, " own"] | None = None,
    ) -> None:
        require_temperature(temperature)
        super().__init__(rows, shared_vocab)
        self._ids = ids.long()
        self._temperature = temperature
        self._shared_vocab = shared_vocab

    def check(self, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        rows = hidden if self.rows is None else self.rows
        _require_buckets(rows.shape[0], head, self._ids, self._shared_vocab)

    def begin(self, rows: int, like: Tensor) -> None:
        """See :class:`Statistic`."""
        self._top = like.new_zeros(self._ids.shape, dtype=accumulation_dtype(like))
        self._tail_side = RunningSoftmax(rows, like)

    def observe(self, logits: Tensor, start: int, shelf: Shelf) -> None:
        """See :class:`Statistic`."""
        logits = logits / self._temperature
        row, place, column = _inside(self._ids, start, start + logits.shape[1])
        self._top[row, place] = logits[row, column]
        logits[row, column] = float("-inf")
        self._tail_side.add(logits)

    def value(self, dtype: torch.dtype) -> Tensor:
        """See :class:`Statistic`."""
        self._tail = self._tail_side.log_total.to(dtype)
        self._total = torch.logaddexp(self._tail, self._top.logsumexp(dim=1))
        return torch.cat([self._top, self._tail[:, None]], dim=1) - self._total[:, None]

    def gradient(self, logits: Tensor, start: int, shelf: Shelf, grad: Tensor) -> Tensor:
        """See :class:`Statistic`."""
        logits = logits / self._temperature
        row, place, column = _inside(self._ids, start, start + logits.shape[1])
        tail_share = (logits - self._tail[:, None]).exp()
        tail_share[row, column] = 0.0
        grad_sum = grad.sum(dim=1, keepdim=True)
        grad_logits = grad[:, -1:] * tail_share - grad_sum * (logits - self._total[:, None]).exp_()
        grad_logits[row, column] += grad[row, place]
        return grad_logits.div_(self._temperature)

    def require_finite(self, value: Tensor, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`: an empty tail is no fault."""
        super().require_finite(value[:, :-1], hidden, head)
