"""Divergences over the vocabulary: plain forms against loops, fused forms against both."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import loss_oracles as oracle
from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.losses.cross_entropy import masked_cross_entropy, target_log_probs
from tide_core.losses.fused_linear import (
    linear_forward_kl,
    linear_reverse_kl,
    linear_target_log_probs,
    linear_tidal_kl,
)
from tide_core.losses.head_pass import resolve_slice_size, vocabulary_slices
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.tidal import tidal_kl

CASES = st.tuples(
    st.integers(0, 6),  # positions
    st.integers(1, 12),  # vocabulary
    st.sampled_from([0.5, 1.0, 2.0, 5.0, 100.0]),  # temperature
    st.sampled_from([0.0, 1.0, 80.0]),  # size of the logits; 0 makes every logit a tie
    st.integers(0, 2**32 - 1),
)


def logits(
    rows: int, vocab: int, scale: float, seed: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Uniform in +-scale, so that +-80 means what it says.
    return ((torch.rand(rows, vocab, generator=generator, dtype=dtype) * 2 - 1) * scale).requires_grad_()


@settings(max_examples=60)
@given(CASES)
def test_values_and_gradients_equal_the_loops(case: tuple[int, int, float, float, int]) -> None:
    rows, vocab, temperature, scale, seed = case
    student, teacher = logits(rows, vocab, scale, seed), logits(rows, vocab, scale, seed + 1)
    share = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = list(zip(student.tolist(), teacher.tolist(), share.tolist(), strict=True))
    expected = {
        "forward": (
            forward_kl(student, teacher, temperature=temperature),
            [oracle.forward_kl(s, z, temperature) for s, z, _ in pairs],
            [oracle.forward_kl_gradient(s, z, temperature) for s, z, _ in pairs],
        ),
        "reverse": (
            reverse_kl(student, teacher, temperature=temperature),
            [oracle.reverse_kl(s, z, temperature) for s, z, _ in pairs],
            [oracle.reverse_kl_gradient(s, z, temperature) for s, z, _ in pairs],
        ),
        "tidal": (
            tidal_kl(student, teacher, share, temperature=temperature),
            [oracle.tidal_kl(s, z, a, temperature) for s, z, a in pairs],
            [oracle.tidal_gradient(s, z, a, temperature) for s, z, a in pairs],
        ),
    }
    for values, wanted, wanted_gradient in expected.values():
        torch.testing.assert_close(values, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        reference = torch.tensor(wanted_gradient, dtype=torch.float64).reshape(rows, vocab)
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-9)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = logits(3, 5, 2.0, 0), logits(3, 5, 2.0, 1)
    for values in (
        forward_kl(student, teacher, temperature=2.0),
        reverse_kl(student, teacher, temperature=2.0),
        tidal_kl(student, teacher, 0.5, temperature=2.0),
    ):
        assert torch.autograd.grad(values.sum(), teacher, allow_unused=True) == (None,)


def test_divergences_of_equal_models_vanish_and_others_are_positive() -> None:
    student, teacher = logits(4, 9, 3.0, 0), logits(4, 9, 3.0, 1)
    for loss in (forward_kl, reverse_kl):
        assert loss(student, student, temperature=2.0).abs().max() < 1e-12
        assert loss(student, teacher, temperature=2.0).min() > 0.1


def test_tidal_at_share_zero_teaches_nothing_and_at_one_is_the_forward_kl() -> None:
    student, teacher = logits(4, 9, 3.0, 0), logits(4, 9, 3.0, 1)
    nothing = tidal_kl(student, teacher, 0.0, temperature=2.0)
    (gradient,) = torch.autograd.grad(nothing.sum(), student)
    assert nothing.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12
    everything = tidal_kl(student, teacher, 1.0, temperature=2.0)
    torch.testing.assert_close(everything, forward_kl(student, teacher, temperature=2.0))


def test_cross_entropy_equals_the_loop() -> None:
    student = logits(5, 7, 80.0, 3)
    targets = torch.tensor([0, 6, 3, 3, 1])
    wanted = [
        -oracle.log_softmax(row, 1.0)[target]
        for row, target in zip(student.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        masked_cross_entropy(student, targets), torch.tensor(wanted, dtype=torch.float64)
    )
    assert target_log_probs(student.detach().bfloat16(), targets).dtype == torch.float32


def test_values_are_computed_in_float32_whatever_the_input() -> None:
    student, teacher = logits(3, 5, 2.0, 0).bfloat16(), logits(3, 5, 2.0, 1).bfloat16()
    for values in (
        forward_kl(student, teacher, temperature=2.0),
        reverse_kl(student, teacher, temperature=2.0),
        tidal_kl(student, teacher, 0.5, temperature=2.0),
    ):
        assert values.dtype == torch.float32


# Fused forms ------------------------------------------------------------------------------------------


class Problem:
    """Hidden states and heads of both models, and what the plain forms need."""

    def __init__(self, rows: int, vocab: int, shared: int, seed: int, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden, self.head = draw(rows, 6).requires_grad_(), draw(vocab, 6).requires_grad_()
        self.teacher_hidden, self.teacher_head = draw(rows, 4) * 2, draw(vocab + 3, 4)
        self.targets = torch.randint(0, vocab, (rows,), generator=generator)
        self.share = torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
        self.weights = draw(rows)
        self.shared = shared

    def models(self) -> tuple[torch.Tensor, ...]:
        return self.hidden, self.head, self.teacher_hidden, self.teacher_head

    def student_logits(self) -> torch.Tensor:
        return (self.hidden @ self.head.T)[:, : self.shared]

    def teacher_logits(self) -> torch.Tensor:
        return (self.teacher_hidden @ self.teacher_head.T)[:, : self.shared]

    def forms(self, temperature: float, slice_size: int | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of (fused, plain)."""
        options = {"temperature": temperature, "shared_vocab": self.shared, "slice_size": slice_size}
        pair = (self.student_logits(), self.teacher_logits())
        plain_tidal = tidal_kl(*pair, self.share, temperature=temperature)
        return [
            (
                linear_target_log_probs(self.hidden, self.head, self.targets, slice_size=slice_size),
                target_log_probs(self.hidden @ self.head.T, self.targets),
            ),
            (linear_forward_kl(*self.models(), **options), forward_kl(*pair, temperature=temperature)),
            (linear_reverse_kl(*self.models(), **options), reverse_kl(*pair, temperature=temperature)),
            (linear_tidal_kl(*self.models(), self.share, **options), plain_tidal),
        ]

    def gradients(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = (values * self.weights).sum()
        # The plain forms share the student's logits, so the graph is needed again.
        return torch.autograd.grad(loss, (self.hidden, self.head), retain_graph=True)


@settings(max_examples=40)
@given(
    st.integers(0, 7),
    st.integers(1, 30),
    st.floats(0, 1),
    st.sampled_from([0.5, 1.0, 2.0, 100.0]),
    st.sampled_from([1, 7, 40, None]),
    st.integers(0, 1000),
)
def test_fused_forms_equal_plain_forms(
    rows: int, vocab: int, shared: float, temperature: float, slice_size: int | None, seed: int
) -> None:
    problem = Problem(rows, vocab, max(1, round(shared * vocab)), seed)
    for fused, plain in problem.forms(temperature, slice_size):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
        for ours, reference in zip(problem.gradients(fused), problem.gradients(plain), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_fused_forms_equal_plain_forms_in_float32(temperature: float) -> None:
    problem = Problem(40, 300, 250, seed=1, dtype=torch.float32)
    for fused, plain in problem.forms(temperature, 1000):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
        for ours, reference in zip(problem.gradients(fused), problem.gradients(plain), strict=True):
            scale = float(reference.abs().max())
            assert float((ours - reference).abs().max()) <= 1e-5 * max(1.0, scale)


def test_fused_forms_pass_a_numerical_gradient_check() -> None:
    problem = Problem(3, 8, 6, seed=2)

    def losses(hidden: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        problem.hidden, problem.head = hidden, head
        # TIDAL stops the gradient at its own target, so only share 1 is a function that can be differenced.
        problem.share = torch.ones_like(problem.share)
        return tuple(fused for fused, _ in problem.forms(1.5, 10))

    assert torch.autograd.gradcheck(losses, (problem.hidden, problem.head))


def test_a_frozen_head_gets_no_gradient_and_hidden_states_still_do() -> None:
    problem = Problem(5, 20, 20, seed=0)
    problem.head.requires_grad_(False)
    for fused, _ in problem.forms(2.0, 30):
        fused.sum().backward()
    assert problem.head.grad is None
    assert problem.hidden.grad is not None
    problem.head.requires_grad_(True)
    problem.hidden = problem.hidden.detach()
    for fused, _ in problem.forms(2.0, 30):
        fused.sum().backward()
    assert problem.head.grad is not None


def test_bfloat16_hidden_states_with_a_float32_head_under_autocast() -> None:
    problem = Problem(16, 64, 60, seed=3, dtype=torch.float32)
    hidden = problem.hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = linear_target_log_probs(hidden, problem.head, problem.targets, slice_size=100)
        fused.sum().backward()
    reference = target_log_probs(problem.hidden @ problem.head.T, problem.targets)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, reference, rtol=0.05, atol=0.1)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert problem.head.grad is not None
    assert problem.head.grad.dtype == torch.float32


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest number of elements that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor):
                self.largest = max(self.largest, item.numel())
        return result


@pytest.mark.parametrize("vocab", [1000, 20_000])
def test_no_tensor_grows_with_positions_times_vocabulary(vocab: int) -> None:
    rows, size = 50, 4000
    problem = Problem(rows, vocab, vocab, seed=0, dtype=torch.float32)
    options = {"temperature": 2.0, "shared_vocab": vocab, "slice_size": size}
    calls = [
        lambda: linear_target_log_probs(problem.hidden, problem.head, problem.targets, slice_size=size),
        lambda: linear_forward_kl(*problem.models(), **options),
        lambda: linear_reverse_kl(*problem.models(), **options),
        lambda: linear_tidal_kl(*problem.models(), problem.share, **options),
    ]
    for call in calls:
        with LargestTensor() as seen:
            call().sum().backward()
        # The heads themselves and their gradients exist anyway; [rows, vocab] must not.
        allowed = max(size, problem.head.numel(), problem.teacher_head.numel())
        assert seen.largest <= allowed < rows * vocab


def test_slices_cover_the_vocabulary_once() -> None:
    assert list(vocabulary_slices(3, 10, 12)) == [(0, 4), (4, 8), (8, 10)]
    assert list(vocabulary_slices(0, 5, 100)) == [(0, 5)]
    assert list(vocabulary_slices(100, 3, 1)) == [(0, 1), (1, 2), (2, 3)]
    meta = torch.empty(1, device="meta")
    assert resolve_slice_size(None, meta) > resolve_slice_size(None, torch.empty(1))


# Bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_named(bad: float) -> None:
    good = torch.zeros(2, 3)
    broken = torch.tensor([[0.0, bad, 0.0], [0.0, 0.0, 0.0]])
    for loss in (forward_kl, reverse_kl):
        with pytest.raises(NonFiniteError) as caught:
            loss(broken, good, temperature=1.0)
        assert caught.value.param == "student_logits"
        with pytest.raises(NonFiniteError) as caught:
            loss(good, broken, temperature=1.0)
        assert caught.value.param == "teacher_logits"
    with pytest.raises(NonFiniteError):
        target_log_probs(broken, torch.tensor([0, 1]))


def test_fused_forms_refuse_hidden_states_that_are_not_finite() -> None:
    problem = Problem(4, 9, 9, seed=0)
    problem.hidden = problem.hidden.detach().clone()
    problem.hidden[2, 1] = math.nan
    options = {"temperature": 1.0, "shared_vocab": 9}
    with pytest.raises(NonFiniteError):
        linear_target_log_probs(problem.hidden, problem.head, problem.targets)
    with pytest.raises(NonFiniteError):
        linear_tidal_kl(*problem.models(), problem.share, **options)
    with pytest.raises(NonFiniteError):
        linear_reverse_kl(*problem.models(), **options)


def test_shapes_ids_and_settings_are_checked() -> None:
    problem = Problem(4, 9, 9, seed=0)
    with pytest.raises(ShapeError) as caught:
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1.0)
    assert caught.value.param == "teacher_logits"
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidInputError):
            forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)
    with pytest.raises(InvalidInputError) as caught_ids:
        target_log_probs(torch.zeros(1, 3), torch.tensor([3]))
    assert caught_ids.value.param == "target_ids"
    with pytest.raises(InvalidInputError):
        linear_target_log_probs(problem.hidden, problem.head, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(InvalidInputError):
        linear_target_log_probs(problem.hidden, problem.head, problem.targets, slice_size=0)
    for shared in (0, 10):
        with pytest.raises(InvalidInputError) as caught_vocab:
            linear_forward_kl(*problem.models(), temperature=1.0, shared_vocab=shared)
        assert caught_vocab.value.param == "shared_vocab"
    with pytest.raises(InvalidInputError) as caught_share:
        tidal_kl(torch.zeros(1, 3), torch.zeros(1, 3), 1.5, temperature=1.0)
    assert caught_share.value.param == "lambda_t"


def test_axes_are_checked_when_annotations_are_not(no_shape_annotations: None) -> None:
    problem = Problem(4, 9, 9, seed=0)
    options = {"temperature": 1.0, "shared_vocab": 9}
    hidden, head, teacher_hidden, teacher_head = problem.models()
    with pytest.raises(ShapeError):
        target_log_probs(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ShapeError):
        linear_target_log_probs(hidden, head, problem.targets[:2])
    with pytest.raises(ShapeError):
        linear_target_log_probs(hidden, head[:, :3], problem.targets)
    with pytest.raises(ShapeError):
        linear_forward_kl(hidden, head, teacher_hidden[:2], teacher_head, **options)
    with pytest.raises(ShapeError):
        linear_forward_kl(hidden, head, teacher_hidden[:, :2], teacher_head, **options)
