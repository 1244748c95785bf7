"""One pass over the LM head for everything that a loss needs of the logits.

Logits ``[masked, vocab]`` are never held whole. The pass goes over slices of the vocabulary; each
:class:`Statistic` takes from a slice the few numbers a row that it needs (running log-sum-exp, expectations),
and in the backward pass turns the gradient of its value into the gradient of the slice's logits. However many
statistics there are, the student's logits are one product forward, and two (hidden states and head) backward.

The backward pass needs the logits again. As many slices as fit into ``keep_bytes`` are kept from the forward
pass, in the dtype of the answer; the others are multiplied once more. Neither changes a value.

Products are computed in the dtype of the hidden states (:func:`slice_product`), sums and exponentials in
float32 (or float64).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.contracts.working_sizes import working_sizes
from tide_core.losses.validation import accumulation_dtype, require_finite_result

SLICE_MULTIPLE = 64
"""Wide slices are a multiple of this: matrix products are faster on whole cache lines and tiles."""


class Statistic(ABC):
    """What one term needs of the logits: a value for each of its rows. Holds the state of one pass.

    Args:
        rows: indices of the hidden states' rows that it is about; None for all of them.
        columns: it is about the vocabulary ids below this; None for all of them.
    """

    kept_bytes_a_logit = 0
    """What it would keep of each of its logits, besides the student's own."""

    def __init__(self, rows: Int[Tensor, " own"] | None = None, columns: int | None = None) -> None:
        self.rows = rows
        self.columns = columns

    @abstractmethod
    def check(self, hidden: Tensor, head: Tensor) -> None:
        """Raise a :class:`~tide_core.contracts.errors.TideError` if it does not fit the student."""

    @abstractmethod
    def begin(self, rows: int, like: Tensor) -> None:
        """Make the state for so many rows, on the device of ``like`` (the hidden states)."""

    @abstractmethod
    def observe(self, logits: Float[Tensor, "own slice"], start: int, shelf: Shelf) -> None:
        """Take in the logits of the ids from ``start`` on, which are not to be changed."""

    @abstractmethod
    def value(self, dtype: torch.dtype) -> Tensor:
        """The result, ``[own]`` or ``[own, outcome]``, after the last slice."""

    @abstractmethod
    def gradient(
        self, logits: Float[Tensor, "own slice"], start: int, shelf: Shelf, grad: Tensor
    ) -> Float[Tensor, "own slice"]:
        """A fresh tensor: the gradient of the logits, given that of the value."""

    def require_finite(self, value: Tensor, hidden: Tensor, head: Tensor) -> None:
        """Raise :class:`~tide_core.contracts.errors.NonFiniteError` if the value is not finite."""
        require_finite_result("logits", value, hidden=hidden, head=head)


class Shelf:
    """Products of slices kept from the forward to the backward pass, up to a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self._left = capacity
        self._kept: dict[int, Tensor] = {}

    def offer(self, start: int, product: Tensor) -> None:
        """Keep the slice that begins at ``start`` if there is room."""
        size = product.numel() * product.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[start] = product

    def take(self, start: int) -> Tensor | None:
        """The slice, if it was kept and not yet taken."""
        return self._kept.pop(start, None)


def statistics_of(
    hidden: Float[Tensor, "masked hidden"],
    head: Float[Tensor, "vocab hidden"],
    statistics: Sequence[Statistic],
    *,
    slice_size: int | None = None,
    keep_bytes: int | None = None,
) -> tuple[Tensor, ...]:
    """The values of all statistics, differentiable in ``hidden`` and ``head``.

    Args:
        hidden: final hidden states at the masked positions.
        head: LM head weight.
        statistics: fresh ones; each serves one pass.
        slice_size: largest number of logits in one tile; None chooses by device.
        keep_bytes: most bytes of logits kept for the backward pass; None chooses by device.

    Raises:
        ShapeError: when the shapes do not fit together.
        InvalidInputError: when ``slice_size`` is not positive, or a statistic's setting is out of range.
        NonFiniteError: when a logit is NaN or infinite.
    """
    require_linear("hidden", hidden, "head", head)
    size = resolve_slice_size(slice_size, hidden)
    for statistic in statistics:
        statistic.check(hidden, head)
    if not statistics:
        return ()
    room = resolve_keep_bytes(keep_bytes, hidden)
    values: tuple[Tensor, ...] = _HeadPass.apply(hidden, head, _Plan(statistics, size, room))  # type: ignore[no-untyped-call]
    for statistic, value in zip(statistics, values, strict=True):
        statistic.require_finite(value, hidden, head)
    return values


class _Plan:
    """The statistics of a pass with their shelves.

    A teacher's logits cost more to compute again than the student's: the statistics' own shelves are filled
    first.
    """

    def __init__(self, statistics: Sequence[Statistic], slice_size: int, keep_bytes: int) -> None:
        self.statistics = statistics
        self.slice_size = slice_size
        self._keep_bytes = keep_bytes
        self.shelves: list[Shelf] = []
        self.student_shelf = Shelf(0)

    def begin(self, hidden: Tensor, head: Tensor) -> None:
        left = self._keep_bytes
        for statistic in self.statistics:
            rows = hidden.shape[0] if statistic.rows is None else statistic.rows.shape[0]
            statistic.begin(rows, hidden)
            columns = head.shape[0] if statistic.columns is None else statistic.columns
            wanted = rows * columns * statistic.kept_bytes_a_logit
            self.shelves.append(Shelf(left))
            left = max(0, left - wanted)
        self.student_shelf = Shelf(left)

    def slices(self, hidden: Tensor, head: Tensor) -> Iterator[tuple[int, int]]:
        return vocabulary_slices(hidden.shape[0], head.shape[0], self.slice_size)


class _HeadPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, plan: _Plan) -> tuple[Tensor, ...]:
        plan.begin(hidden, head)
        is_kept = any(ctx.needs_input_grad)
        for start, stop in plan.slices(hidden, head):
            product = slice_product(hidden, head, start, stop)
            if is_kept:
                plan.student_shelf.offer(start, product)
            logits = product.to(accumulation_dtype(hidden))
            for statistic, shelf in zip(plan.statistics, plan.shelves, strict=True):
                part = _part(logits, statistic, start)
                if part is not None:
                    statistic.observe(part, start, shelf)
        ctx.save_for_backward(hidden, head)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return tuple(statistic.value(accumulation_dtype(hidden)) for statistic in plan.statistics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, head = ctx.saved_tensors
        plan: _Plan = ctx.plan
        sink = _GradientSink(ctx, hidden, head)
        wanted = [
            (statistic, shelf, grad)
            for statistic, shelf, grad in zip(plan.statistics, plan.shelves, grads, strict=True)
            if grad is not None
        ]
        for start, stop in plan.slices(hidden, head):
            product = plan.student_shelf.take(start)
            if product is None:
                product = slice_product(hidden, head, start, stop)
            logits = product.to(accumulation_dtype(hidden))
            total: Tensor | None = None
            for statistic, shelf, grad in wanted:
                part = _part(logits, statistic, start)
                if part is not None:
                    total = _add_part(total, statistic, statistic.gradient(part, start, shelf, grad), logits)
            sink.add(total, start, stop)
        return sink.hidden, sink.head, None


def _part(logits: Tensor, statistic: Statistic, start: int) -> Tensor | None:
    """The statistic's rows and columns of a slice; None when it has no column there."""
    if statistic.columns is not None:
        if statistic.columns <= start:
            return None
        logits = logits[:, : statistic.columns - start]
    return logits if statistic.rows is None else logits[statistic.rows]


def _add_part(total: Tensor | None, statistic: Statistic, part: Tensor, logits: Tensor) -> Tensor:
    """The sum of the statistics' gradients so far, with one more."""
    if part.shape == logits.shape and statistic.rows is None:
        return part if total is None else total.add_(part)
    if total is None:
        total = torch.zeros_like(logits)
    columns = total[:, : part.shape[1]]
    if statistic.rows is None:
        columns += part
    else:
        columns.index_add_(0, statistic.rows, part)
    return total


class RunningSoftmax:
    """Log-sum-exp, and the expectation of a value under the softmax, over slices of the vocabulary.

    The few numbers a row are kept in float64: a divergence is a small difference of large log-sum-exps.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self.log_total = like.new_full((rows,), float("-inf"), dtype=torch.float64)
        self.expected = torch.zeros_like(self.log_total)

    def add(self, logits: Tensor, values: Tensor | None = None) -> None:
        """Take in one slice; ``values`` are overwritten."""
        peak = logits.amax(dim=1)
        # A slice may hold nothing but -inf; any finite peak will do for it.
        peak = peak.masked_fill(peak == float("-inf"), 0.0)
        weights = (logits - peak[:, None]).exp_()
        peak = peak.double()
        grown = torch.logaddexp(self.log_total, peak + weights.sum(dim=1, dtype=torch.float64).log())
        if values is not None:
            here = values.mul_(weights).sum(dim=1, dtype=torch.float64)
            faded = self.expected * (self.log_total - grown).exp()
            self.expected = faded + here * (peak - grown).exp()
        self.log_total = grown


class _GradientSink:
    """Collects the gradients of hidden states and LM head, slice by slice, where they are wanted at all."""

    def __init__(self, ctx: Any, hidden: Tensor, head: Tensor) -> None:
        self._inputs = (hidden, head)
        self._hidden_sum = (
            torch.zeros_like(hidden, dtype=accumulation_dtype(hidden)) if ctx.needs_input_grad[0] else None
        )
        self.head = torch.empty_like(head) if ctx.needs_input_grad[1] else None

    @property
    def hidden(self) -> Tensor | None:
        """The gradient of the hidden states in their own dtype, once all slices are in."""
        return None if self._hidden_sum is None else self._hidden_sum.to(self._inputs[0].dtype)

    def add(self, grad_logits: Tensor | None, start: int, stop: int) -> None:
        """Add what the logits of vocabulary ids ``start`` .. ``stop - 1`` contribute; None for nothing."""
        hidden, head = self._inputs
        if grad_logits is None:
            if self.head is not None:
                self.head[start:stop] = 0.0
            return
        with torch.autocast(hidden.device.type, enabled=False):
            grad_logits = grad_logits.to(hidden.dtype)
            if self._hidden_sum is not None:
                self._hidden_sum += grad_logits @ head[start:stop].to(hidden.dtype)
            if self.head is None:
                return
            if head.dtype == hidden.dtype:
                torch.mm(grad_logits.T, hidden, out=self.head[start:stop])
            else:
                self.head[start:stop] = (grad_logits.T @ hidden).to(head.dtype)


def vocabulary_slices(rows: int, vocab: int, slice_size: int) -> Iterator[tuple[int, int]]:
    """Ranges of the vocabulary so that ``rows * (stop - start) <= slice_size`` (at least one id each)."""
    width = slice_size // max(1, rows)
    if width > SLICE_MULTIPLE:
        width -= width % SLICE_MULTIPLE
    width = min(vocab, max(1, width))
    return ((start, min(start + width, vocab)) for start in range(0, vocab, width))


def slice_product(hidden: Tensor, head: Tensor, start: int, stop: int) -> Tensor:
    """Logits of vocabulary ids ``start`` .. ``stop - 1``, computed in the dtype of the hidden states.

    On CUDA narrow numbers are multiplied as they are and summed and answered in float32, which costs the
    product nothing; elsewhere the answer is as narrow as the hidden states.
    """
    # Autocast is off, so that forward and backward compute the very same numbers.
    with torch.autocast(hidden.device.type, enabled=False):
        rows = head[start:stop].to(hidden.dtype)
        if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(hidden, rows.T, out_dtype=torch.float32)
        return hidden @ rows.T


def resolve_slice_size(slice_size: int | None, hidden: Tensor) -> int:
    """The caller's bound on a tile, or the default of the device.

    Raises:
        InvalidInputError: when the bound is not positive.
    """
    if slice_size is None:
        return working_sizes(is_accelerator=hidden.device.type != "cpu").loss_tile
    if slice_size < 1:
        raise InvalidInputError(f"slice_size must be at least 1, got {slice_size}", param="slice_size")
    return slice_size


def resolve_keep_bytes(keep_bytes: int | None, hidden: Tensor) -> int:
    """The caller's bound on what is kept, or the default of the device.

    Raises:
        InvalidInputError: when the bound is negative.
    """
    if keep_bytes is None:
        return working_sizes(is_accelerator=hidden.device.type != "cpu").loss_kept_bytes
    if keep_bytes < 0:
        raise InvalidInputError(f"keep_bytes must not be negative, got {keep_bytes}", param="keep_bytes")
    return keep_bytes


def columns_of(ids: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Which ids lie in the slice, and their column in it (0 for those that do not)."""
    is_here = (ids >= start) & (ids < start + width)
    return is_here, torch.where(is_here, ids - start, 0)


def require_linear(hidden_name: str, hidden: Tensor, head_name: str, head: Tensor) -> None:
    """Raise :class:`ShapeError` unless hidden states and head are of one width."""
    if hidden.shape[1] != head.shape[1]:
        raise ShapeError(
            f"{hidden_name} is {hidden.shape[1]} wide, {head_name} {head.shape[1]}: not of one model",
            param=head_name,
        )
