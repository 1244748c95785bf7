"""Retries, deadlines and checks, whatever carries the question."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest

from tide_core.contracts.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    RetryableScoreError,
    ScoreError,
)
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherDescription
from workers.scores.retrying import RetryingTransport, RetryPolicy

REQUEST = ScoreRequest(
    np.arange(4, dtype=np.int32),
    np.array([0, 4], np.int64),
    np.array([0, 1, 1, 0], np.uint8),
    Layout.BIDIRECTIONAL,
    Want.TARGET_LOG_PROB,
)
RESPONSE = ScoreResponse(
    np.zeros(2, np.float32), "weights", "tokenizer", queue_seconds=0.5, compute_seconds=0.25
)
FAST = RetryPolicy(deadline_seconds=0.5, first_backoff_seconds=0.001, longest_backoff_seconds=0.01)


class Begun:
    """An attempt that asks when it is waited for."""

    def __init__(self, ask: Callable[[ScoreRequest, float], ScoreResponse], request: ScoreRequest) -> None:
        self.ask, self.request = ask, request

    def result(self, timeout: float) -> ScoreResponse:
        return self.ask(self.request, timeout)

    def cancel(self) -> None:
        pass


class Scripted:
    """Answers by a script; its last line is repeated."""

    def __init__(self, *lines: ScoreResponse | Exception | Callable[[], ScoreResponse]) -> None:
        self.lines = list(lines)
        self.requests: list[ScoreRequest] = []
        self.cancelled = threading.Event()

    def begin(self, request: ScoreRequest) -> Begun:
        return Begun(self.ask, request)

    def ask(self, request: ScoreRequest, timeout: float) -> ScoreResponse:
        self.requests.append(request)
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        if isinstance(line, Exception):
            raise line
        return line if isinstance(line, ScoreResponse) else line()

    def describe(self, timeout: float) -> TeacherDescription:
        self.ask(REQUEST, timeout)
        return TeacherDescription(
            fingerprint="weights",
            tokenizer_fingerprint="tokenizer",
            architecture="wedlm",
            vocab_size=8,
            hidden_size=4,
            mask_token_id=7,
            parameters=1,
            dtype="float32",
            device="cpu",
            weight_bytes=4,
        )

    def cancel(self) -> None:
        self.cancelled.set()


def test_a_busy_teacher_is_asked_again() -> None:
    asker = Scripted(RetryableScoreError("busy"), RetryableScoreError("busy"), RESPONSE)
    transport = RetryingTransport(asker, policy=FAST)
    assert transport.submit(REQUEST).result(5) is RESPONSE
    statistics = transport.statistics()
    assert (statistics.requests, statistics.retries) == (1, 2)
    assert (statistics.bytes_sent, statistics.bytes_received) == (4 * 4 + 2 * 8 + 4, 8)
    assert (statistics.queue_seconds, statistics.compute_seconds) == (0.5, 0.25)
    assert 0 < statistics.round_trip_seconds < 1


def test_the_deadline_ends_it_and_says_what_was_last() -> None:
    transport = RetryingTransport(Scripted(RetryableScoreError("queue full")), policy=FAST)
    start = time.monotonic()
    with pytest.raises(RetryableScoreError, match="queue full") as caught:
        transport.submit(REQUEST).result(5)
    assert caught.value.code == "score_deadline"
    assert 0.4 < time.monotonic() - start < 1.5


@pytest.mark.parametrize("error", [InvalidInputError("ids", param="token_ids"), ScoreError("broken")])
def test_errors_that_stay_are_not_retried(error: Exception) -> None:
    asker = Scripted(error)
    with pytest.raises(type(error)):
        RetryingTransport(asker, policy=FAST).submit(REQUEST).result(5)
    assert len(asker.requests) == 1


def test_other_weights_are_refused_whatever_told_of_the_right_ones() -> None:
    other = replace(RESPONSE, fingerprint="other")
    leased = RetryingTransport(Scripted(other), fingerprint="weights", policy=FAST)
    with pytest.raises(FingerprintMismatchError, match="other"):
        leased.submit(REQUEST).result(5)
    described = RetryingTransport(Scripted(RESPONSE, other), policy=FAST)
    assert described.describe().fingerprint == described.fingerprint == "weights"
    with pytest.raises(FingerprintMismatchError):
        described.submit(REQUEST).result(5)
    answered = RetryingTransport(Scripted(RESPONSE, other), policy=FAST)
    answered.submit(REQUEST).result(5)
    with pytest.raises(FingerprintMismatchError):
        answered.submit(REQUEST).result(5)


def test_the_known_fingerprint_travels_with_the_request() -> None:
    asker = Scripted(RESPONSE)
    RetryingTransport(asker, fingerprint="weights", policy=FAST).submit(REQUEST).result(5)
    assert asker.requests[0].fingerprint == "weights"


@pytest.mark.parametrize(
    ("want", "values"),
    [
        (Want.TARGET_LOG_PROB, np.zeros(3, np.float32)),
        (Want.TARGET_LOG_PROB, np.zeros(2, np.float64)),
        (Want.TARGET_LOG_PROB, np.zeros((2, 4), np.uint16)),
        (Want.HIDDEN, np.zeros(2, np.uint16)),
        (Want.HIDDEN, np.zeros((2, 4), np.float32)),
    ],
)
def test_answers_that_do_not_fit_are_refused(want: Want, values: np.ndarray) -> None:
    transport = RetryingTransport(Scripted(replace(RESPONSE, values=values)), policy=FAST)
    with pytest.raises(ScoreError) as caught:
        transport.submit(replace(REQUEST, want=want)).result(5)
    assert caught.value.param == "values"


def test_closing_cancels_what_is_under_way() -> None:
    asker = Scripted(RetryableScoreError("busy"))
    transport = RetryingTransport(asker, policy=RetryPolicy(deadline_seconds=60))
    future = transport.submit(REQUEST)
    transport.close()
    with pytest.raises(CancelledError):
        future.result(1)
    assert asker.cancelled.is_set()
    with pytest.raises(ScoreError) as caught:
        transport.submit(REQUEST)
    assert caught.value.code == "transport_closed"


def test_a_cancelled_question_is_not_asked_again() -> None:
    entered, leave = threading.Event(), threading.Event()

    def held() -> ScoreResponse:
        entered.set()
        assert leave.wait(5)
        raise RetryableScoreError("busy")

    asker = Scripted(held)
    transport = RetryingTransport(asker, policy=FAST)
    future = transport.submit(REQUEST)
    assert entered.wait(5)
    assert future.cancel()
    leave.set()
    time.sleep(0.1)
    assert len(asker.requests) == 1


def test_many_questions_at_once_get_their_own_answers() -> None:
    class Echo(Scripted):
        def ask(self, request: ScoreRequest, timeout: float) -> ScoreResponse:
            time.sleep(0.01)
            return replace(RESPONSE, values=request.token_ids[1:3].astype(np.float32))

    transport = RetryingTransport(Echo(RESPONSE), policy=FAST)
    futures = [transport.submit(replace(REQUEST, token_ids=REQUEST.token_ids + n)) for n in range(50)]
    assert [future.result(5).values[0] for future in futures] == [float(n + 1) for n in range(50)]
    assert transport.statistics().requests == 50
