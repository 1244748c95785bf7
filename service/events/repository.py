"""Queries over events."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.events.tables import EventRow


async def page(session: AsyncSession, job_id: str, *, after: int, limit: int) -> Sequence[EventRow]:
    """Up to ``limit`` events of a job with ids above ``after``, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after)
    return (await session.scalars(query.order_by(EventRow.id).limit(limit))).all()


async def last_id(session: AsyncSession, job_id: str) -> int:
    """Id of a job's newest event, 0 without any."""
    query = select(func.max(EventRow.id)).where(EventRow.job_id == job_id)
    return await session.scalar(query) or 0
