"""The next forward is launched before the present one is waited for, where the device computes on its own."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tide_core.contracts.errors import ScoreError
from tide_core.contracts.scores import ScoreRequest, Want
from tide_core.models.decoder import Decoder
from tide_core.models.reading import ReadPlaces
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.streams import Landing, Streams
from workers.teachers.tiny import MASK_ID, VOCAB_SIZE, tiny_teacher

RequestMaker = Callable[..., ScoreRequest]


class Journal(list[str]):
    """What happened, in order."""

    landings = 0


class LateLanding(Landing):
    """Not there before it is waited for, as on a device that is still at work."""

    def __init__(self, tensors: Sequence[Tensor], journal: Journal, error: Exception | None) -> None:
        super().__init__(tensors)
        journal.landings += 1
        self._journal, self._number, self._error = journal, journal.landings, error

    def is_ready(self) -> bool:
        return False

    def wait(self) -> list[Tensor]:
        self._journal.append(f"land {self._number}")
        if self._error is not None:
            raise self._error
        return super().wait()


class LateStreams(Streams):
    """A device that computes on its own: answers are there when they are waited for."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.error: Exception | None = None
        self.is_broken = self.is_full = False

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.journal.append("prepare")
        yield

    def start_landing(self, tensors: Sequence[Tensor]) -> Landing:
        error, self.error = self.error, None
        return LateLanding(tensors, self.journal, error)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        if self.is_full:
            raise torch.OutOfMemoryError("no room to join")
        return super().join(parts)

    def settle(self) -> None:
        self.journal.append("settle")
        if self.is_broken:
            raise RuntimeError("the device is gone")


class NotingModel:
    """Notes its forwards; held up before each until the gate opens, and broken where it is told to be."""

    vocab_size = VOCAB_SIZE
    mask_token_id = MASK_ID

    def __init__(self, model: Decoder, journal: Journal) -> None:
        self.model, self.journal = model, journal
        self.lm_head = nn.Linear(1, 1)
        self.lm_head.weight = nn.Parameter(model.lm_head.weight.detach(), requires_grad=False)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.failures: dict[int, Exception] = {}
        self.launches = 0
        self.left: list[weakref.ref[Tensor]] = []

    @property
    def hidden_size(self) -> int:
        return self.model.hidden_size

    def hidden_at(self, input_ids: Tensor, places: ReadPlaces, *rest: Any) -> Tensor:
        self.entered.set()
        assert self.gate.wait(30)
        self.launches += 1
        self.journal.append(f"launch {self.launches}")
        assert not [tensor for tensor in self.left if tensor() is not None], (
            "a failed forward's memory is free"
        )
        if self.launches in self.failures:
            activations = torch.zeros(3)
            self.left.append(weakref.ref(activations))
            raise self.failures[self.launches]
        return self.model.hidden_at(input_ids, places, *rest)


class Bench:
    """An engine on such a device, and a plain one with the same weights."""

    def __init__(self, model: Decoder) -> None:
        self.journal = Journal()
        self.streams = LateStreams(self.journal)
        self.model = NotingModel(model, self.journal)
        common: dict[str, Any] = {"fingerprint": "weights", "tokenizer_fingerprint": "tokenizer"}
        settings = EngineSettings(max_batch_tokens=32)
        self.engine = TeacherEngine(self.model, settings=settings, streams=self.streams, **common)
        self.plain = TeacherEngine(model, settings=settings, **common)

    def ask(self, requests: list[ScoreRequest]) -> list[Any]:
        """Ask all at once, so that they wait together; the answers or errors."""
        self.model.gate.clear()
        self.model.entered.clear()
        futures = [self.engine.submit(request) for request in requests]
        assert self.model.entered.wait(10)
        self.model.gate.set()
        return [future.exception(30) or future.result() for future in futures]

    def expected(self, request: ScoreRequest) -> np.ndarray:
        return self.plain.submit(request).result(30).values


@pytest.fixture
def bench(dense_teacher: Decoder) -> Iterator[Bench]:
    bench = Bench(dense_teacher)
    yield bench
    bench.model.gate.set()
    bench.engine.close()
    bench.plain.close()


def three(make_request: RequestMaker) -> list[ScoreRequest]:
    """Requests that each fill a forward."""
    return [make_request([32], seed=seed) for seed in range(3)]


def test_the_next_forward_is_launched_before_the_present_one_is_waited_for(
    bench: Bench, make_request: RequestMaker
) -> None:
    requests = three(make_request)
    answers = bench.ask(requests)
    acts = [act for act in bench.journal if act != "prepare"]
    assert acts == ["launch 1", "launch 2", "land 1", "launch 3", "land 2", "land 3"]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer.values, bench.expected(request))
    statistics = bench.engine.statistics()
    assert (statistics.requests, statistics.forwards) == (3, 3)


def test_nothing_is_kept_waiting_for_a_next_forward(bench: Bench, make_request: RequestMaker) -> None:
    for seed in range(2):
        request = make_request([20], seed=seed)
        answer = bench.engine.submit(request).result(10)
        np.testing.assert_array_equal(answer.values, bench.expected(request))
    assert [act for act in bench.journal if act != "prepare"] == ["launch 1", "land 1", "launch 2", "land 2"]


def test_what_is_under_way_is_answered_when_the_engine_closes(
    bench: Bench, make_request: RequestMaker
) -> None:
    bench.model.gate.clear()
    future = bench.engine.submit(make_request([32]))
    assert bench.model.entered.wait(10)
    closing = threading.Thread(target=bench.engine.close)
    closing.start()
    bench.model.gate.set()
    closing.join(10)
    assert future.result(0).values.size


def test_a_forward_that_fails_beside_another_is_repeated_alone(
    bench: Bench, make_request: RequestMaker
) -> None:
    bench.model.failures[2] = torch.OutOfMemoryError("no room beside the first")
    requests = three(make_request)
    answers = bench.ask(requests)
    acts = [act for act in bench.journal if act != "prepare"]
    assert acts[:5] == ["launch 1", "launch 2", "land 1", "settle", "launch 3"], "room is made first"
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer.values, bench.expected(request))


def test_one_that_fails_alone_too_is_told_so(bench: Bench, make_request: RequestMaker) -> None:
    bench.model.failures |= {number: torch.OutOfMemoryError("no room") for number in (2, 3)}
    first, second, third = bench.ask(three(make_request))
    assert isinstance(second, ScoreError)
    assert second.code == "teacher_out_of_memory"
    assert first.values.size
    assert third.values.size


def test_an_error_that_the_device_tells_late_fails_its_own_forward(
    bench: Bench, make_request: RequestMaker
) -> None:
    bench.streams.error = RuntimeError("an illegal access was encountered")
    first, *others = bench.ask(three(make_request))
    assert isinstance(first, ScoreError)
    assert "illegal access" in first.message
    assert all(answer.values.size for answer in others)


def test_a_device_that_is_gone_fails_its_questions_and_not_the_engine(
    bench: Bench, make_request: RequestMaker
) -> None:
    bench.streams.is_broken = True
    bench.model.failures[2] = RuntimeError("launch failed")
    first, second, third = bench.ask(three(make_request))
    assert isinstance(second, ScoreError)
    assert "the device is gone" in second.message
    assert first.values.size
    assert third.values.size


def test_values_that_find_no_room_fail_their_own_question(bench: Bench, make_request: RequestMaker) -> None:
    bench.streams.is_full = True
    error = bench.engine.submit(make_request([9], want=Want.HIDDEN), is_held=True).exception(10)
    assert isinstance(error, ScoreError)
    assert error.code == "teacher_out_of_memory"
    assert bench.engine.submit(make_request([9])).result(10).values.size, "the engine goes on"


def test_hidden_states_may_stay_on_the_device(bench: Bench, make_request: RequestMaker) -> None:
    request = make_request([5, 9, 4], want=Want.HIDDEN, rate=0.6)
    kept: Any = bench.engine.submit(request, is_held=True).result(10).values
    assert isinstance(kept, Tensor)
    assert kept.dtype == torch.bfloat16
    bits = kept.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bits, bench.expected(request))
    nothing = make_request([5], want=Want.HIDDEN, rate=0.0)
    assert bench.engine.submit(nothing, is_held=True).result(10).values.shape == (0, bench.model.hidden_size)
    # One number a token is not worth it.
    small = make_request([20])
    assert isinstance(bench.engine.submit(small, is_held=True).result(10).values, np.ndarray)


@pytest.mark.gpu
@pytest.mark.parametrize("want", [Want.HIDDEN, Want.TARGET_LOG_PROB, Want.TOP_K])
def test_a_device_answers_as_the_host(make_request: RequestMaker, want: Want) -> None:
    requests = [make_request([32, 7], seed=seed, want=want) for seed in range(20)]
    answers = []
    for device in ("cpu", "cuda"):
        model = tiny_teacher("wedlm", seed=3).to(device)
        engine = TeacherEngine(model, fingerprint="", tokenizer_fingerprint="")
        futures = [engine.submit(request) for request in requests]
        answers.append([future.result(60).values for future in futures])
        engine.close()
    for host, device_values in zip(*answers, strict=True):
        if want is Want.TARGET_LOG_PROB:
            np.testing.assert_allclose(device_values, host, atol=1e-4)
        else:
            assert (device_values == host).mean() > 0.9, "but for a rounding here and there"
