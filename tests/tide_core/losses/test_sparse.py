"""Top-k scores: what they can know, and how close they come to the exact divergence."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import loss_oracles as oracle
from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.sparse import (
    bucket_log_probs,
    linear_bucket_log_probs,
    sparse_forward_kl,
    sparse_reverse_kl,
    sparse_tidal_kl,
    tail_candidates,
    top_k_of_logits,
)
from tide_core.losses.tidal import tidal_kl


def draw(*shape: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def sparse(
    student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float
) -> dict[str, torch.Tensor]:
    top = top_k_of_logits(teacher, k, temperature=temperature)
    scores = (bucket_log_probs(student, top.ids, temperature=temperature), top.log_probs, top.log_tail)
    share = torch.full((student.shape[0],), 0.6, dtype=student.dtype)
    return {
        "forward": sparse_forward_kl(*scores, temperature=temperature),
        "reverse": sparse_reverse_kl(*scores, temperature=temperature),
        "tidal": sparse_tidal_kl(*scores, share, temperature=temperature),
    }


def exact(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> dict[str, torch.Tensor]:
    return {
        "forward": forward_kl(student, teacher, temperature=temperature),
        "reverse": reverse_kl(student, teacher, temperature=temperature),
        "tidal": tidal_kl(student, teacher, 0.6, temperature=temperature),
    }


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(2, 15), st.sampled_from([0.5, 1.0, 2.0, 100.0]), st.integers(0, 999))
def test_sparse_values_equal_a_loop_over_the_outcomes(
    rows: int, vocab: int, temperature: float, seed: int
) -> None:
    student, teacher = draw(rows, vocab, seed=seed), draw(rows, vocab, seed=seed + 1)
    k = max(1, vocab // 2)
    values = sparse(student, teacher, k, temperature)
    for row in range(rows):
        q, p = (oracle.softmax(side[row].tolist(), temperature) for side in (student, teacher))
        top = sorted(range(vocab), key=lambda v: -p[v])[:k]
        rest = [v for v in range(vocab) if v not in top]
        log_q = [math.log(q[v]) for v in top] + [math.log(math.fsum(q[v] for v in rest))]
        log_p = [math.log(p[v]) for v in top] + [math.log(math.fsum(p[v] for v in rest))]
        mixed = oracle.log_softmax(oracle.tidal_target(log_q, log_p, 0.6), 1.0)
        factor = temperature**2
        assert float(values["forward"][row]) == pytest.approx(factor * oracle.kl(log_p, log_q), abs=1e-9)
        assert float(values["reverse"][row]) == pytest.approx(factor * oracle.kl(log_q, log_p), abs=1e-9)
        assert float(values["tidal"][row]) == pytest.approx(factor * oracle.kl(mixed, log_q), abs=1e-9)


def test_all_ids_give_the_exact_values_and_gradients() -> None:
    student, teacher = draw(6, 11, seed=0).requires_grad_(), draw(6, 11, seed=1)
    approximate, reference = sparse(student, teacher, 11, 2.0), exact(student, teacher, 2.0)
    for name in approximate:
        torch.testing.assert_close(approximate[name], reference[name], rtol=1e-9, atol=1e-9)
        ours, theirs = (
            torch.autograd.grad(side[name].sum(), student, retain_graph=True)[0]
            for side in (approximate, reference)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(st.integers(2, 30), st.sampled_from([1.0, 2.0, 5.0]), st.integers(0, 999))
def test_sparse_kls_are_lower_bounds_that_rise_with_k(vocab: int, temperature: float, seed: int) -> None:
    student, teacher = draw(4, vocab, seed=seed), draw(4, vocab, seed=seed + 1)
    reference = exact(student, teacher, temperature)
    previous = {"forward": torch.zeros(4), "reverse": torch.zeros(4)}
    for k in range(1, vocab + 1):
        values = sparse(student, teacher, k, temperature)
        for name, last in previous.items():
            assert (values[name] >= last - 1e-9).all()
            assert (values[name] <= reference[name] + 1e-9).all()
            previous[name] = values[name]


def test_the_bound_is_attained_by_a_tail_shaped_like_the_students() -> None:
    student = draw(3, 12, seed=0)
    teacher = student.clone()
    teacher[:, :4] += torch.tensor([40.0, 39.0, 38.0, 37.0], dtype=torch.float64)
    approximate, reference = sparse(student, teacher, 4, 2.0), exact(student, teacher, 2.0)
    for name in approximate:
        torch.testing.assert_close(approximate[name], reference[name], rtol=1e-9, atol=1e-9)


def test_the_gradient_scales_the_tail_as_a_whole() -> None:
    student, teacher = draw(1, 10, seed=0).requires_grad_(), draw(1, 10, seed=1)
    top = top_k_of_logits(teacher, 3, temperature=1.0)
    (gradient,) = torch.autograd.grad(sparse(student, teacher, 3, 1.0)["forward"].sum(), student)
    in_tail = torch.ones(10, dtype=torch.bool)
    in_tail[top.ids[0]] = False
    ratio = gradient[0, in_tail] / student.softmax(dim=-1)[0, in_tail]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(
    st.integers(0, 6),
    st.integers(1, 25),
    st.floats(0, 1),
    st.sampled_from([1, 9, 50, None]),
    st.integers(0, 999),
)
def test_fused_buckets_equal_plain_buckets(
    rows: int, vocab: int, kept: float, slice_size: int | None, seed: int
) -> None:
    hidden, head = (
        draw(rows, 5, seed=seed).requires_grad_(),
        draw(vocab + 4, 5, seed=seed + 1).requires_grad_(),
    )
    k = max(1, round(kept * vocab))
    ids = draw(rows, vocab, seed=seed + 2).argsort(dim=1)[:, :k]
    fused = linear_bucket_log_probs(
        hidden, head, ids, temperature=2.0, shared_vocab=vocab, slice_size=slice_size
    )
    plain = bucket_log_probs((hidden @ head.T)[:, :vocab], ids, temperature=2.0)
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
    # With every id among the k there is no tail, and nothing to differentiate there.
    outcomes = k if k == vocab else k + 1
    weights = draw(rows, outcomes, seed=seed + 3)
    gradients = [
        torch.autograd.grad((side[:, :outcomes] * weights).sum(), (hidden, head)) for side in (fused, plain)
    ]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


# The nearest tail -----------------------------------------------------------------------------------------


def own_ids(student: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    return student.detach().scatter(1, ids, -math.inf).topk(count, dim=1).indices


def nearest_tail(tail: list[float], cap: float, mass: float) -> list[float]:
    """``min(cap, c q)`` with the right mass, by bisection on c."""
    low, high = 0.0, 1e30
    for _ in range(2000):
        middle = math.sqrt(low * high) if low > 0 else high * 1e-3 if high > 1e-290 else 0.0
        total = math.fsum(min(cap, middle * q) for q in tail)
        low, high = (middle, high) if total < mass else (low, middle)
        if high / max(low, 1e-300) < 1 + 1e-14:
            break
    return [min(cap, high * q) for q in tail]


@settings(max_examples=60)
@given(st.integers(2, 14), st.sampled_from([1.0, 2.0]), st.floats(0.1, 6.0), st.integers(0, 999))
def test_with_all_candidates_the_teacher_is_the_nearest_one(
    vocab: int, temperature: float, scale: float, seed: int
) -> None:
    k = max(1, vocab // 3)
    student, teacher = draw(3, vocab, seed=seed, scale=scale), draw(3, vocab, seed=seed + 1)
    top = top_k_of_logits(teacher, k, temperature=temperature)
    ids = torch.cat([top.ids, own_ids(student, top.ids, vocab - k)], dim=1)
    student_buckets = bucket_log_probs(student, ids, temperature=temperature)
    forward = sparse_forward_kl(student_buckets, top.log_probs, top.log_tail, temperature=temperature)
    reverse = sparse_reverse_kl(student_buckets, top.log_probs, top.log_tail, temperature=temperature)
    for row in range(3):
        q = oracle.softmax(student[row].tolist(), temperature)
        p = oracle.softmax(teacher[row].tolist(), temperature)
        order = ids[row].tolist()
        mass = math.fsum(p[v] for v in order[k:])
        tail = nearest_tail([q[v] for v in order[k:]], p[order[k - 1]], mass)
        log_p = [math.log(x) for x in [p[v] for v in order[:k]] + tail]
        log_q = [math.log(q[v]) for v in order]
        factor = temperature**2
        assert float(forward[row]) == pytest.approx(factor * oracle.kl(log_p, log_q), abs=1e-7)
        assert float(reverse[row]) == pytest.approx(factor * oracle.kl(log_q, log_p), abs=1e-7)


@settings(max_examples=60)
@given(st.integers(3, 30), st.integers(0, 8), st.sampled_from([1.0, 2.0]), st.integers(0, 999))
def test_candidates_tighten_the_bound_and_never_pass_the_exact_value(
    vocab: int, count: int, temperature: float, seed: int
) -> None:
    student, teacher = draw(4, vocab, seed=seed), draw(4, vocab, seed=seed + 1)
    k = max(1, vocab // 3)
    top = top_k_of_logits(teacher, k, temperature=temperature)
    ids = torch.cat([top.ids, own_ids(student, top.ids, min(count, vocab - k))], dim=1)
    bare, own = (bucket_log_probs(student, each, temperature=temperature) for each in (top.ids, ids))
    reference = exact(student, teacher, temperature)
    for name, loss in (("forward", sparse_forward_kl), ("reverse", sparse_reverse_kl)):
        with_own = loss(own, top.log_probs, top.log_tail, temperature=temperature)
        assert (with_own >= loss(bare, top.log_probs, top.log_tail, temperature=temperature) - 1e-9).all()
        assert (with_own <= reference[name] + 1e-9).all()


def test_a_token_that_only_the_student_believes_in_is_pushed_down() -> None:
    """The teacher's k-th id has 1e-3; the student's favourite is not among the k, so it has no more."""
    teacher = torch.log(torch.tensor([[0.6, 0.399, 1e-3] + [1e-6] * 5], dtype=torch.float64))
    student = torch.tensor([[0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    top = top_k_of_logits(teacher, 3, temperature=1.0)
    ids = torch.cat([top.ids, own_ids(student, top.ids, 2)], dim=1)
    values = sparse_forward_kl(
        bucket_log_probs(student, ids, temperature=1.0), top.log_probs, top.log_tail, temperature=1.0
    )
    (gradient,) = torch.autograd.grad(values.sum(), student)
    (wanted,) = torch.autograd.grad(forward_kl(student, teacher, temperature=1.0).sum(), student)
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.01


@settings(max_examples=40)
@given(
    st.integers(0, 5),
    st.integers(1, 25),
    st.integers(0, 30),
    st.sampled_from([1, 9, 50, None]),
    st.integers(0, 999),
)
def test_candidates_are_the_students_likeliest_tail_ids(
    rows: int, vocab: int, count: int, slice_size: int | None, seed: int
) -> None:
    hidden, head = draw(rows, 5, seed=seed), draw(vocab + 4, 5, seed=seed + 1)
    k = max(1, vocab // 3)
    ids = draw(rows, vocab, seed=seed + 2).argsort(dim=1)[:, :k]
    found = tail_candidates(hidden, head, ids, count, shared_vocab=vocab, slice_size=slice_size)
    assert torch.equal(found, own_ids((hidden @ head.T)[:, :vocab], ids, min(count, vocab - k)))


def test_an_empty_tail_stays_finite_end_to_end() -> None:
    hidden, head = draw(3, 5, seed=0).requires_grad_(), draw(7, 5, seed=1).requires_grad_()
    top = top_k_of_logits(draw(3, 7, seed=2), 7, temperature=1.0)
    buckets = linear_bucket_log_probs(hidden, head, top.ids, temperature=1.0, shared_vocab=7)
    for loss in (sparse_forward_kl, sparse_reverse_kl):
        values = loss(buckets, top.log_probs, top.log_tail, temperature=1.0)
        gradients = torch.autograd.grad(values.sum(), (hidden, head), retain_graph=True)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in (values, *gradients))


def test_a_tail_far_below_rounding_keeps_its_mass() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]], dtype=torch.float32)
    top = top_k_of_logits(logits, 1, temperature=1.0)
    assert float(top.log_tail) == pytest.approx(math.log(2) - 100.0, rel=1e-5)


def test_bad_input_is_refused(no_shape_annotations: None) -> None:
    good = torch.zeros(2, 4)
    for k in (0, 5):
        with pytest.raises(InvalidInputError):
            top_k_of_logits(good, k, temperature=1.0)
    with pytest.raises(NonFiniteError):
        top_k_of_logits(good / 0, 2, temperature=1.0)
    ids = torch.tensor([[0, 4], [1, 2]])
    with pytest.raises(InvalidInputError):
        bucket_log_probs(good, ids, temperature=1.0)
    hidden, head = torch.zeros(2, 3), torch.zeros(6, 3)
    with pytest.raises(InvalidInputError):
        linear_bucket_log_probs(hidden, head, ids, temperature=1.0, shared_vocab=4)
    with pytest.raises(InvalidInputError):
        linear_bucket_log_probs(hidden, head, ids, temperature=1.0, shared_vocab=7)
    with pytest.raises(ShapeError):
        linear_bucket_log_probs(hidden, head[:, :2], ids, temperature=1.0, shared_vocab=6)
    with pytest.raises(NonFiniteError):
        linear_bucket_log_probs(hidden / 0, head, ids, temperature=1.0, shared_vocab=6)
    with pytest.raises(ShapeError):
        sparse_forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), temperature=1.0)
