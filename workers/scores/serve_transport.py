"""The transport to a teacher pool on Ray Serve."""

from __future__ import annotations

import threading
import time
from typing import Any

from tide_core.contracts.errors import RetryableScoreError, ScoreError, TideError
from tide_core.contracts.reporting import DEFAULT_SCORE_DEADLINE_SECONDS
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherDescription, TeacherLease
from workers.ray_tensors import require_nixl
from workers.scores.hedging import HedgePolicy, ScoreAttempt
from workers.scores.held_answers import read_held_answer
from workers.scores.retrying import RetryingTransport, RetryPolicy
from workers.teachers.holding import HeldAnswer


class ServeTransport(RetryingTransport):
    """Asks the pool that a lease names. Ray must be initialised in this process.

    Args:
        lease: where the pool is and what it must answer as.
        policy: how long and how often to try; by default hedged where the pool has several replicas.
        deadline_seconds: of the default policy.
        held_device: device of this process onto which hidden states come by NIXL, while the replica holds
            them; None: they come as arrays, through the object store.

    Raises:
        InvalidInputError: ``held_device`` without a NIXL that works in this process.
    """

    def __init__(
        self,
        lease: TeacherLease,
        *,
        policy: RetryPolicy | None = None,
        deadline_seconds: float = DEFAULT_SCORE_DEADLINE_SECONDS,
        held_device: str | None = None,
    ) -> None:
        if held_device is not None:
            require_nixl("the trainer")
        hedge = HedgePolicy() if lease.replicas > 1 else None
        policy = policy or RetryPolicy(deadline_seconds=deadline_seconds, hedge=hedge)
        super().__init__(_ServeAsker(lease, held_device), fingerprint=lease.fingerprint, policy=policy)


class _ServeAttempt:
    """A question on its way through a handle."""

    def __init__(self, asker: _ServeAsker, response: Any) -> None:
        self._asker = asker
        self._response = response
        self._asked_at = time.monotonic()

    def result(self, timeout: float) -> ScoreResponse:
        deadline = time.monotonic() + timeout
        answer = self._asker.wait_for(self._response, timeout)
        if isinstance(answer, TideError):
            raise answer
        if isinstance(answer, HeldAnswer):
            return self._asker.read(answer, self._asked_at, deadline - time.monotonic())
        assert isinstance(answer, ScoreResponse)
        return answer

    def cancel(self) -> None:
        self._response.cancel()


class _ServeAsker:
    """Asks by a deployment handle; the handle finds replicas that came and went by itself."""

    def __init__(self, lease: TeacherLease, held_device: str | None) -> None:
        self._lease = lease
        self._held_device = held_device
        self._handle: Any = None
        self._lock = threading.Lock()
        self._waiting: set[Any] = set()

    def begin(self, request: ScoreRequest) -> ScoreAttempt:
        if self._held_device is not None and request.want is Want.HIDDEN:
            return _ServeAttempt(self, self._send("score", request, True))
        return _ServeAttempt(self, self._send("score", request))

    def describe(self, timeout: float) -> TeacherDescription:
        answer = self.wait_for(self._send("describe"), timeout)
        assert isinstance(answer, TeacherDescription)
        return answer

    def cancel(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for response in waiting:
            response.cancel()

    def wait_for(self, response: Any, timeout: float) -> object:
        """What a call gave, errors in Tide's terms."""
        try:
            return response.result(timeout_s=timeout)
        except Exception as error:
            if isinstance(error, TimeoutError):
                response.cancel()
            raise _as_tide_error(error, self._lease) from error
        finally:
            with self._lock:
                self._waiting.discard(response)

    def read(self, answer: HeldAnswer, asked_at: float, timeout: float) -> ScoreResponse:
        """An answer with the values that the replica holds, errors in Tide's terms."""
        assert self._held_device is not None
        try:
            return read_held_answer(answer, self._held_device, asked_at=asked_at, timeout=max(0.001, timeout))
        except Exception as error:
            raise _as_tide_error(error, self._lease) from error

    def _send(self, method: str, *arguments: object) -> Any:
        try:
            response = getattr(self._find_handle(), method).remote(*arguments)
        except Exception as error:
            raise _as_tide_error(error, self._lease) from error
        with self._lock:
            self._waiting.add(response)
        return response

    def _find_handle(self) -> Any:
        """The handle. It is looked for at each attempt until the application is there."""
        from ray import serve

        with self._lock:
            if self._handle is None:
                try:
                    self._handle = serve.get_deployment_handle(
                        self._lease.deployment, app_name=self._lease.application
                    )
                except KeyError:
                    raise RetryableScoreError(
                        f"There is no teacher pool {self._lease.application} at present.",
                        code="pool_not_found",
                    ) from None
            return self._handle


def _as_tide_error(error: Exception, lease: TeacherLease) -> TideError:
    """What went wrong in Tide's terms: the teacher's own error, or whether trying again can help."""
    from ray import exceptions
    from ray.serve import exceptions as serve_exceptions

    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    if isinstance(cause, TideError):
        return cause
    # A RayTaskError is the replica's own code; every other error of Ray is a process, a node or a queue.
    passing = (exceptions.RayError, serve_exceptions.RayServeException, TimeoutError, ConnectionError)
    if isinstance(cause, passing) and not isinstance(cause, exceptions.RayTaskError):
        return RetryableScoreError(
            f"The teacher pool {lease.application} did not answer: {type(cause).__name__}: {cause}"
        )
    return ScoreError(f"The teacher pool {lease.application} failed: {type(cause).__name__}: {cause}")
