"""Hedged questions: when a replica straggles, another one is asked too, and the first answer counts.

A question is a pure function, so asking it twice costs compute and nothing else. The tail of the round trips
is what makes a trainer wait (Dean and Barroso, "The Tail at Scale", 2013): the second question is sent only
when the first has taken several times the usual.
"""

from __future__ import annotations

import queue
import statistics
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tide_core.contracts.errors import TideError
from tide_core.contracts.scores import ScoreResponse


class ScoreAttempt(Protocol):
    """A question that is under way."""

    def result(self, timeout: float) -> ScoreResponse:
        """Wait for the answer; raises a :class:`~tide_core.contracts.errors.TideError`."""

    def cancel(self) -> None:
        """The answer is not needed any more: end it if it has not begun."""


class Begin(Protocol):
    """Sends the question once more."""

    def __call__(self) -> ScoreAttempt:
        """The attempt, under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """When a question counts as late.

    Attributes:
        factor: times the median of the last round trips.
        floor_seconds: never earlier than this.
        window: round trips that are remembered.
        warm_up: round trips before anything counts as late.
    """

    factor: float = 4.0
    floor_seconds: float = 1.0
    window: int = 64
    warm_up: int = 16


class LatenessClock:
    """Remembers round trips and says after how many seconds a question is late. Safe in several threads."""

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=policy.window)

    def note(self, seconds: float) -> None:
        """One more round trip of an answered question."""
        with self._lock:
            self._seconds.append(seconds)

    def late_after(self) -> float | None:
        """Seconds; None as long as too little is known."""
        with self._lock:
            if len(self._seconds) < self._policy.warm_up:
                return None
            usual = statistics.median(self._seconds)
        return max(self._policy.floor_seconds, self._policy.factor * usual)


@dataclass(frozen=True, slots=True)
class _Outcome:
    attempt: ScoreAttempt
    response: ScoreResponse | None = None
    error: BaseException | None = None


def ask_hedged(begin: Begin, late_after: float, timeout: float) -> tuple[ScoreResponse, bool]:
    """Ask; when late, ask again; give the first answer, and whether a second question was sent.

    An error of the first question before it is late is raised at once; later, only when both have failed. A
    second question that cannot even be sent leaves the first to answer. The attempt that lost is cancelled.

    Args:
        begin: sends the question.
        late_after: seconds until the second is sent.
        timeout: seconds for each attempt.

    Raises:
        TideError: what the last attempt raised.
    """
    outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    attempts = [_start_attempt(begin, timeout, outcomes)]
    try:
        outcome = outcomes.get(timeout=late_after)
    except queue.Empty:
        with suppress(TideError):
            attempts.append(_start_attempt(begin, timeout, outcomes))
        outcome = outcomes.get()
        if outcome.error is not None and len(attempts) > 1:
            outcome = outcomes.get()
    for attempt in attempts:
        if attempt is not outcome.attempt:
            attempt.cancel()
    if outcome.response is None:
        assert outcome.error is not None
        raise outcome.error
    return outcome.response, len(attempts) > 1


def _start_attempt(begin: Begin, timeout: float, outcomes: queue.SimpleQueue[_Outcome]) -> ScoreAttempt:
    attempt = begin()

    def wait() -> None:
        try:
            outcomes.put(_Outcome(attempt, response=attempt.result(timeout)))
        except BaseException as error:  # raised by who waits for the outcome
            outcomes.put(_Outcome(attempt, error=error))

    threading.Thread(target=wait, name="score-attempt", daemon=True).start()
    return attempt
