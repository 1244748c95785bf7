"""REST of a job's events: pages, and a live stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query
from sse_starlette.sse import EventSourceResponse

from service.access.authentication import CurrentCaller
from service.api.dependencies import Context, JobId, ReadSession
from service.api.errors import error_responses, error_responses_beside_text
from service.api.paging import Limit, page_of
from service.events import repository
from service.events.tables import EventRow
from service.jobs import repository as jobs
from service.jobs.event_stream import JobEventStream
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.event import Event
from tide_core.contracts.resources import Page

router = APIRouter(tags=["events"])

_BIGGEST_ID = 2**63 - 1
AfterEvent = Annotated[int, Query(ge=0, le=_BIGGEST_ID, description="Only events with a larger id.")]


@router.get("/jobs/{job_id}/events", responses=error_responses(404, 422))
async def list_events(
    session: ReadSession, job_id: JobId, after: AfterEvent = 0, limit: Limit = 100
) -> Page[Event]:
    """The job's story, oldest event first."""
    await jobs.get(session, job_id)
    rows = await repository.page(session, job_id, after=after, limit=limit + 1)
    items = event_objects(rows)
    return page_of(items, [item.id for item in items], limit)


@router.get(
    "/jobs/{job_id}/events/stream",
    response_class=EventSourceResponse,
    responses=error_responses_beside_text(404, 422)
    | {200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
)
async def stream_events(
    context: Context,
    caller: CurrentCaller,
    job_id: JobId,
    after: AfterEvent = 0,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event seen, to go on after it.")
    ] = None,
) -> EventSourceResponse:
    """The job's events as they happen.

    Messages without a name are events (their `id` is the event's); `progress` carries the job's latest
    progress; `done` comes last, when the job has ended and every event was sent. A stream whose token
    expires or is revoked ends without it.
    """
    start = after if last_event_id is None else _event_id(last_event_id)
    async with context.database.read() as session:
        await jobs.get(session, job_id)
    stream = JobEventStream(
        context.database, job_id, start, context.settings.events_poll_seconds, caller=caller
    )
    return EventSourceResponse(
        stream.messages(),
        ping=context.settings.events_heartbeat_seconds,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def event_objects(rows: Sequence[EventRow]) -> list[Event]:
    """Events from their rows."""
    return [Event.model_validate(row, from_attributes=True) for row in rows]


def _event_id(text: str) -> int:
    if not text.isdecimal() or int(text) > _BIGGEST_ID:
        raise InvalidInputError(
            "Last-Event-ID must be the id of an event, a whole number.",
            code="invalid_value",
            param="Last-Event-ID",
        )
    return int(text)
