"""How long and how often a request is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tide.errors import ApiError

BUSY_STATUSES = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed."""


class Backoff:
    """Pauses that double from `first` to `longest` seconds, each shortened at random by up to a half."""

    def __init__(self, first: float = 0.25, longest: float = 10.0) -> None:
        self._pause = self._first = first
        self._longest = longest

    def next(self) -> float:
        """The pause before the next try."""
        pause, self._pause = self._pause, min(self._longest, self._pause * 2)
        # Not one of the method's draws: only spreads the retries of many clients.
        return pause * (1.0 - 0.5 * random.random())

    def reset(self) -> None:
        """Start over after a success."""
        self._pause = self._first


def may_pass(error: ApiError) -> bool:
    """Whether the same request may succeed later: the server was not reached, or is busy or away."""
    return error.status is None or error.status in BUSY_STATUSES


@dataclass(frozen=True, slots=True)
class Patience:
    """Rules of trying again.

    Attributes:
        retries: tries after the first one; None sets no limit.
        seconds: no try begins later than this after the first; None sets no limit.
        longest_pause: upper bound of the pauses; the first is a quarter of a second, each next one twice as
            long. A longer `Retry-After` of the server is obeyed as it is.
        is_passing: whether an error may pass by itself.
    """

    retries: int | None = 4
    seconds: float | None = None
    longest_pause: float = 8.0
    is_passing: Callable[[ApiError], bool] = may_pass

    def start(self, clock: Callable[[], float] = time.monotonic) -> Tries:
        """Begin to count the tries of one request."""
        return Tries(self, clock)


class Tries:
    """The tries of one request."""

    def __init__(self, patience: Patience, clock: Callable[[], float]) -> None:
        self._patience = patience
        self._clock = clock
        self._began = clock()
        self._failed = 0
        self._backoff = Backoff(longest=patience.longest_pause)

    def pause_after(self, error: ApiError) -> float:
        """Seconds to wait before the next try.

        Raises:
            ApiError: the error itself, when it cannot pass or patience is at its end.
        """
        patience = self._patience
        self._failed += 1
        if not patience.is_passing(error):
            raise error
        if patience.retries is not None and self._failed > patience.retries:
            raise error
        pause = max(self._backoff.next(), error.retry_after or 0.0)
        if patience.seconds is not None and self._clock() + pause > self._began + patience.seconds:
            raise error
        return pause


NONE = Patience(retries=0)
"""Try once."""
