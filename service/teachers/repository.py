"""Queries over pools and leases."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.teachers.tables import LeaseRow, TeacherRow
from tide_core.contracts.errors import NotFoundError


async def get(session: AsyncSession, application: str) -> TeacherRow:
    """A pool.

    Raises:
        NotFoundError: ``teacher_not_found``.
    """
    row = await session.get(TeacherRow, application)
    if row is None:
        raise NotFoundError(
            f"There is no teacher '{application}'. GET /v1/teachers lists them.", code="teacher_not_found"
        )
    return row


async def all_pools(session: AsyncSession) -> Sequence[TeacherRow]:
    """Every pool ever used, oldest first."""
    query = select(TeacherRow).order_by(TeacherRow.created_at, TeacherRow.application)
    return (await session.scalars(query)).all()


async def live_leases(session: AsyncSession) -> Sequence[LeaseRow]:
    """Every lease that is not released, oldest first."""
    query = select(LeaseRow).where(LeaseRow.released_at.is_(None))
    return (await session.scalars(query.order_by(LeaseRow.created_at, LeaseRow.id))).all()


async def find_lease(session: AsyncSession, job_id: str) -> LeaseRow | None:
    """The live lease of a job, if it holds one."""
    query = select(LeaseRow).where(LeaseRow.job_id == job_id, LeaseRow.released_at.is_(None))
    return await session.scalar(query)
