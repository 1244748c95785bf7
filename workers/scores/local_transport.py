"""The transport to an engine in the same process: for tests, and for a teacher colocated with its student."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

from tide_core.contracts.errors import RetryableScoreError
from tide_core.contracts.scores import ScoreRequest, ScoreResponse
from tide_core.contracts.teacher import TeacherDescription
from workers.scores.hedging import ScoreAttempt
from workers.scores.retrying import RetryingTransport, RetryPolicy
from workers.teachers.engine import TeacherEngine


class LocalTransport(RetryingTransport):
    """Asks an engine directly. Closing the transport leaves the engine open: it belongs to the caller.

    Args:
        engine: the teacher.
        description: what to say of it.
        fingerprint: of the teacher that must answer; None adopts the engine's.
        policy: how long and how often to try.
    """

    def __init__(
        self,
        engine: TeacherEngine,
        description: TeacherDescription,
        *,
        fingerprint: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        super().__init__(_EngineAsker(engine, description), fingerprint=fingerprint, policy=policy)


class _EngineAttempt:
    def __init__(self, future: Future[ScoreResponse]) -> None:
        self._future = future

    def result(self, timeout: float) -> ScoreResponse:
        try:
            return self._future.result(timeout)
        except TimeoutError:
            self.cancel()
            raise RetryableScoreError("The engine did not answer in time.") from None
        except CancelledError:
            raise RetryableScoreError("The request was cancelled.", code="score_cancelled") from None

    def cancel(self) -> None:
        self._future.cancel()


class _EngineAsker:
    def __init__(self, engine: TeacherEngine, description: TeacherDescription) -> None:
        self._engine = engine
        self._description = description
        self._lock = threading.Lock()
        self._waiting: set[Future[ScoreResponse]] = set()

    def begin(self, request: ScoreRequest) -> ScoreAttempt:
        future = self._engine.submit(request)
        with self._lock:
            self._waiting.add(future)
        future.add_done_callback(self._forget)
        return _EngineAttempt(future)

    def _forget(self, future: Future[ScoreResponse]) -> None:
        with self._lock:
            self._waiting.discard(future)

    def describe(self, timeout: float) -> TeacherDescription:
        return self._description

    def cancel(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
