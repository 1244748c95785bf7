"""Chunk likelihoods: values against loops, and the gradient facts that the method rests on."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import loss_oracles as oracle
from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.losses.calm import (
    chunk_log_probs,
    forward_calm,
    log1mexp,
    reverse_bernoulli_kl,
    reverse_calm,
    tidal_calm,
)
from tide_core.losses.debiasing import boundary_log_probs, debias, keep_chunks

Loss = Callable[..., torch.Tensor]
LOG_PROBS = st.floats(-600, 0) | st.floats(-1, 0) | st.sampled_from([0.0, -1e-9, -1e-6, -16.0, -1e4])
TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 5.0, 100.0])
FLOORS = st.sampled_from([1e-7, 1e-3, 0.1])
PLAIN = {
    forward_calm: oracle.forward_calm,
    reverse_calm: oracle.reverse_calm,
    reverse_bernoulli_kl: oracle.reverse_bernoulli_kl,
}
ALL: list[Loss] = [*PLAIN, lambda s, z, **options: tidal_calm(s, z, 0.4, **options)]


def column(values: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradient(loss: Loss, student: float, teacher: float, **options: float) -> float:
    variable = column([student])
    (result,) = torch.autograd.grad(loss(variable, column([teacher]), **options).sum(), variable)
    return float(result)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(LOG_PROBS, LOG_PROBS, st.floats(0, 1)), max_size=6),
    TEMPERATURES,
    FLOORS,
)
def test_values_equal_the_loops(
    chunks: list[tuple[float, float, float]], temperature: float, floor: float
) -> None:
    student, teacher = column([s for s, _, _ in chunks]), column([z for _, z, _ in chunks])
    share = torch.tensor([a for _, _, a in chunks], dtype=torch.float64)
    for loss, slow in PLAIN.items():
        wanted = torch.tensor([slow(s, z, temperature, floor) for s, z, _ in chunks], dtype=torch.float64)
        values = loss(student, teacher, temperature=temperature, floor=floor)
        torch.testing.assert_close(values, wanted, rtol=1e-7, atol=1e-9)
    wanted = torch.tensor(
        [oracle.tidal_calm(s, z, a, temperature, floor) for s, z, a in chunks], dtype=torch.float64
    )
    values = tidal_calm(student, teacher, share, temperature=temperature, floor=floor)
    torch.testing.assert_close(values, wanted, rtol=1e-7, atol=1e-9)


@settings(max_examples=100)
@given(st.floats(-40, -1e-3), st.floats(-40, -1e-3), st.floats(0, 1), TEMPERATURES)
def test_gradients_are_the_derived_coefficients(
    student: float, teacher: float, share: float, temperature: float
) -> None:
    options = {"temperature": temperature, "floor": 0.0}
    forward = gradient(forward_calm, student, teacher, **options)
    reverse = gradient(reverse_calm, student, teacher, **options)
    bernoulli = gradient(reverse_bernoulli_kl, student, teacher, **options)
    mixed = gradient(lambda s, z, **o: tidal_calm(s, z, share, **o), student, teacher, **options)
    close = {"rel": 1e-6, "abs": 1e-9}
    assert forward == pytest.approx(oracle.forward_calm_coefficient(student, teacher, temperature), **close)
    assert reverse == pytest.approx(oracle.reverse_calm_coefficient(student, teacher, temperature), **close)
    assert bernoulli == pytest.approx(
        oracle.reverse_bernoulli_coefficient(student, teacher, temperature), rel=1e-6, abs=1e-7
    )
    assert mixed == pytest.approx(share * forward, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("loss", [forward_calm, reverse_calm, reverse_bernoulli_kl])
@pytest.mark.parametrize("floor", [0.0, 1e-7])
def test_numerical_gradients(loss: Loss, floor: float) -> None:
    student, teacher = column([-0.5, -2.0, -0.01]), column([-1.0, -0.3, -4.0])
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher.detach(), temperature=2.0, floor=floor), (student,)
    )


# The gradient facts -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(LOG_PROBS, LOG_PROBS, TEMPERATURES)
def test_reverse_calm_is_bounded(student: float, teacher: float, temperature: float) -> None:
    coefficient = gradient(reverse_calm, student, teacher, temperature=temperature)
    # log((1 - 1e-7) / 1e-7) = 16.118: the log-odds of the floor.
    assert abs(coefficient) <= 16.12 * math.exp(student / temperature) / temperature + 1e-12


def test_reverse_calm_reaches_its_bound_at_the_floor() -> None:
    assert gradient(reverse_calm, -1e-3, -1e4, temperature=1.0) == pytest.approx(16.118, abs=0.02)


def test_reverse_calm_filters_both_noisy_ends() -> None:
    temperature = 5.0
    undecided = temperature * math.log(0.5)
    assert abs(gradient(reverse_calm, -0.5, undecided, temperature=temperature)) < 1e-12
    assert abs(gradient(reverse_calm, -75.0, -0.1, temperature=temperature)) < 1e-5
    assert abs(gradient(reverse_calm, -0.5, -0.1, temperature=temperature)) > 0.1


def test_forward_calm_diverges_as_the_student_becomes_sure() -> None:
    slopes = [
        gradient(forward_calm, math.log1p(-gap), math.log(0.5), temperature=1.0) for gap in (1e-2, 1e-4, 1e-6)
    ]
    assert slopes[0] == pytest.approx(49, rel=0.02)
    assert slopes[1] == pytest.approx(4999, rel=0.02)
    assert slopes[2] == pytest.approx(499_999, rel=0.02)


def test_tidal_calm_at_share_zero_teaches_nothing_and_at_one_is_calm() -> None:
    nothing = gradient(lambda s, z, **o: tidal_calm(s, z, 0.0, **o), -2.0, -0.5, temperature=2.0)
    assert nothing == pytest.approx(0.0, abs=1e-12)
    everything = gradient(lambda s, z, **o: tidal_calm(s, z, 1.0, **o), -2.0, -0.5, temperature=2.0)
    assert everything == pytest.approx(gradient(forward_calm, -2.0, -0.5, temperature=2.0))


def test_reverse_calm_is_not_a_bernoulli_kl() -> None:
    """Where both models agree a KL has no slope; Reverse CALM still pushes the student to certainty."""
    agreed = math.log(0.8)
    assert gradient(reverse_bernoulli_kl, agreed, agreed, temperature=1.0) == pytest.approx(0.0, abs=1e-12)
    assert gradient(reverse_calm, agreed, agreed, temperature=1.0) < -1.0
    same = reverse_bernoulli_kl(column([agreed]), column([agreed]), temperature=1.0)
    assert float(same.detach()) == pytest.approx(0.0, abs=1e-12)


def test_the_default_floor_silences_hard_chunks_and_floor_zero_does_not() -> None:
    hard = -40.0
    assert gradient(forward_calm, hard, -0.1, temperature=1.0) == 0.0
    assert gradient(forward_calm, hard, -0.1, temperature=1.0, floor=0.0) == pytest.approx(-math.exp(-0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
@pytest.mark.parametrize("loss", ALL)
def test_floor_zero_is_finite_everywhere(loss: Loss, temperature: float, dtype: torch.dtype) -> None:
    extremes = [0.0, -1e-45, -1e-30, -1e-8, -1e-3, -1.0, -88.0, -1e3, -1e6]
    student = column([s for s in extremes for _ in extremes], dtype)
    teacher = column([z for _ in extremes for z in extremes], dtype)
    values = loss(student, teacher, temperature=temperature, floor=0.0)
    assert torch.isfinite(values).all()
    (slopes,) = torch.autograd.grad(values.sum(), student)
    assert torch.isfinite(slopes).all()


@pytest.mark.parametrize("loss", ALL)
def test_no_gradient_flows_into_the_teacher(loss: Loss) -> None:
    student, teacher = column([-1.0, -2.0]), column([-0.5, -3.0])
    values = loss(student, teacher, temperature=2.0)
    assert torch.autograd.grad(values.sum(), teacher, allow_unused=True) == (None,)


@given(st.floats(-700, -1e-300))
def test_log1mexp_keeps_its_digits(x: float) -> None:
    exact = math.log(-math.expm1(x)) if x > -0.5 else math.log1p(-math.exp(x))
    assert float(log1mexp(torch.tensor([x], dtype=torch.float64))) == pytest.approx(exact, rel=1e-12, abs=0)


def test_log1mexp_has_a_finite_gradient_at_both_ends() -> None:
    x = column([-1e-300, -1e-20, -0.5, -2.0, -1e3])
    (slopes,) = torch.autograd.grad(log1mexp(x).sum(), x)
    # -1 / (exp(-x) - 1)
    wanted = [-1e300, -1e20, -1 / math.expm1(0.5), -1 / math.expm1(2.0), 0.0]
    torch.testing.assert_close(slopes, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# Chunk sums -------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(0, 8), st.integers(0, 4), st.integers(0, 1000))
def test_chunk_sums_equal_the_loop(batch: int, seq: int, chunks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    token_lp = -torch.rand(batch, seq, generator=generator, dtype=torch.float64)
    ids = (
        torch.randint(-1, max(chunks, 0), (batch, seq), generator=generator)
        if chunks
        else -torch.ones(batch, seq, dtype=torch.int64)
    )
    wanted = [
        oracle.chunk_sums(row, row_ids, chunks)
        for row, row_ids in zip(token_lp.tolist(), ids.tolist(), strict=True)
    ]
    result = chunk_log_probs(token_lp, ids, chunks)
    torch.testing.assert_close(result, torch.tensor(wanted, dtype=torch.float64).reshape(batch, chunks))


def test_tokens_of_no_chunk_reach_no_chunk_and_get_no_gradient() -> None:
    token_lp = torch.tensor([[-1.0, -2.0, -4.0, -8.0]], requires_grad=True)
    sums = chunk_log_probs(token_lp, torch.tensor([[-1, 0, -1, 0]], dtype=torch.int32), 2)
    assert sums.tolist() == [[-10.0, 0.0]]
    sums.sum().backward()
    assert token_lp.grad is not None
    assert token_lp.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]


# Shares of chunks -------------------------------------------------------------------------------------


def test_the_share_may_be_one_number_one_a_row_or_one_a_chunk() -> None:
    student, teacher = -torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), -torch.ones(2, 3)
    per_row = tidal_calm(student, teacher, torch.tensor([0.2, 0.7]), temperature=2.0)
    per_chunk = tidal_calm(student, teacher, torch.tensor([[0.2] * 3, [0.7] * 3]), temperature=2.0)
    first = tidal_calm(student[0], teacher[0], 0.2, temperature=2.0)
    torch.testing.assert_close(per_row, per_chunk)
    torch.testing.assert_close(per_row[0], first)
    with pytest.raises(ShapeError) as caught:
        tidal_calm(student, teacher, torch.tensor([0.1, 0.2, 0.3]), temperature=2.0)
    assert caught.value.param == "lambda_t"


# Debiasing --------------------------------------------------------------------------------------------


def test_boundary_probability_is_the_mass_of_tokens_that_begin_a_pre_token() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [80.0, -80.0, 0.0]], dtype=torch.float64)
    is_boundary = torch.tensor([True, False, True])
    wanted = [math.log(sum(oracle.softmax(row, 1.0)[v] for v in (0, 2))) for row in logits.tolist()]
    torch.testing.assert_close(
        boundary_log_probs(logits, is_boundary), torch.tensor(wanted, dtype=torch.float64)
    )


def test_debiasing_multiplies_probabilities_and_the_filter_keeps_expected_boundaries() -> None:
    chunk, boundary = torch.tensor([-1.0, -2.0]), torch.log(torch.tensor([0.5, 0.05]))
    torch.testing.assert_close(debias(chunk, boundary).exp(), chunk.exp() * torch.tensor([0.5, 0.05]))
    assert keep_chunks(boundary, 0.1).tolist() == [True, False]
    assert keep_chunks(boundary, 0.0).tolist() == [True, True]


def test_debiasing_refuses_bad_input() -> None:
    with pytest.raises(InvalidInputError) as caught:
        boundary_log_probs(torch.zeros(1, 3), torch.zeros(3, dtype=torch.bool))
    assert caught.value.param == "is_boundary"
    with pytest.raises(NonFiniteError):
        boundary_log_probs(torch.full((1, 3), math.nan), torch.ones(3, dtype=torch.bool))
    with pytest.raises(InvalidInputError):
        keep_chunks(torch.zeros(2), 1.5)
    with pytest.raises(InvalidInputError):
        debias(torch.zeros(2), torch.ones(2))
    with pytest.raises(ShapeError):
        debias(torch.zeros(2), torch.zeros(3))


def test_debiasing_checks_the_vocabulary(no_shape_annotations: None) -> None:
    with pytest.raises(ShapeError):
        boundary_log_probs(torch.zeros(1, 3), torch.ones(4, dtype=torch.bool))


# Bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_log_probabilities_that_are_not_finite_are_named(loss: Loss, bad: float) -> None:
    with pytest.raises(NonFiniteError) as caught:
        loss(torch.tensor([bad, -1.0]), torch.tensor([-1.0, -1.0]), temperature=1.0)
    assert caught.value.param == "student_chunk_lp"
    with pytest.raises(NonFiniteError) as caught:
        loss(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, bad]), temperature=1.0)
    assert caught.value.param == "teacher_chunk_lp"


@pytest.mark.parametrize("loss", ALL)
def test_bad_settings_are_refused(loss: Loss) -> None:
    good = torch.tensor([-1.0])
    with pytest.raises(InvalidInputError):
        loss(good, good, temperature=0.0)
    for floor in (-0.1, 0.5, math.nan):
        with pytest.raises(InvalidInputError) as caught:
            loss(good, good, temperature=1.0, floor=floor)
        assert caught.value.param == "floor"
    with pytest.raises(InvalidInputError) as caught_positive:
        loss(torch.tensor([0.5]), good, temperature=1.0)
    assert caught_positive.value.param == "student_chunk_lp"
    with pytest.raises(ShapeError):
        loss(good, torch.tensor([-1.0, -1.0]), temperature=1.0)
    # What rounding in bfloat16 may leave above 0 is taken as certainty.
    assert torch.isfinite(loss(torch.tensor([0.005]), good, temperature=1.0)).all()


def test_bad_chunk_ids_are_refused(no_shape_annotations: None) -> None:
    token_lp = torch.zeros(1, 3)
    for ids in ([[0, 1, 2]], [[0, -2, 1]]):
        with pytest.raises(InvalidInputError) as caught:
            chunk_log_probs(token_lp, torch.tensor(ids), 2)
        assert caught.value.param == "chunk_ids"
    with pytest.raises(ShapeError):
        chunk_log_probs(token_lp, torch.tensor([[0]]), 2)
    with pytest.raises(InvalidInputError):
        tidal_calm(token_lp, token_lp, -0.1, temperature=1.0)
