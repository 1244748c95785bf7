"""Order, bounds, errors and the end of the prefetcher."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from tide_core.contracts.errors import ScoreError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherDescription
from tide_core.scoring.prefetcher import AskedStep, Prefetcher


def request_for(number: int) -> ScoreRequest:
    return ScoreRequest(
        np.array([number], np.int32),
        np.array([0, 1], np.int64),
        np.ones(1, np.uint8),
        Layout.BIDIRECTIONAL,
        Want.TARGET_LOG_PROB,
    )


class HandAnswered:
    """A transport whose futures the test fills itself."""

    def __init__(self) -> None:
        self.futures: dict[int, Future[ScoreResponse]] = {}
        self.asked = threading.Condition()

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        with self.asked:
            self.futures[int(request.token_ids[0])] = Future()
            self.asked.notify_all()
        return self.futures[int(request.token_ids[0])]

    def wait_for(self, count: int) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: len(self.futures) >= count, timeout=5)

    def answer(self, number: int) -> None:
        self.futures[number].set_result(ScoreResponse(np.array([number], np.float32), "weights", "tokenizer"))

    def describe(self) -> TeacherDescription:
        raise NotImplementedError

    def close(self) -> None:
        raise AssertionError("the transport belongs to the caller")


@pytest.fixture
def transport() -> HandAnswered:
    return HandAnswered()


def steps(count: int, drawn: list[int] | None = None) -> Iterator[AskedStep[int]]:
    for number in range(count):
        if drawn is not None:
            drawn.append(number)
        yield AskedStep(number, [request_for(number)])


def test_answers_come_in_the_order_of_the_steps(transport: HandAnswered) -> None:
    with Prefetcher(transport, steps(3), depth=3) as prefetcher:
        assert transport.wait_for(3)
        for number in (2, 0, 1):
            transport.answer(number)
        got = [(step.payload, step.responses[0].values[0]) for step in prefetcher]
    assert got == [(0, 0.0), (1, 1.0), (2, 2.0)]


def answer_when_asked(transport: HandAnswered, number: int) -> None:
    assert transport.wait_for(number + 1)
    transport.answer(number)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_only_depth_steps_are_in_flight(transport: HandAnswered, depth: int) -> None:
    drawn: list[int] = []
    with Prefetcher(transport, steps(10, drawn), depth=depth) as prefetcher:
        for number in range(4):
            time.sleep(0.05)
            assert len(drawn) == number + depth
            threading.Timer(
                0.02, lambda number=number: transport.wait_for(number + 1) and transport.answer(number)
            ).start()
            assert next(prefetcher).payload == number


def test_an_error_of_the_teacher_surfaces_on_its_own_step(transport: HandAnswered) -> None:
    with Prefetcher(transport, steps(5), depth=3) as prefetcher:
        assert transport.wait_for(3)
        transport.futures[1].set_exception(ScoreError("the teacher is gone"))
        transport.answer(0)
        assert next(prefetcher).payload == 0
        with pytest.raises(ScoreError, match="the teacher is gone"):
            next(prefetcher)
        assert transport.futures[2].cancelled()
        with pytest.raises(StopIteration):
            next(prefetcher)


def test_an_error_of_the_feed_surfaces_on_its_own_step(transport: HandAnswered) -> None:
    def broken() -> Iterator[AskedStep[int]]:
        yield from steps(2)
        raise OSError("the shard is gone")

    with Prefetcher(transport, broken(), depth=4) as prefetcher:
        assert transport.wait_for(2)
        transport.answer(0)
        transport.answer(1)
        assert [next(prefetcher).payload, next(prefetcher).payload] == [0, 1]
        with pytest.raises(OSError, match="the shard is gone"):
            next(prefetcher)


def test_closing_cancels_and_ends_the_thread(transport: HandAnswered) -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(transport, steps(100), depth=3)
    assert transport.wait_for(3)
    prefetcher.close()
    prefetcher.close()
    assert all(future.cancelled() for future in transport.futures.values())
    assert threading.active_count() == before
    assert list(prefetcher) == []


def test_waiting_for_the_teacher_and_for_the_feed_are_told_apart(transport: HandAnswered) -> None:
    def slow() -> Iterator[AskedStep[int]]:
        time.sleep(0.1)
        yield from steps(2)

    with Prefetcher(transport, slow(), depth=2) as prefetcher:
        threading.Timer(0.3, lambda: transport.answer(0)).start()
        first = next(prefetcher)
        transport.answer(1)
        second = next(prefetcher)
    assert 0.05 < first.feed_wait_seconds < 0.2
    assert 0.1 < first.teacher_wait_seconds < 0.35
    assert second.teacher_wait_seconds < 0.05


def test_steps_that_ask_nothing_need_no_transport() -> None:
    with Prefetcher(None, (AskedStep(number) for number in range(3)), depth=2) as prefetcher:
        assert [(step.payload, step.responses) for step in prefetcher] == [(0, ()), (1, ()), (2, ())]


def test_a_step_may_ask_several_times(transport: HandAnswered) -> None:
    asked = [AskedStep("step", [request_for(7), request_for(3)])]
    with Prefetcher(transport, asked, depth=1) as prefetcher:
        assert transport.wait_for(2)
        transport.answer(3)
        transport.answer(7)
        assert [each.values[0] for each in next(prefetcher).responses] == [7.0, 3.0]
