"""A late question is put to a second replica; the first answer counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tide_core.contracts.errors import RetryableScoreError, ScoreError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherDescription, TeacherLease
from workers.scores.hedging import HedgePolicy, LatenessClock, ScoreAttempt, ask_hedged
from workers.scores.retrying import RetryingTransport, RetryPolicy
from workers.scores.serve_transport import ServeTransport

REQUEST = ScoreRequest(
    np.arange(4, dtype=np.int32),
    np.array([0, 4], np.int64),
    np.array([0, 1, 1, 0], np.uint8),
    Layout.BIDIRECTIONAL,
    Want.TARGET_LOG_PROB,
)


def answer(number: int) -> ScoreResponse:
    return ScoreResponse(np.full(2, number, np.float32), "weights", "tokenizer")


class Held:
    """An attempt that ends when it is told to, or is cancelled."""

    def __init__(self, number: int, error: Exception | None = None) -> None:
        self.number, self.error = number, error
        self.may_end = threading.Event()
        self.cancelled = threading.Event()

    def result(self, timeout: float) -> ScoreResponse:
        assert self.may_end.wait(10)
        if self.error is not None:
            raise self.error
        return answer(self.number)

    def cancel(self) -> None:
        self.cancelled.set()
        self.error = ScoreError("cancelled")
        self.may_end.set()


def in_order(*attempts: Held) -> Callable[[], ScoreAttempt]:
    left = list(attempts)
    return lambda: left.pop(0)


def ended(number: int, error: Exception | None = None) -> Held:
    held = Held(number, error)
    held.may_end.set()
    return held


def test_a_quick_answer_is_asked_for_once() -> None:
    response, is_hedged = ask_hedged(in_order(ended(1)), late_after=5.0, timeout=10.0)
    assert (response.values[0], is_hedged) == (1.0, False)


def test_a_late_one_is_overtaken_and_cancelled() -> None:
    straggler = Held(1)
    response, is_hedged = ask_hedged(in_order(straggler, ended(2)), late_after=0.01, timeout=10.0)
    assert (response.values[0], is_hedged) == (2.0, True)
    assert straggler.cancelled.is_set()


def test_a_late_one_may_still_win() -> None:
    first, second = Held(1), Held(2)

    def begin() -> ScoreAttempt:
        if not begun:
            begun.append(first)
        else:
            begun.append(second)
            first.may_end.set()
        return begun[-1]

    begun: list[Held] = []
    response, is_hedged = ask_hedged(begin, late_after=0.01, timeout=10.0)
    assert (response.values[0], is_hedged) == (1.0, True)
    assert second.cancelled.is_set()


def test_an_error_in_time_is_raised_without_a_second_question() -> None:
    with pytest.raises(RetryableScoreError, match="busy"):
        ask_hedged(in_order(ended(1, RetryableScoreError("busy"))), late_after=5.0, timeout=10.0)


def test_after_a_failure_the_other_attempt_decides() -> None:
    first, second = Held(1), Held(2, RetryableScoreError("died"))
    threading.Timer(0.05, second.may_end.set).start()
    threading.Timer(0.15, first.may_end.set).start()
    response, is_hedged = ask_hedged(in_order(first, second), late_after=0.01, timeout=10.0)
    assert (response.values[0], is_hedged) == (1.0, True)


def test_when_both_fail_an_error_is_raised() -> None:
    first, second = Held(1, RetryableScoreError("first")), Held(2, RetryableScoreError("second"))
    threading.Timer(0.05, first.may_end.set).start()
    threading.Timer(0.15, second.may_end.set).start()
    with pytest.raises(RetryableScoreError, match="second"):
        ask_hedged(in_order(first, second), late_after=0.01, timeout=10.0)


@pytest.mark.parametrize("error", [None, RetryableScoreError("died")])
def test_a_second_question_that_cannot_be_sent_leaves_the_first(error: Exception | None) -> None:
    first = Held(1, error)
    attempts: list[ScoreAttempt] = [first]

    def begin() -> ScoreAttempt:
        if not attempts:
            raise RetryableScoreError("no replica takes it")
        return attempts.pop()

    threading.Timer(0.05, first.may_end.set).start()
    if error is None:
        response, is_hedged = ask_hedged(begin, late_after=0.01, timeout=10.0)
        assert (response.values[0], is_hedged) == (1.0, False)
    else:
        with pytest.raises(RetryableScoreError, match="died"):
            ask_hedged(begin, late_after=0.01, timeout=10.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.2] * 3, None),
        ([0.2] * 4, 1.0),
        ([2.0] * 4, 6.0),
        ([9.0] * 8 + [1.0, 1.0, 2.0, 2.0, 2.0], 6.0),
    ],
)
def test_lateness_is_some_times_the_usual(seconds: list[float], expected: float | None) -> None:
    clock = LatenessClock(HedgePolicy(factor=3.0, floor_seconds=1.0, window=5, warm_up=4))
    for each in seconds:
        clock.note(each)
    assert clock.late_after() == expected


class TwoReplicas:
    """The question with a given number straggles; its repetition is answered at once."""

    def __init__(self, slow: int) -> None:
        self.slow, self.begun = slow, 0
        self.straggler = Held(-1)

    def begin(self, request: ScoreRequest) -> ScoreAttempt:
        self.begun += 1
        return self.straggler if self.begun == self.slow else ended(self.begun)

    def describe(self, timeout: float) -> TeacherDescription:
        raise AssertionError("not asked")

    def cancel(self) -> None:
        pass


def test_a_transport_hedges_once_it_knows_what_is_usual() -> None:
    asker = TwoReplicas(slow=4)
    policy = HedgePolicy(factor=2.0, floor_seconds=0.02, warm_up=3)
    transport = RetryingTransport(asker, policy=RetryPolicy(deadline_seconds=20.0, hedge=policy))
    start = time.monotonic()
    values = [transport.submit(REQUEST).result(10).values[0] for _ in range(5)]
    assert values == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert asker.straggler.cancelled.is_set()
    assert transport.statistics().hedges == 1
    assert transport.statistics().retries == 0
    assert time.monotonic() - start < 5.0


def test_only_a_pool_of_several_replicas_is_asked_twice() -> None:
    single = ServeTransport(TeacherLease(application="pool"))
    several = ServeTransport(TeacherLease(application="pool", replicas=2))
    assert single._policy.hedge is None
    assert several._policy.hedge is not None
