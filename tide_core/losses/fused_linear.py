"""Losses that take hidden states and LM heads and never hold ``[masked, vocab]``.

Each runs over slices of the vocabulary, keeps a few numbers a position (running log-sum-exp and
expectations), and computes the slices once more in the backward pass. ``slice_size`` bounds the elements of
one ``[masked, slice]`` tile, so memory does not grow with the vocabulary. Results equal the plain forms in
:mod:`tide_core.losses.cross_entropy`, :mod:`~tide_core.losses.kl` and :mod:`~tide_core.losses.tidal`.

Products are computed in the dtype of the hidden states, sums and exponentials in float32 (or float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.losses.tidal import require_shares
from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite,
    require_ids,
    require_temperature,
)

CPU_SLICE_SIZE = 2**18
"""Default elements of one tile on a CPU: 1 MiB in float32, so that a tile stays in the cache."""
ACCELERATOR_SLICE_SIZE = 2**24
"""Default on other devices: 64 MiB in float32, enough work for each kernel."""


class FrozenSide(NamedTuple):
    """What a divergence knows besides the student: constants without gradient."""

    hidden: Tensor
    head: Tensor
    temperature: float
    slice_size: int


def linear_target_log_probs(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    target_ids: Int[Tensor, " masked"],
    *,
    slice_size: int | None = None,
) -> Float[Tensor, " masked"]:
    """``lp_i`` of the clean tokens from hidden states: the fused form of ``target_log_probs``.

    Args:
        hidden: final hidden states at the masked positions.
        head: LM head weight.
        target_ids: clean token ids.
        slice_size: largest number of logits held at once; None chooses by device.

    Returns:
        float32 (float64 for float64 hidden states), differentiable in ``hidden`` and ``head``.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when an id lies outside the vocabulary or ``slice_size`` is not positive.
        NonFiniteError: when a logit is NaN or infinite.
    """
    _require_linear("hidden", hidden, "head", head)
    size = resolved_slice_size(slice_size, hidden)
    if target_ids.shape[0] != hidden.shape[0]:
        raise ShapeError(
            f"target_ids names {target_ids.shape[0]} positions, hidden {hidden.shape[0]}", param="target_ids"
        )
    require_ids("target_ids", target_ids, head.shape[0])
    log_probs: Tensor = _TargetLogProbs.apply(hidden, head, target_ids.long(), size)  # type: ignore[no-untyped-call]
    _require_finite_result("logits", log_probs, hidden=hidden, head=head)
    return log_probs


def linear_forward_kl(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(teacher || student)`` over the first ``shared_vocab`` ids: the fused ``forward_kl``.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when the shared vocabulary exceeds either head, or a setting is out of range.
        NonFiniteError: when a logit is NaN or infinite.
    """
    share = student_hidden.new_ones(student_hidden.shape[0], dtype=accumulation_dtype(student_hidden))
    return linear_tidal_kl(
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        share,
        temperature=temperature,
        shared_vocab=shared_vocab,
        slice_size=slice_size,
    )


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
) -> Float[Tensor, " masked"]:
    """TIDAL over the first ``shared_vocab`` ids: the fused form of ``tidal_kl``; raises as the forward KL."""
    require_shares(lambda_t)
    if lambda_t.shape != student_hidden.shape[:1]:
        raise ShapeError(
            f"lambda_t has shape {tuple(lambda_t.shape)}, student_hidden {student_hidden.shape[0]} rows",
            param="lambda_t",
        )
    _require_pair(student_hidden, student_head, teacher_hidden, teacher_head, shared_vocab)
    frozen = _frozen(teacher_hidden, teacher_head[:shared_vocab], temperature, slice_size)
    divergence: Tensor = _TidalDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, student_head, frozen, lambda_t.detach()
    )
    _require_finite_result(
        "logits",
        divergence,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        student_hidden=student_hidden,
        student_head=student_head,
    )
    return divergence


def linear_reverse_kl(
    student_hidden: Float[Tensor, "masked hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "masked teacher_hidden"],
    teacher_head: Float[Tensor, "teacher_vocab teacher_hidden"],
    *,
    temperature: float,
    shared_vocab: int,
    slice_size: int | None = None,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(student || teacher)`` over the first ``shared_vocab`` ids: the fused ``reverse_kl``.

    Raises as :func:`linear_forward_kl`.
    """
    _require_pair(student_hidden, student_head, teacher_hidden, teacher_head, shared_vocab)
    frozen = _frozen(teacher_hidden, teacher_head[:shared_vocab], temperature, slice_size)
    divergence: Tensor = _ReverseDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, student_head, frozen
    )
    _require_finite_result(
        "logits",
        divergence,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        student_hidden=student_hidden,
        student_head=student_head,
    )
    return divergence


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target_ids: Tensor, slice_size: int) -> Tensor:
        running = RunningSoftmax(hidden)
        target_logits = torch.zeros_like(running.log_total)
        for start, stop in vocabulary_slices(hidden.shape[0], head.shape[0], slice_size):
            logits = slice_logits(hidden, head, start, stop)
            is_here, column = _columns(target_ids, start, stop)
            found = logits.gather(1, column[:, None])[:, 0]
            target_logits = torch.where(is_here, found.double(), target_logits)
            running.add(logits)
        dtype = accumulation_dtype(hidden)
        ctx.save_for_backward(hidden, head, target_ids, running.log_total.to(dtype))
        ctx.slice_size = slice_size
        return (target_logits - running.log_total).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        hidden, head, target_ids, log_total = ctx.saved_tensors
        sink = GradientSink(ctx, hidden, head)
        for start, stop in vocabulary_slices(hidden.shape[0], head.shape[0], ctx.slice_size):
            probs = (slice_logits(hidden, head, start, stop) - log_total[:, None]).exp_()
            is_here, column = _columns(target_ids, start, stop)
            grad_logits = probs.mul_(-grad[:, None])
            grad_logits.scatter_add_(1, column[:, None], (grad * is_here)[:, None])
            sink.add(grad_logits, start, stop)
        return sink.hidden, sink.head, None, None


class _TidalDivergence(torch.autograd.Function):
    """``KL = lambda E_r[z - s] / T - lse(m / T) + lse(s / T)`` with ``m = (1 - lambda) s + lambda z``."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, frozen: FrozenSide, share: Tensor) -> Tensor:
        share = share.to(accumulation_dtype(hidden))
        student_side, target_side = RunningSoftmax(hidden), RunningSoftmax(hidden)
        for start, stop in _slices(frozen):
            student, teacher = _scaled_pair(hidden, head, frozen, start, stop)
            gap = teacher.sub_(student)
            target_side.add(torch.addcmul(student, gap, share[:, None]), gap)
            student_side.add(student)
        student_total, target_total = student_side.log_total, target_side.log_total
        ctx.save_for_backward(
            hidden, head, share, student_total.to(share.dtype), target_total.to(share.dtype)
        )
        ctx.frozen = frozen
        divergence = share * target_side.expected - (target_total - student_total)
        return (frozen.temperature**2 * divergence).to(share.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, head, share, student_total, target_total = ctx.saved_tensors
        sink = GradientSink(ctx, hidden, head)
        scale = (grads[0] * ctx.frozen.temperature)[:, None]
        for start, stop in _slices(ctx.frozen):
            student, teacher = _scaled_pair(hidden, head, ctx.frozen, start, stop)
            target = torch.addcmul(student, teacher.sub_(student), share[:, None])
            student_probs = student.sub_(student_total[:, None]).exp_()
            target_probs = target.sub_(target_total[:, None]).exp_()
            sink.add(student_probs.sub_(target_probs).mul_(scale), start, stop)
        return sink.hidden, sink.head, None, None


class _ReverseDivergence(torch.autograd.Function):
    """``KL = E_q[s - z] / T - lse(s / T) + lse(z / T)`` with ``q = softmax(s / T)``."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, frozen: FrozenSide) -> Tensor:
        student_side, teacher_side = RunningSoftmax(hidden), RunningSoftmax(hidden)
        for start, stop in _slices(frozen):
            student, teacher = _scaled_pair(hidden, head, frozen, start, stop)
            gap = student - teacher
            teacher_side.add(teacher)
            student_side.add(student, gap)
        dtype = accumulation_dtype(hidden)
        student_total, expected_gap = student_side.log_total, student_side.expected
        ctx.save_for_backward(hidden, head, student_total.to(dtype), expected_gap.to(dtype))
        ctx.frozen = frozen
        divergence = expected_gap - (student_total - teacher_side.log_total)
        return (frozen.temperature**2 * divergence).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, head, student_total, expected_gap = ctx.saved_tensors
        sink = GradientSink(ctx, hidden, head)
        scale = (grads[0] * ctx.frozen.temperature)[:, None]
        for start, stop in _slices(ctx.frozen):
            student, teacher = _scaled_pair(hidden, head, ctx.frozen, start, stop)
            probs = (student - student_total[:, None]).exp_()
            # log q - log p - KL: both log-sum-exps cancel, the expected gap stays.
            gap = student.sub_(teacher).sub_(expected_gap[:, None])
            sink.add(probs.mul_(gap).mul_(scale), start, stop)
        return sink.hidden, sink.head, None


class RunningSoftmax:
    """Log-sum-exp, and the expectation of a value under the softmax, over slices of the vocabulary.

    The few numbers a row are kept in float64: a divergence is a small difference of large log-sum-exps.
    """

    def __init__(self, hidden: Tensor) -> None:
        self.log_total = hidden.new_full((hidden.shape[0],), float("-inf"), dtype=torch.float64)
        self.expected = torch.zeros_like(self.log_total)

    def add(self, logits: Tensor, values: Tensor | None = None) -> None:
        """Take in one slice; ``logits`` and ``values`` are overwritten."""
        peak = logits.amax(dim=1)
        # A slice may hold nothing but -inf; any finite peak will do for it.
        peak = peak.masked_fill(peak == float("-inf"), 0.0)
        weights = logits.sub_(peak[:, None]).exp_()
        peak = peak.double()
        grown = torch.logaddexp(self.log_total, peak + weights.sum(dim=1, dtype=torch.float64).log())
        if values is not None:
            here = values.mul_(weights).sum(dim=1, dtype=torch.float64)
            faded = self.expected * (self.log_total - grown).exp()
            self.expected = faded + here * (peak - grown).exp()
        self.log_total = grown


class GradientSink:
    """Collects the gradients of hidden states and LM head, slice by slice, where they are wanted at all."""

    def __init__(self, ctx: Any, hidden: Tensor, head: Tensor) -> None:
        self._inputs = (hidden, head)
        self._hidden_sum = (
            torch.zeros_like(hidden, dtype=accumulation_dtype(hidden)) if ctx.needs_input_grad[0] else None
        )
        self.head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None

    @property
    def hidden(self) -> Tensor | None:
        """The gradient of the hidden states in their own dtype, once all slices are in."""
        return None if self._hidden_sum is None else self._hidden_sum.to(self._inputs[0].dtype)

    def add(self, grad_logits: Tensor, start: int, stop: int) -> None:
        """Add what the logits of vocabulary ids ``start`` .. ``stop - 1`` contribute."""
        hidden, head = self._inputs
        with torch.autocast(hidden.device.type, enabled=False):
            grad_logits = grad_logits.to(hidden.dtype)
            if self._hidden_sum is not None:
                self._hidden_sum += grad_logits @ head[start:stop].to(hidden.dtype)
            if self.head is not None:
                self.head[start:stop] = (grad_logits.T @ hidden).to(head.dtype)


def vocabulary_slices(rows: int, vocab: int, slice_size: int) -> Iterator[tuple[int, int]]:
    """Ranges of the vocabulary so that ``rows * (stop - start) <= slice_size`` (at least one id each)."""
    width = min(vocab, max(1, slice_size // max(1, rows)))
    return ((start, min(start + width, vocab)) for start in range(0, vocab, width))


def slice_logits(hidden: Tensor, head: Tensor, start: int, stop: int) -> Tensor:
    """Logits of vocabulary ids ``start`` .. ``stop - 1``, in the accumulation dtype."""
    # Autocast is off, so that forward and backward compute the very same numbers.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ head[start:stop].to(hidden.dtype).T
    return logits.to(accumulation_dtype(hidden))


def resolved_slice_size(slice_size: int | None, hidden: Tensor) -> int:
    """The caller's bound on a tile, or the default of the device.

    Raises:
        InvalidInputError: when the bound is not positive.
    """
    if slice_size is None:
        return CPU_SLICE_SIZE if hidden.device.type == "cpu" else ACCELERATOR_SLICE_SIZE
    if slice_size < 1:
        raise InvalidInputError(f"slice_size must be at least 1, got {slice_size}", param="slice_size")
    return slice_size


def _frozen(hidden: Tensor, head: Tensor, temperature: float, slice_size: int | None) -> FrozenSide:
    require_temperature(temperature)
    size = resolved_slice_size(slice_size, hidden)
    return FrozenSide(hidden.detach(), head.detach(), temperature, size)


def _slices(frozen: FrozenSide) -> Iterator[tuple[int, int]]:
    return vocabulary_slices(frozen.hidden.shape[0], frozen.head.shape[0], frozen.slice_size)


def _scaled_pair(
    hidden: Tensor, head: Tensor, frozen: FrozenSide, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """``s / T`` and ``z / T`` of one slice, fresh tensors that the caller may overwrite."""
    student = slice_logits(hidden, head, start, stop)
    teacher = slice_logits(frozen.hidden, frozen.head, start, stop).to(student.dtype)
    return student.div_(frozen.temperature), teacher.div_(frozen.temperature)


def _columns(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which ids lie in the slice, and their column in it (0 for those that do not)."""
    is_here = (ids >= start) & (ids < stop)
    return is_here, torch.where(is_here, ids - start, 0)


def _require_finite_result(name: str, result: Tensor, **sources: Tensor) -> None:
    """Raise for a result that is not finite, naming the first source at fault, else the logits."""
    if bool(torch.isfinite(result).all()):
        return
    for source_name, source in sources.items():
        require_finite(source_name, source)
    require_finite(name, result)


def _require_linear(hidden_name: str, hidden: Tensor, head_name: str, head: Tensor) -> None:
    if hidden.shape[1] != head.shape[1]:
        raise ShapeError(
            f"{hidden_name} is {hidden.shape[1]} wide, {head_name} {head.shape[1]}: not of one model",
            param=head_name,
        )


def _require_pair(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    shared_vocab: int,
) -> None:
    _require_linear("student_hidden", student_hidden, "student_head", student_head)
    _require_linear("teacher_hidden", teacher_hidden, "teacher_head", teacher_head)
    if student_hidden.shape[0] != teacher_hidden.shape[0]:
        raise ShapeError(
            f"teacher_hidden has {teacher_hidden.shape[0]} rows, student_hidden {student_hidden.shape[0]}",
            param="teacher_hidden",
        )
    smaller = min(student_head.shape[0], teacher_head.shape[0])
    if not 1 <= shared_vocab <= smaller:
        raise InvalidInputError(
            f"shared_vocab must lie in 1 .. {smaller} (the smaller LM head), got {shared_vocab}",
            param="shared_vocab",
        )
