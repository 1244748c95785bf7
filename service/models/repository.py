"""Queries over exported models."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.models.tables import ModelRow
from tide_core.contracts.errors import NotFoundError


async def get(session: AsyncSession, model_id: str) -> ModelRow:
    """A model.

    Raises:
        NotFoundError: ``model_not_found``.
    """
    row = await session.get(ModelRow, model_id)
    if row is None:
        raise NotFoundError(
            f"There is no model '{model_id}'. GET /v1/models lists them.",
            code="model_not_found",
            param="model_id",
        )
    return row


async def find_by_location(session: AsyncSession, job_id: str, location: str) -> ModelRow | None:
    """A job's model at a location, if it is recorded."""
    query = select(ModelRow).where(ModelRow.job_id == job_id, ModelRow.location == location)
    return await session.scalar(query)


async def page(session: AsyncSession, *, after: str | None, limit: int) -> Sequence[ModelRow]:
    """Up to ``limit`` models, newest first, after the one named ``after`` in that order."""
    query = select(ModelRow).order_by(ModelRow.created_at.desc(), ModelRow.id.desc())
    if after is not None:
        anchor = await get(session, after)
        query = query.where(
            (ModelRow.created_at < anchor.created_at)
            | ((ModelRow.created_at == anchor.created_at) & (ModelRow.id < anchor.id))
        )
    return (await session.scalars(query.limit(limit))).all()


async def newest_by_job(session: AsyncSession, job_ids: Sequence[str]) -> dict[str, ModelRow]:
    """The newest model of each of the jobs that has one."""
    query = select(ModelRow).where(ModelRow.job_id.in_(job_ids)).order_by(ModelRow.created_at, ModelRow.id)
    return {row.job_id: row for row in (await session.scalars(query)).all()}
