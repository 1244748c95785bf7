"""A transport out of one blocking question: threads, retries with backoff, a deadline, and the checks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog

from tide_core.contracts.errors import RetryableScoreError, ScoreError
from tide_core.contracts.reporting import DEFAULT_SCORE_DEADLINE_SECONDS, SCORE_DEADLINE
from tide_core.contracts.scores import ScoreRequest, ScoreResponse
from tide_core.contracts.teacher import TeacherDescription
from tide_core.scoring.transport import check_response
from workers.scores.hedging import HedgePolicy, LatenessClock, ScoreAttempt, ask_hedged

logger = structlog.get_logger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often to try.

    Attributes:
        deadline_seconds: from the question to giving up; long enough for a pool to come back.
        first_backoff_seconds: pause after the first refusal; it doubles each time, with jitter.
        longest_backoff_seconds: bound of the pause.
        hedge: when to ask a second replica too; None never does, as is right for a single one.
    """

    deadline_seconds: float = DEFAULT_SCORE_DEADLINE_SECONDS
    first_backoff_seconds: float = 0.02
    longest_backoff_seconds: float = 5.0
    hedge: HedgePolicy | None = None


class Asker(Protocol):
    """The carrier. What fails raises a :class:`TideError`, a retryable one where trying again may help."""

    def begin(self, request: ScoreRequest) -> ScoreAttempt:
        """Send the question."""

    def describe(self, timeout: float) -> TeacherDescription:
        """The teacher's description."""

    def cancel(self) -> None:
        """Make attempts that are under way end soon, with an error."""


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """Counters of one transport. Seconds are sums over answered requests.

    Attributes:
        requests: answered requests.
        retries: attempts beyond the first, of all requests.
        hedges: requests that were sent a second time because the first answer was late.
        bytes_sent: ids, offsets and groups.
        bytes_received: values.
        round_trip_seconds: from the question to the answer.
        queue_seconds: of it, in the replica's queue.
        compute_seconds: of it, in forwards.
        cache_hits: sequences that came from a score cache.
    """

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    round_trip_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    cache_hits: int = 0


class RetryingTransport:
    """The :class:`~tide_core.scoring.transport.ScoreTransport` that all carriers share.

    Args:
        asker: the carrier.
        fingerprint: of the teacher that must answer; None adopts that of the first description or answer.
        policy: how long and how often to try.

    Every request has a thread of its own while it is under way; how many there are is up to the caller (the
    prefetcher's depth). The threads are daemons: a trainer that fails is not held up by its questions.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        fingerprint: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._asker = asker
        self._fingerprint = fingerprint
        self._policy = policy or RetryPolicy()
        self._lateness = LatenessClock(self._policy.hedge) if self._policy.hedge else None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._statistics = TransportStatistics()
        self._under_way: set[Future[ScoreResponse]] = set()

    @property
    def fingerprint(self) -> str | None:
        """Of the teacher that must answer; None before anything is known of it."""
        return self._fingerprint

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`."""
        future: Future[ScoreResponse] = Future()
        with self._lock:
            if self._stopping.is_set():
                raise ScoreError("The transport is closed.", code="transport_closed")
            self._under_way.add(future)
        worker = threading.Thread(
            target=self._fulfil, args=(future, request), name="score-transport", daemon=True
        )
        worker.start()
        return future

    def describe(self) -> TeacherDescription:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`."""
        description = self._retry(self._asker.describe)
        self._adopt(description.fingerprint)
        return description

    def statistics(self) -> TransportStatistics:
        """The counters now."""
        with self._lock:
            return self._statistics

    def close(self) -> None:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`."""
        with self._lock:
            self._stopping.set()
            left = list(self._under_way)
        for future in left:
            future.cancel()
        self._asker.cancel()

    def _fulfil(self, future: Future[ScoreResponse], request: ScoreRequest) -> None:
        """Fill a future. It counts as waiting until then, so that it can be cancelled at any time."""
        try:
            response = self._answer(future, request)
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(response)
        finally:
            with self._lock:
                self._under_way.discard(future)

    def _answer(self, future: Future[ScoreResponse], request: ScoreRequest) -> ScoreResponse:
        start = time.monotonic()
        question = replace(request, fingerprint=request.fingerprint or self._fingerprint)
        response = self._retry(
            lambda timeout: self._ask_once(question, timeout), is_wanted=lambda: not future.cancelled()
        )
        check_response(question, response, question.fingerprint)
        self._adopt(response.fingerprint)
        check_response(question, response, self._fingerprint)
        with self._lock:
            self._statistics = _count_answer(self._statistics, question, response, time.monotonic() - start)
        return response

    def _ask_once(self, question: ScoreRequest, timeout: float) -> ScoreResponse:
        """One try, hedged when it is late."""
        late_after = self._lateness.late_after() if self._lateness else None
        start = time.monotonic()
        if late_after is None or late_after >= timeout:
            response = self._asker.begin(question).result(timeout)
        else:
            response, is_hedged = ask_hedged(lambda: self._asker.begin(question), late_after, timeout)
            with self._lock:
                self._statistics = replace(self._statistics, hedges=self._statistics.hedges + is_hedged)
        if self._lateness is not None:
            self._lateness.note(time.monotonic() - start)
        return response

    def _adopt(self, fingerprint: str) -> None:
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = fingerprint

    def _retry(
        self, attempt: Callable[[float], Answer], *, is_wanted: Callable[[], bool] = lambda: True
    ) -> Answer:
        """Try until it works, fails for good, or the deadline passes."""
        deadline = time.monotonic() + self._policy.deadline_seconds
        backoff = self._policy.first_backoff_seconds
        while True:
            try:
                return attempt(max(0.001, deadline - time.monotonic()))
            except RetryableScoreError as error:
                if self._stopping.is_set() or not is_wanted():
                    raise
                left = deadline - time.monotonic()
                if left <= 0:
                    seconds = self._policy.deadline_seconds
                    raise RetryableScoreError(
                        f"The teacher gave no answer within {seconds:g} s. Last: {error.message}",
                        code=SCORE_DEADLINE,
                    ) from error
                pause = min(left, backoff * random.uniform(0.5, 1.0))
                logger.debug("score.retry", code=error.code, pause=pause)
                with self._lock:
                    self._statistics = replace(self._statistics, retries=self._statistics.retries + 1)
                self._stopping.wait(pause)
                backoff = min(2 * backoff, self._policy.longest_backoff_seconds)


def _count_answer(
    before: TransportStatistics, request: ScoreRequest, response: ScoreResponse, seconds: float
) -> TransportStatistics:
    sent = request.token_ids.nbytes + request.offsets.nbytes + request.groups.nbytes
    return replace(
        before,
        requests=before.requests + 1,
        bytes_sent=before.bytes_sent + sent,
        bytes_received=before.bytes_received + response.values.nbytes,
        round_trip_seconds=before.round_trip_seconds + seconds,
        queue_seconds=before.queue_seconds + response.queue_seconds,
        compute_seconds=before.compute_seconds + response.compute_seconds,
        cache_hits=before.cache_hits + response.cache_hits,
    )
