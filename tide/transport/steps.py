"""What a client does, without doing it: the logic that both kinds of client share.

In: calls and the rules of trying again. Out: generators that yield a `Call` to send or a `Pause` to keep, are
given the answer (or the connection's error is thrown into them), and return the result. A connection carries
them out, one with threads that block, one with `asyncio`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from tide.errors import ApiError, WaitTimeoutError
from tide.transport.answers import error_of, unreachable_error
from tide.transport.call import Call
from tide.transport.patience import Backoff, Patience
from tide_core.contracts.resources import Job
from tide_core.contracts.states import TERMINAL_STATES

Result = TypeVar("Result")
Clock = Callable[[], float]

_LONGEST_LOOK_PAUSE = 5.0
"""Seconds between two looks at a job that is waited for, at most."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


Steps = Generator[Call[Any] | Pause, httpx.Response | None, Result]


def send(call: Call[Result], url: str, patience: Patience, clock: Clock = time.monotonic) -> Steps[Result]:
    """Send a call, again where that is safe and may help, and read its answer.

    Args:
        call: what to send.
        url: the server's address, for messages.
        patience: how often and how long.
        clock: seconds; for tests.

    Raises:
        ApiError: the class says what is wrong.
    """
    tries = patience.start(clock)
    while True:
        failure: ApiError
        try:
            response = yield call
        except httpx.RequestError as error:
            failure = unreachable_error(url, error)
            failure.__cause__ = error
        else:
            assert response is not None, "a call is answered"
            if response.is_success or response.status_code in call.accepted:
                return call.parse(response)
            failure = error_of(response)
        if not call.is_repeatable:
            raise failure
        yield Pause(tries.pause_after(failure))


def wait_for_end(
    look: Call[Job], url: str, outage: Patience, timeout: float | None, clock: Clock = time.monotonic
) -> Steps[Job]:
    """Look at a job again and again until it has ended.

    Args:
        look: asks for the job.
        url: the server's address, for messages.
        outage: how long the server may be away.
        timeout: seconds; None waits as long as it takes.
        clock: seconds; for tests.

    Raises:
        WaitTimeoutError: the time is up.
        UnreachableError: the server was away for too long.
    """
    began, pauses = clock(), Backoff(longest=_LONGEST_LOOK_PAUSE)
    while True:
        job = yield from send(look, url, outage, clock)
        if job.status in TERMINAL_STATES:
            return job
        pause = pauses.next()
        if timeout is not None:
            left = began + timeout - clock()
            if left <= 0:
                raise WaitTimeoutError(
                    f"The job {job.id} is {job.status} after {timeout:g} seconds. It goes on: wait again."
                )
            pause = min(pause, left)
        yield Pause(pause)
