"""The engine against a naive forward per sequence and view, and what it does when things go wrong."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from tests.support.score_answers import numbers
from tide_core.contracts.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    RetryableScoreError,
    ScoreError,
)
from tide_core.contracts.scores import STAIRCASES, Layout, ScoreRequest, TopKQuestion, Want
from tide_core.models.decoder import Decoder
from tide_core.models.reading import ReadPlaces
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.tiny import MASK_ID, VOCAB_SIZE

LAYOUTS = list(Layout)
BEGINS = np.arange(VOCAB_SIZE) % 5 == 2


def engine_for(model: Any, **settings: Any) -> TeacherEngine:
    return TeacherEngine(
        model,
        fingerprint="weights",
        tokenizer_fingerprint="tokenizer",
        settings=EngineSettings(**settings) if settings else None,
        begins_pretoken=BEGINS,
    )


@pytest.fixture
def engine(teacher: Decoder) -> Iterator[TeacherEngine]:
    engine = engine_for(teacher, max_batch_tokens=128, row_slice=7, vocab_slice=50)
    yield engine
    engine.close()


def staircase_allows(query: int, key: int, length: int, block: int) -> bool:
    """``[x_0 | x_t]`` of BD3LM, written out: positions below ``length`` are the clean copy."""
    query_is_clean, key_is_clean = query < length, key < length
    query_block, key_block = (query % length) // block, (key % length) // block
    if query_is_clean:
        return key_is_clean and key_block <= query_block
    if key_is_clean:
        return key_block < query_block
    return key_block == query_block


def causal_allows(query: int, key: int, length: int, block: int, is_masked: list[bool]) -> bool:
    """``[x_0 | x_t]`` in WeDLM's order, written out by moving each noisy block's masked tokens behind the
    others."""
    query_is_clean, key_is_clean = query < length, key < length
    query_place, key_place = query % length, key % length
    if query_is_clean:
        return key_is_clean and key_place <= query_place
    if key_is_clean:
        return key_place // block < query_place // block
    first = query_place // block * block
    places = range(first, min(first + block, length))
    moved = [p for p in places if not is_masked[p]] + [p for p in places if is_masked[p]]
    return key_place in moved and moved.index(key_place) <= moved.index(query_place)


def naive_hidden(
    model: Decoder, ids: npt.NDArray[np.int32], groups: npt.NDArray[np.uint8], layout: Layout, block: int
) -> Tensor:
    """Hidden states at the masked tokens: one full, unpadded forward a view."""
    length = len(ids)
    result = torch.zeros(length, model.hidden_size)
    for view in (1, 2):
        noised = torch.from_numpy(np.where(groups == view, MASK_ID, ids).astype(np.int64))
        if layout in STAIRCASES:
            inputs = torch.cat([torch.from_numpy(ids.astype(np.int64)), noised])
            positions = torch.arange(length).repeat(2)
            size, is_masked = 2 * length, (groups == view).tolist()
            mask = [
                [
                    causal_allows(q, k, length, block, is_masked)
                    if layout is Layout.CAUSAL
                    else staircase_allows(q, k, length, block)
                    for k in range(size)
                ]
                for q in range(size)
            ]
        else:
            inputs, positions = noised, torch.arange(length)
            is_causal = layout is Layout.BLOCK_CAUSAL
            mask = [[not is_causal or k // block <= q // block for k in range(length)] for q in range(length)]
        hidden = model.hidden_states(inputs[None], torch.tensor(mask)[None], positions[None])[0, -length:]
        is_read = torch.from_numpy(groups == view)
        result[is_read] = hidden[is_read]
    return result[torch.from_numpy(groups > 0)]


def naive_answer(model: Decoder, request: ScoreRequest) -> npt.NDArray[Any]:
    parts = []
    for start, end in zip(request.offsets[:-1], request.offsets[1:], strict=True):
        ids, groups = request.token_ids[start:end], request.groups[start:end]
        hidden = naive_hidden(model, ids, groups, request.layout, request.block_size)
        if request.want is Want.HIDDEN:
            parts.append(hidden.to(torch.bfloat16).float().numpy())
            continue
        logits = (hidden.double() @ model.lm_head.weight.double().T).numpy()
        if request.top_k is not None:
            parts.append(np.array([naive_top_k(row, request.top_k) for row in logits]))
            continue
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        answer = log_probs[np.arange(len(logits)), ids[groups > 0]]
        if request.want is Want.TARGET_AND_BOUNDARY:
            boundary = np.log(np.exp(log_probs[:, BEGINS]).sum(axis=1))
            answer = np.stack([answer, boundary], axis=1)
        parts.append(answer)
    return np.concatenate(parts)


def naive_top_k(logits: npt.NDArray[np.float64], question: TopKQuestion) -> list[float]:
    order = np.argsort(-logits[: question.vocab]).tolist()
    top, rest = order[: question.k], order[question.k :]
    shifted = logits - logits[top[0]]
    tails = [float(np.log(np.exp(shifted[rest] / each).sum())) for each in question.temperatures]
    return [*map(float, top), *shifted[top].tolist(), *tails]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("views", [1, 2])
def test_log_probs_equal_a_naive_forward(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest], layout: Layout, views: int
) -> None:
    request = make_request([5, 40, 17, 1, 33, 8], layout=layout, views=views, seed=views)
    response = engine.submit(request).result(30)
    assert response.values.dtype == np.float32
    np.testing.assert_allclose(response.values, naive_answer(engine.model, request), atol=1e-5, rtol=0)
    assert (response.fingerprint, response.tokenizer_fingerprint) == ("weights", "tokenizer")
    assert response.compute_seconds > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_equal_a_naive_forward(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest], layout: Layout
) -> None:
    request = make_request([24, 30, 9], layout=layout, want=Want.HIDDEN, views=2)
    values = engine.submit(request).result(30).values
    assert values.dtype == np.uint16
    # One unit in the last place of bfloat16 where rounding falls the other way.
    np.testing.assert_allclose(
        numbers(values, request), naive_answer(engine.model, request), rtol=2**-7, atol=1e-5
    )


@pytest.mark.parametrize("want", [Want.TOP_K, Want.TARGET_AND_BOUNDARY])
def test_sparse_scores_and_boundaries_equal_a_naive_forward(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest], want: Want
) -> None:
    request = make_request([24, 30, 9], layout=Layout.BLOCK_STAIRCASE, want=want, views=2)
    found = numbers(engine.submit(request).result(30).values, request)
    # Logits of the likeliest travel in float16.
    np.testing.assert_allclose(found, naive_answer(engine.model, request), rtol=2**-10, atol=1e-5)


def test_top_k_of_the_whole_vocabulary_has_no_tail(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    whole = TopKQuestion(VOCAB_SIZE, VOCAB_SIZE, (1.0,))
    request = make_request([12], want=Want.TOP_K, top_k=whole)
    found = numbers(engine.submit(request).result(30).values, request)
    assert sorted(found[0, :VOCAB_SIZE].tolist()) == list(range(VOCAB_SIZE))
    assert (found[:, -1] == -np.inf).all()


def test_what_this_teacher_cannot_say_is_refused(
    dense_teacher: Decoder, make_request: Callable[..., ScoreRequest]
) -> None:
    engine = TeacherEngine(dense_teacher, fingerprint="weights", tokenizer_fingerprint="tokenizer")
    with pytest.raises(InvalidInputError, match="pre-tokens"):
        engine.submit(make_request([5], want=Want.TARGET_AND_BOUNDARY))
    with pytest.raises(InvalidInputError, match="ids"):
        engine.submit(make_request([5], want=Want.TOP_K, top_k=TopKQuestion(3, VOCAB_SIZE + 1, (1.0,))))
    engine.close()


def test_jobs_that_ask_at_once_get_their_own_answers(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    requests = [
        make_request(
            [12 + seed % 5, 30, 12],
            layout=LAYOUTS[seed % 3],
            want=list(Want)[seed % len(Want)],
            views=1 + seed % 2,
            seed=seed,
            job_id=f"job-{seed % 2}",
        )
        for seed in range(12)
    ]
    futures = [engine.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        found, expected = numbers(future.result(30).values, request), naive_answer(engine.model, request)
        np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-5)


def test_sequences_without_a_mask_cost_nothing(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    nothing = make_request([9, 4], rate=0.0, want=Want.HIDDEN)
    assert engine.submit(nothing).result(5).values.shape == (0, engine.model.hidden_size)
    assert engine.statistics().forwards == 0
    groups = np.zeros(20, np.uint8)
    groups[12] = 1
    mixed = make_request([10, 10])
    mixed = ScoreRequest(mixed.token_ids, mixed.offsets, groups, mixed.layout, mixed.want)
    np.testing.assert_allclose(
        engine.submit(mixed).result(5).values, naive_answer(engine.model, mixed), atol=1e-5
    )
    assert engine.statistics().tokens == 10


class Spy:
    """A teacher that notes what it is asked, and may be held up or broken."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.lm_head = nn.Linear(1, 1)
        self.lm_head.weight = nn.Parameter(model.lm_head.weight.detach(), requires_grad=False)
        self.shapes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.poison: int | None = None
        self.is_nan = False

    vocab_size = VOCAB_SIZE
    mask_token_id = MASK_ID

    @property
    def hidden_size(self) -> int:
        return self.model.hidden_size

    def hidden_at(
        self,
        input_ids: Tensor,
        places: ReadPlaces,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        self.entered.set()
        assert self.gate.wait(30)
        self.shapes.append(tuple(input_ids.shape))
        if self.poison is not None and bool((input_ids == self.poison).any()):
            raise RuntimeError("poisoned")
        hidden = self.model.hidden_at(input_ids, places, attention_mask, position_ids)
        return hidden * float("nan") if self.is_nan else hidden


@pytest.fixture
def spy(dense_teacher: Decoder) -> Spy:
    return Spy(dense_teacher)


@pytest.fixture
def spied(spy: Spy) -> Iterator[TeacherEngine]:
    engine = engine_for(spy, max_batch_tokens=256, max_queued_tokens=512)
    yield engine
    spy.gate.set()
    engine.close()


def test_comp_demo_is_one_fused_forward_in_the_staircase(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    request = make_request([32], layout=Layout.BLOCK_STAIRCASE, views=2, rate=0.9)
    spied.submit(request).result(10)
    # Three copies of 32 tokens, less the clean copy's last block, which nothing sees.
    assert spy.shapes == [(1, 3 * 32 - 8)]


def test_comp_demo_is_one_batch_of_two_views_otherwise(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spied.submit(make_request([32], views=2, rate=0.9)).result(10)
    assert spy.shapes == [(2, 32)]


def test_the_head_runs_at_masked_rows_and_in_slices(
    dense_teacher: Decoder, make_request: Callable[..., ScoreRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    from tide_core.scoring import answers

    genuine = answers.float32_logits

    def note(hidden: Tensor, head: Tensor) -> Tensor:
        shapes.append((hidden.shape[0], head.shape[0]))
        return genuine(hidden, head)

    monkeypatch.setattr(answers, "float32_logits", note)
    request = make_request([64], rate=0.3)
    engine = engine_for(dense_teacher, row_slice=8, vocab_slice=100)
    engine.submit(request).result(10)
    engine.close()
    assert sum(rows * vocab for rows, vocab in shapes) == int(request.masked_counts.sum()) * VOCAB_SIZE
    assert max(rows for rows, _ in shapes) <= 8
    assert max(vocab for _, vocab in shapes) <= 100


def test_requests_that_wait_share_a_forward(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spy.gate.clear()
    first = spied.submit(make_request([16], job_id="a"))
    assert spy.entered.wait(5)
    rest = [spied.submit(make_request([15], job_id=job, seed=seed)) for seed, job in enumerate("abc")]
    spy.gate.set()
    for future in (first, *rest):
        future.result(10)
    assert spy.shapes == [(1, 16), (3, 15)]
    statistics = spied.statistics()
    assert (statistics.requests, statistics.forwards, statistics.sequences) == (4, 2, 4)
    assert statistics.tokens_by_job == {"a": 31, "b": 15, "c": 15}
    assert statistics.queue_seconds > 0
    assert 0 < statistics.occupancy <= 1


def test_a_full_queue_refuses_and_recovers(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spy.gate.clear()
    running = spied.submit(make_request([200]))
    assert spy.entered.wait(5)
    waiting = [spied.submit(make_request([200])) for _ in range(2)]
    with pytest.raises(RetryableScoreError) as caught:
        spied.submit(make_request([200]))
    assert caught.value.code == "queue_full"
    assert spied.statistics().refused == 1
    probe = spied.submit(make_request([200]), is_probe=True)
    spy.gate.set()
    for future in (running, *waiting, probe):
        future.result(10)
    spied.submit(make_request([200])).result(10)


def test_one_bad_sequence_fails_its_own_request_alone(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spy.gate.clear()
    spied.submit(make_request([16]))
    assert spy.entered.wait(5)
    spy.poison = 263
    good = [spied.submit(make_request([16], seed=seed, job_id=f"job-{seed}")) for seed in range(3)]
    request = make_request([16, 16], job_id="bad", rate=0.3)
    request.token_ids[np.flatnonzero(request.groups == 0)[0]] = 263
    bad = spied.submit(request)
    spy.gate.set()
    for future in good:
        future.result(10)
    with pytest.raises(ScoreError, match="poisoned"):
        bad.result(10)


def test_nan_is_an_error_and_never_an_answer(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spy.is_nan = True
    for want in Want:
        with pytest.raises(ScoreError) as caught:
            spied.submit(make_request([16], want=want)).result(10)
        assert caught.value.code == "teacher_not_finite"


def test_a_cancelled_request_is_not_computed(
    spied: TeacherEngine, spy: Spy, make_request: Callable[..., ScoreRequest]
) -> None:
    spy.gate.clear()
    running = spied.submit(make_request([16]))
    assert spy.entered.wait(5)
    dropped = spied.submit(make_request([9]))
    assert dropped.cancel()
    spy.gate.set()
    running.result(10)
    spied.submit(make_request([20])).result(10)
    assert (1, 9) not in spy.shapes


def test_a_quarantined_engine_answers_probes_only(
    spied: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    spied.quarantine("flat answers")
    with pytest.raises(RetryableScoreError, match="flat answers"):
        spied.submit(make_request([8]))
    spied.submit(make_request([8]), is_probe=True).result(10)
    spied.release()
    spied.submit(make_request([8])).result(10)


def test_closing_refuses_what_waits(spy: Spy, make_request: Callable[..., ScoreRequest]) -> None:
    engine = engine_for(spy)
    spy.gate.clear()
    running = engine.submit(make_request([16]))
    assert spy.entered.wait(5)
    waiting = engine.submit(make_request([16]))
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(RetryableScoreError):
        waiting.result(10)
    spy.gate.set()
    running.result(10)
    closer.join(10)
    with pytest.raises(RetryableScoreError):
        engine.submit(make_request([16]))


async def test_the_async_front_gives_the_same_answers(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    requests = [make_request([20, 6], seed=seed) for seed in range(4)]
    responses = await asyncio.gather(*(engine.score(request) for request in requests))
    for request, response in zip(requests, responses, strict=True):
        np.testing.assert_allclose(response.values, naive_answer(engine.model, request), atol=1e-5)


def test_bad_requests_are_refused_by_name(
    engine: TeacherEngine, make_request: Callable[..., ScoreRequest]
) -> None:
    with pytest.raises(FingerprintMismatchError):
        engine.submit(make_request([4], fingerprint="other"))
    for field, value in (("weight", 0.0), ("block_size", 0)):
        with pytest.raises(InvalidInputError) as caught:
            engine.submit(make_request([4], **{field: value}))
        assert caught.value.param == field
    request = make_request([4])
    for wrong in (-1, VOCAB_SIZE):
        request.token_ids[2] = wrong
        with pytest.raises(InvalidInputError, match=str(wrong)) as caught:
            engine.submit(request)
        assert caught.value.param == "token_ids"
