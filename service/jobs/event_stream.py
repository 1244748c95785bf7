"""A job's events as server-sent events, resumable by id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette.event import ServerSentEvent

from service.access import client_tokens
from service.access.client_tokens import Caller
from service.db.session import Database
from service.events import repository
from service.jobs import repository as jobs
from tide_core.contracts.event import Event
from tide_core.contracts.states import TERMINAL_STATES, JobState

_BATCH = 200


class JobEventStream:
    """Looks for new events now and then, until the job has ended and all its events were sent.

    A caller whose token ended meanwhile gets no more.

    Each look is a short transaction of its own: an open stream holds no connection.
    """

    def __init__(
        self,
        database: Database,
        job_id: str,
        after: int,
        poll_seconds: float,
        *,
        caller: Caller | None = None,
    ) -> None:
        self._database = database
        self._job_id = job_id
        self._after = after
        self._poll_seconds = poll_seconds
        self._caller = caller
        self._progress: dict[str, Any] | None = None

    async def messages(self) -> AsyncIterator[ServerSentEvent]:
        """The messages: events, progress whenever it changed, and `done` at the end."""
        while True:
            found = await self._look()
            if found is None:
                return
            events, progress, state = found
            for event in events:
                self._after = event.id
                yield ServerSentEvent(data=event.model_dump_json(), id=str(event.id))
            if progress is not None and progress != self._progress:
                self._progress = progress
                yield ServerSentEvent(data=json.dumps(progress), event="progress")
            if len(events) == _BATCH:
                continue
            if state in TERMINAL_STATES:
                yield ServerSentEvent(data=json.dumps({"status": state}), event="done")
                return
            await asyncio.sleep(self._poll_seconds)

    async def _look(self) -> tuple[list[Event], dict[str, Any] | None, JobState] | None:
        async with self._database.read() as session:
            if self._caller is not None and not await client_tokens.is_valid(session, self._caller):
                return None
            # The state is read first: a job seen as ended has all its events written already.
            job = await jobs.get(session, self._job_id)
            rows = await repository.page(session, self._job_id, after=self._after, limit=_BATCH)
            events = [Event.model_validate(row, from_attributes=True) for row in rows]
            return events, job.progress, job.state
