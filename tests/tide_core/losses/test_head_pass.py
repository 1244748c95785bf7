"""One pass over the LM head: many statistics at once, logits kept or multiplied again, nothing held whole."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tide_core.contracts.errors import InvalidInputError
from tide_core.losses.cross_entropy import target_log_probs
from tide_core.losses.debiasing import BoundaryLogProbs, boundary_log_probs
from tide_core.losses.fused_linear import ReverseDivergence, TargetLogProbs, TidalDivergence
from tide_core.losses.head_pass import Shelf, Statistic, statistics_of, vocabulary_slices
from tide_core.losses.kl import reverse_kl
from tide_core.losses.sparse import BucketLogProbs, bucket_log_probs
from tide_core.losses.tidal import tidal_kl

ROWS, VOCAB, SHARED = 7, 53, 41
SLICE = ROWS * 6


class Case:
    """Operands in float64, and every statistic beside the plain form of the same thing."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(4)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        self.hidden, self.head = drawn(ROWS, 5).requires_grad_(), drawn(VOCAB, 5).requires_grad_()
        self.theirs, self.their_head = drawn(4, 3), drawn(VOCAB, 3)
        self.rows = torch.tensor([5, 0, 3, 6])
        self.targets = torch.tensor([0, 52, 7, 7, 30, 41, 40])
        self.share = torch.tensor([0.0, 0.3, 1.0, 0.6], dtype=torch.float64)
        self.is_boundary = torch.arange(VOCAB) % 3 == 0
        self.places = torch.tensor([2, 2, 4])
        self.ids = torch.stack([torch.randperm(SHARED, generator=draws)[:6] for _ in range(4)])

    def statistics(self) -> list[Statistic]:
        side = {"temperature": 1.7, "shared_vocab": SHARED, "rows": self.rows}
        return [
            TargetLogProbs(self.targets),
            TidalDivergence(self.theirs, self.their_head, self.share, **side),
            BoundaryLogProbs(self.is_boundary, rows=self.places),
            ReverseDivergence(self.theirs, self.their_head, **side),
            BucketLogProbs(self.ids, **side),
        ]

    def plain(self) -> list[Tensor]:
        logits = self.hidden @ self.head.T
        student = logits[self.rows][:, :SHARED]
        teacher = (self.theirs @ self.their_head.T)[:, :SHARED]
        return [
            target_log_probs(logits, self.targets),
            tidal_kl(student, teacher, self.share, temperature=1.7),
            boundary_log_probs(logits[self.places], self.is_boundary),
            reverse_kl(student, teacher, temperature=1.7),
            bucket_log_probs(student, self.ids, temperature=1.7),
        ]

    def gradients(self, values: list[Tensor]) -> tuple[Tensor, ...]:
        # Each value with a weight of its own, so that none can stand in for another.
        sums = [
            (value * torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view_as(value)).sum() * scale
            for scale, value in enumerate(values, start=1)
        ]
        return torch.autograd.grad(torch.stack(sums).sum(), (self.hidden, self.head))


@pytest.mark.parametrize("keep_bytes", [0, 8 * ROWS * VOCAB // 2, 10**6])
def test_all_statistics_of_one_pass_equal_the_plain_forms(keep_bytes: int) -> None:
    case = Case()
    values = list(
        statistics_of(case.hidden, case.head, case.statistics(), slice_size=SLICE, keep_bytes=keep_bytes)
    )
    plain = case.plain()
    for value, expected in zip(values, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for ours, expected in zip(case.gradients(values), case.gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_the_order_of_the_statistics_does_not_matter() -> None:
    case = Case()
    turned = case.statistics()[::-1]
    values = list(statistics_of(case.hidden, case.head, turned, slice_size=SLICE))[::-1]
    for ours, expected in zip(case.gradients(values), case.gradients(case.plain()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("number", range(5))
def test_each_statistic_alone_equals_its_plain_form(number: int) -> None:
    case = Case()
    chosen = case.statistics()[number]
    values = list(statistics_of(case.hidden, case.head, [chosen], slice_size=SLICE))
    plain = [case.plain()[number]]
    torch.testing.assert_close(values[0], plain[0], rtol=1e-10, atol=1e-10)
    for ours, expected in zip(case.gradients(values), case.gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_statistic_that_is_not_differentiated_costs_no_gradient() -> None:
    case = Case()
    values = statistics_of(case.hidden, case.head, case.statistics(), slice_size=SLICE)
    ours = torch.autograd.grad(values[0].sum(), (case.hidden, case.head))
    expected = torch.autograd.grad(case.plain()[0].sum(), (case.hidden, case.head))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_second_backward_pass_multiplies_again_and_gives_the_same() -> None:
    case = Case()
    values = statistics_of(case.hidden, case.head, case.statistics(), slice_size=SLICE)
    total = torch.stack([value.sum() for value in values]).sum()
    first = torch.autograd.grad(total, (case.hidden, case.head), retain_graph=True)
    second = torch.autograd.grad(total, (case.hidden, case.head))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def products(keep_bytes: int) -> int:
    """Operations of a pass of cross-entropy and TIDAL, forward and backward."""
    case = Case()
    statistics = case.statistics()[:2]
    with FlopCounterMode(display=False) as counter:
        values = statistics_of(case.hidden, case.head, statistics, slice_size=SLICE, keep_bytes=keep_bytes)
        torch.stack([value.sum() for value in values]).sum().backward()
    return counter.get_total_flops()


def test_what_is_kept_is_not_multiplied_again_and_the_teachers_logits_come_first() -> None:
    student, teacher = 2 * ROWS * VOCAB * 5, 2 * 4 * SHARED * 3
    everything = 8 * (ROWS * VOCAB + 4 * SHARED)
    assert products(everything) == 3 * student + teacher
    assert products(0) == 4 * student + 2 * teacher
    # Room for the teacher's logits alone: no slice of the student's finds any.
    assert products(8 * 4 * SHARED) == 4 * student + teacher


def test_a_shelf_takes_no_more_than_its_capacity_and_gives_each_slice_once() -> None:
    shelf = Shelf(100)
    first, second = torch.zeros(10), torch.ones(20)
    shelf.offer(0, first)
    shelf.offer(10, second)  # 40 + 80 bytes
    assert shelf.take(0) is first
    assert shelf.take(0) is None
    assert shelf.take(10) is None


def test_nothing_is_kept_where_nothing_will_be_differentiated() -> None:
    case = Case()
    statistic = case.statistics()[0]
    with torch.no_grad():
        (value,) = statistics_of(case.hidden, case.head, [statistic], slice_size=SLICE)
    assert not value.requires_grad


def test_wide_slices_are_whole_tiles_and_cover_the_vocabulary() -> None:
    slices = list(vocabulary_slices(3, 1000, 3 * 200))
    assert slices == [(0, 192), (192, 384), (384, 576), (576, 768), (768, 960), (960, 1000)]


def test_bad_sizes_are_refused() -> None:
    case = Case()
    for sizes in ({"slice_size": 0}, {"keep_bytes": -1}):
        with pytest.raises(InvalidInputError) as caught:
            statistics_of(case.hidden, case.head, case.statistics(), **sizes)
        assert caught.value.param == next(iter(sizes))
    assert statistics_of(case.hidden, case.head, []) == ()
