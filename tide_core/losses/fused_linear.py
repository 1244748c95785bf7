"""Losses that take hidden states and LM heads: what they read of the head, for :mod:`~.head_pass`.

Results equal the plain forms in :mod:`tide_core.losses.cross_entropy`, :mod:`~tide_core.losses.kl` and
:mod:`~tide_core.losses.tidal`. Each is a :class:`~tide_core.losses.head_pass.Statistic`, so that an objective
reads all of its terms in one pass; the functions are passes of one.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.head_pass import (
    RunningSoftmax,
    Shelf,
    Statistic,
    columns_of,
    require_linear,
    slice_product,
    statistics_of,
)
from tide_core.losses.tidal import require_shares
from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite_result,
    require_ids,
    require_temperature,
)


def linear_target_log_probs(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    target_ids: Int[Tensor, " masked"],
    *,
    slice_size: int | None = None,
    keep_bytes: int | None = None,
) -> Float[Tensor, " masked"]:
    """``lp_i`` of the clean tokens from hidden states: the fused form of ``target_log_probs``.

    Args:
        hidden: final hidden states at the masked positions.
        head: LM head weight.
        target_ids: clean token ids.
        slice_size: largest number of logits in one tile; None chooses by device.
        keep_bytes: most bytes of logits kept for the backward pass; None chooses by device.

    Returns:
        float32 (float64 for float64 hidden states), differentiable in ``hidden`` and ``head``.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when an id lies outside the vocabulary or ``slice_size`` is not positive.
        NonFiniteError: when a logit is NaN or infinite.
    """
    statistic = TargetLogProbs(target_ids)
    return statistics_of(hidden, head, [statistic], slice_size=slice_size, keep_bytes=keep_bytes)[0]


def linear_forward_kl(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
    keep_bytes: int | None = None,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(teacher || student)`` over the first ``shared_vocab`` ids: the fused ``forward_kl``.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when the shared vocabulary exceeds either head, or a setting is out of range.
        NonFiniteError: when a logit is NaN or infinite.
    """
    statistic = TidalDivergence(
        teacher_hidden, teacher_head, None, temperature=temperature, shared_vocab=shared_vocab
    )
    sizes = {"slice_size": slice_size, "keep_bytes": keep_bytes}
    return statistics_of(student_hidden, student_head, [statistic], **sizes)[0]


def linear_tidal_kl(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    lambda_t: Float[Tensor, " masked"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
    keep_bytes: int | None = None,
) -> Float[Tensor, " masked"]:
    """TIDAL over the first ``shared_vocab`` ids: the fused form of ``tidal_kl``; raises as the forward KL."""
    statistic = TidalDivergence(
        teacher_hidden, teacher_head, lambda_t, temperature=temperature, shared_vocab=shared_vocab
    )
    sizes = {"slice_size": slice_size, "keep_bytes": keep_bytes}
    return statistics_of(student_hidden, student_head, [statistic], **sizes)[0]


def linear_reverse_kl(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
    keep_bytes: int | None = None,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(student || teacher)`` over the first ``shared_vocab`` ids: the fused ``reverse_kl``.

    Raises as :func:`linear_forward_kl`.
    """
    statistic = ReverseDivergence(
        teacher_hidden, teacher_head, temperature=temperature, shared_vocab=shared_vocab
    )
    sizes = {"slice_size": slice_size, "keep_bytes": keep_bytes}
    return statistics_of(student_hidden, student_head, [statistic], **sizes)[0]


class TargetLogProbs(Statistic):
    """``lp_i = z_i[x_i] - lse(z_i)``; its gradient is ``onehot(x_i) - softmax(z_i)``.

    Args:
        target_ids: the clean token at each masked position.
    """

    def __init__(self, target_ids: Int[Tensor, " masked"]) -> None:
        super().__init__()
        self._ids = target_ids

    def check(self, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        if self._ids.shape[0] != hidden.shape[0]:
            raise ShapeError(
                f"target_ids names {self._ids.shape[0]} positions, hidden {hidden.shape[0]}",
                param="target_ids",
            )
        require_ids("target_ids", self._ids, head.shape[0])

    def begin(self, rows: int, like: Tensor) -> None:
        """See :class:`Statistic`."""
        self._ids = self._ids.long()
        self._running = RunningSoftmax(rows, like)
        self._target_logits = torch.zeros_like(self._running.log_total)

    def observe(self, logits: Tensor, start: int, shelf: Shelf) -> None:
        """See :class:`Statistic`."""
        is_here, column = columns_of(self._ids, start, logits.shape[1])
        found = logits.gather(1, column[:, None])[:, 0]
        self._target_logits = torch.where(is_here, found.double(), self._target_logits)
        self._running.add(logits)

    def value(self, dtype: torch.dtype) -> Tensor:
        """See :class:`Statistic`."""
        return (self._target_logits - self._running.log_total).to(dtype)

    def gradient(self, logits: Tensor, start: int, shelf: Shelf, grad: Tensor) -> Tensor:
        """See :class:`Statistic`."""
        probs = (logits - self._running.log_total.to(logits.dtype)[:, None]).exp_()
        is_here, column = columns_of(self._ids, start, logits.shape[1])
        grad_logits = probs.mul_(-grad[:, None])
        return grad_logits.scatter_add_(1, column[:, None], (grad * is_here)[:, None])


class _Divergence(Statistic):
    """A divergence between the student and a frozen teacher, at a temperature, over the shared vocabulary.

    Args:
        teacher_hidden: final hidden states at the positions that the teacher sees.
        teacher_head: its LM head.
        temperature: ``T > 0``.
        shared_vocab: ids below this are compared.
        rows: the student's rows that ``teacher_hidden`` belongs to; None for all.
    """

    def __init__(
        self,
        teacher_hidden: Float[Tensor, "own teacher_hidden"],
        teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
        *,
        temperature: float,
        shared_vocab: int,
        rows: Int[Tensor, " own"] | None = None,
    ) -> None:
        require_temperature(temperature)
        super().__init__(rows, shared_vocab)
        self._hidden, self._head = teacher_hidden.detach(), teacher_head.detach()
        self._temperature = temperature
        self._shared_vocab = shared_vocab
        self.kept_bytes_a_logit = self._hidden.element_size()

    def check(self, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        require_linear("teacher_hidden", self._hidden, "teacher_head", self._head)
        rows = hidden.shape[0] if self.rows is None else self.rows.shape[0]
        if rows != self._hidden.shape[0]:
            raise ShapeError(
                f"teacher_hidden has {self._hidden.shape[0]} rows, student_hidden {rows}",
                param="teacher_hidden",
            )
        smaller = min(head.shape[0], self._head.shape[0])
        if not 1 <= self._shared_vocab <= smaller:
            raise InvalidInputError(
                f"shared_vocab must lie in 1 .. {smaller} (the smaller LM head), got {self._shared_vocab}",
                param="shared_vocab",
            )

    def observe(self, logits: Tensor, start: int, shelf: Shelf) -> None:
        """See :class:`Statistic`."""
        product = self._product(logits, start)
        shelf.offer(start, product)
        self._compare(logits / self._temperature, product.to(logits.dtype) / self._temperature)

    def gradient(self, logits: Tensor, start: int, shelf: Shelf, grad: Tensor) -> Tensor:
        """See :class:`Statistic`."""
        product = shelf.take(start)
        if product is None:
            product = self._product(logits, start)
        student, teacher = logits / self._temperature, product.to(logits.dtype) / self._temperature
        return self._slope(student, teacher).mul_((grad * self._temperature)[:, None])

    def require_finite(self, value: Tensor, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        require_finite_result(
            "logits",
            value,
            teacher_hidden=self._hidden,
            teacher_head=self._head,
            student_hidden=hidden,
            student_head=head,
        )

    def _product(self, logits: Tensor, start: int) -> Tensor:
        return slice_product(self._hidden, self._head, start, start + logits.shape[1])

    @abstractmethod
    def _compare(self, student: Tensor, teacher: Tensor) -> None:
        """Take in ``s / T`` and ``z / T`` of a slice, fresh tensors that may be overwritten."""

    @abstractmethod
    def _slope(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence's gradient with respect to ``s / T``, before the factor ``T^2``; likewise."""


class TidalDivergence(_Divergence):
    """``KL = lambda E_r[z - s] / T - lse(m / T) + lse(s / T)`` with ``m = (1 - lambda) s + lambda z``.

    Args:
        teacher_hidden, teacher_head, temperature, shared_vocab, rows: as in :class:`ReverseDivergence`.
        lambda_t: the teacher's share of each row, in [0, 1]; None for 1, the forward KL.
    """

    def __init__(
        self,
        teacher_hidden: Float[Tensor, "own teacher_hidden"],
        teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
        lambda_t: Float[Tensor, " own"] | None,
        *,
        temperature: float,
        shared_vocab: int,
        rows: Int[Tensor, " own"] | None = None,
    ) -> None:
        super().__init__(
            teacher_hidden, teacher_head, temperature=temperature, shared_vocab=shared_vocab, rows=rows
        )
        if lambda_t is None:
            lambda_t = teacher_hidden.new_ones(teacher_hidden.shape[0], dtype=torch.float64)
        require_shares(lambda_t)
        self._lambda = lambda_t.detach()

    def check(self, hidden: Tensor, head: Tensor) -> None:
        """See :class:`Statistic`."""
        super().check(hidden, head)
        if self._lambda.shape != self._hidden.shape[:1]:
            raise ShapeError(
                f"lambda_t has shape {tuple(self._lambda.shape)}, there are {self._hidden.shape[0]} rows",
                param="lambda_t",
            )

    def begin(self, rows: int, like: Tensor) -> None:
        """See :class:`Statistic`."""
        self._share = self._lambda.to(accumulation_dtype(like))[:, None]
        self._student_side, self._target_side = RunningSoftmax(rows, like), RunningSoftmax(rows, like)

    def value(self, dtype: torch.dtype) -> Tensor:
        """See :class:`Statistic`."""
        lifted = self._target_side.log_total - self._student_side.log_total
        divergence = self._share[:, 0] * self._target_side.expected - lifted
        return (self._temperature**2 * divergence).to(dtype)

    def _compare(self, student: Tensor, teacher: Tensor) -> None:
        gap = teacher.sub_(student)
        self._target_side.add(torch.addcmul(student, gap, self._share), gap)
        self._student_side.add(student)

    def _slope(self, student: Tensor, teacher: Tensor) -> Tensor:
        target = torch.addcmul(student, teacher.sub_(student), self._share)
        dtype = student.dtype
        student_probs = student.sub_(self._student_side.log_total.to(dtype)[:, None]).exp_()
        target_probs = target.sub_(self._target_side.log_total.to(dtype)[:, None]).exp_()
        return student_probs.sub_(target_probs)


class ReverseDivergence(_Divergence):
    """``KL = E_q[s - z] / T - lse(s / T) + lse(z / T)`` with ``q = softmax(s / T)``."""

    def begin(self, rows: int, like: Tensor) -> None:
        """See :class:`Statistic`."""
        self._student_side, self._teacher_side = RunningSoftmax(rows, like), RunningSoftmax(rows, like)

    def value(self, dtype: torch.dtype) -> Tensor:
        """See :class:`Statistic`."""
        lifted = self._student_side.log_total - self._teacher_side.log_total
        return (self._temperature**2 * (self._student_side.expected - lifted)).to(dtype)

    def _compare(self, student: Tensor, teacher: Tensor) -> None:
        gap = student - teacher
        self._teacher_side.add(teacher)
        self._student_side.add(student, gap)

    def _slope(self, student: Tensor, teacher: Tensor) -> Tensor:
        dtype = student.dtype
        probs = (student - self._student_side.log_total.to(dtype)[:, None]).exp_()
        # log q - log p - KL: both log-sum-exps cancel, the expected gap stays.
        gap = student.sub_(teacher).sub_(self._student_side.expected.to(dtype)[:, None])
        return probs.mul_(gap)
