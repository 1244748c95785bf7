"""A job's live messages over as many connections as that takes: server-sent events, read line by line.

In: the lines of each connection. Out: events and progress; the id after which the next connection goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from pydantic import ValidationError

from tide.errors import ApiError, UnexpectedAnswerError
from tide.transport.call import Call
from tide.transport.patience import Backoff, may_pass
from tide_core.contracts.event import Event
from tide_core.contracts.resources import JobProgress

OUTAGE_SECONDS = 120.0
"""How long a control plane may be away (it restarts) before watching gives up."""
_EVENT, _PROGRESS, _DONE = "message", "progress", "done"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0


class JobFeed:
    """What is known of a job's messages: it survives broken connections.

    Args:
        open_after: makes the call that opens the stream after the event with an id; None opens the first
            connection.
        outage_seconds: how long no message may come through while connections fail.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        open_after: Callable[[int | None], Call[httpx.Response]],
        *,
        outage_seconds: float = OUTAGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_after = open_after
        self._last_id: int | None = None
        self._outage_seconds = outage_seconds
        self._clock = clock
        self._alive_at = clock()
        self._pauses = Backoff(_SHORTEST_PAUSE, _LONGEST_PAUSE)
        self._fields: dict[str, str] = {}
        self.is_over = False

    def open(self) -> Call[httpx.Response]:
        """The call that opens the next connection."""
        self._fields = {}
        return self._open_after(self._last_id)

    def read(self, line: str) -> Event | JobProgress | None:
        """Take one line; the message that it completes, if it does."""
        if line:
            name, _, value = line.partition(":")
            if name:  # a comment starts with the colon
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        self._alive_at = self._clock()
        return self._message(fields) if "data" in fields else None

    def pause_after(self, error: ApiError | None) -> float:
        """Seconds to wait before the next connection.

        Args:
            error: why this one failed; None when it only ended.

        Raises:
            ApiError: the error, when it cannot pass or the server was away for too long.
        """
        if error is None:
            self._alive_at = self._clock()
            self._pauses.reset()
            return _SHORTEST_PAUSE
        if not may_pass(error) or self._clock() - self._alive_at > self._outage_seconds:
            raise error
        return max(self._pauses.next(), error.retry_after or 0.0)

    def _message(self, fields: dict[str, str]) -> Event | JobProgress | None:
        kind, data = fields.get("event", _EVENT), fields["data"]
        self._pauses.reset()
        try:
            if kind == _EVENT:
                event = Event.model_validate_json(data, extra="ignore")
                self._last_id = event.id
                return event
            if kind == _PROGRESS:
                return JobProgress.model_validate_json(data, extra="ignore")
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"The stream holds a message that this version of Tide cannot read: {error}", status=200
            ) from error
        self.is_over = self.is_over or kind == _DONE
        return None  # the end, or a kind that only a newer server sends
