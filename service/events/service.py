"""Writing a job's story."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.db.storable import storable
from service.events.tables import EventRow

Level = Literal["info", "warning", "error"]


def append(
    session: AsyncSession,
    job_id: str,
    type: str,
    message: str,
    *,
    level: Level = "info",
    data: dict[str, Any] | None = None,
) -> EventRow:
    """Add an event to the running transaction.

    The caller holds the job's row (`jobs.repository.lock`, or it created it): events of one job are thus
    numbered in the order in which they become visible, and a stream that resumes by id misses none.
    """
    row = EventRow(
        job_id=job_id,
        created_at=utc_now(),
        type=storable(type),
        level=level,
        message=storable(message),
        data=storable(data or {}),
    )
    session.add(row)
    return row
