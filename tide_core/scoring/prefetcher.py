"""Steps with their answers, asked ahead: the trainer should never wait for a teacher that had time.

In: an iterator of steps with their score requests, and a transport. Out: the same steps in order, each with
its answers.

Locks: a semaphore counts how many steps may be drawn, and a queue hands them over; nothing else is shared.
The drawing thread alone iterates the steps, the trainer's thread alone takes them.
Invariant: steps come in the order in which they were drawn, each with its own answers. At most `depth` steps
are drawn and asked beyond the present one.
Failures: an error of the drawing or of an answer is raised where its step would have come, after all earlier
steps; then the prefetcher is closed, which cancels what is in flight, and the transport stays open. Asking
again is the transport's work, not this loop's.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from tide_core.contracts.scores import ScoreRequest, ScoreResponse
from tide_core.scoring.transport import ScoreTransport

Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True)
class AskedStep(Generic[Payload]):
    """A step as the feed draws it.

    Attributes:
        payload: whatever the trainer needs for the step.
        requests: what it asks of the teacher, one request a micro-batch; empty for a step that asks nothing.
    """

    payload: Payload
    requests: Sequence[ScoreRequest] = ()


@dataclass(frozen=True, slots=True)
class AnsweredStep(Generic[Payload]):
    """A step with its answers.

    Attributes:
        payload: as given.
        responses: answers in the order of the requests.
        teacher_wait_seconds: time the trainer stood still for the teacher.
        feed_wait_seconds: time the trainer stood still for the drawing of the step itself.
    """

    payload: Payload
    responses: tuple[ScoreResponse, ...]
    teacher_wait_seconds: float
    feed_wait_seconds: float


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[Payload]):
    payload: Payload
    futures: list[Future[ScoreResponse]]


@dataclass(frozen=True, slots=True)
class _Broken:
    error: BaseException


class _End:
    """The feed has no more steps."""


class Prefetcher(Generic[Payload]):
    """Draws steps in a thread of its own, asks the teacher at once, and gives them out in order.

    While the trainer works on a step, at most ``depth`` later steps are drawn and asked. An error of the
    feed or of the teacher is raised where its step would have come; after it, the prefetcher is closed.

    Use as a context manager, or call :meth:`close`: it cancels what is in flight and ends the thread. The
    transport stays open.

    Args:
        transport: the way to the teacher; None is allowed when no step asks anything.
        steps: drawn in the prefetcher's thread, one after the other.
        depth: steps in flight beyond the present one; 0 draws and asks only when the step is wanted.
    """

    def __init__(
        self, transport: ScoreTransport | None, steps: Iterable[AskedStep[Payload]], depth: int
    ) -> None:
        assert depth >= 0
        self._transport = transport
        self._steps = steps
        self._permits = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[_InFlight[Payload] | _Broken | _End] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="score-prefetcher", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[AnsweredStep[Payload]]:
        return self

    def __next__(self) -> AnsweredStep[Payload]:
        if self._closed.is_set():
            raise StopIteration
        start = time.monotonic()
        self._permits.release()
        item = self._ready.get()
        drawn = time.monotonic()
        if isinstance(item, _End):
            self.close()
            raise StopIteration
        if isinstance(item, _Broken):
            self.close()
            raise item.error
        try:
            responses = tuple(future.result() for future in item.futures)
        except BaseException:
            _cancel(item)
            self.close()
            raise
        return AnsweredStep(item.payload, responses, time.monotonic() - drawn, drawn - start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and end the thread. May be called again."""
        self._closed.set()
        self._permits.release()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        while not self._ready.empty():
            item = self._ready.get()
            if isinstance(item, _InFlight):
                _cancel(item)

    def _draw(self) -> None:
        try:
            steps = iter(self._steps)
            while self._is_wanted():
                step = next(steps, None)
                if step is None:
                    self._ready.put(_End())
                    return
                self._ready.put(_InFlight(step.payload, self._ask(step.requests)))
        except BaseException as error:  # raised to the trainer, at the step that it belongs to
            self._ready.put(_Broken(error))

    def _is_wanted(self) -> bool:
        self._permits.acquire()
        return not self._closed.is_set()

    def _ask(self, requests: Sequence[ScoreRequest]) -> list[Future[ScoreResponse]]:
        assert self._transport is not None or not requests, "a step asks a teacher, but there is no transport"
        return [self._transport.submit(request) for request in requests] if self._transport else []


def _cancel(item: _InFlight[Payload]) -> None:
    for future in item.futures:
        future.cancel()
