"""Queries over prepared data sets."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.datasets.tables import PreparedDatasetRow
from tide_core.contracts.errors import NotFoundError


async def get(session: AsyncSession, content_hash: str) -> PreparedDatasetRow:
    """A prepared data set.

    Raises:
        NotFoundError: ``dataset_not_found``.
    """
    row = await session.get(PreparedDatasetRow, content_hash)
    if row is None:
        raise NotFoundError(
            f"There is no prepared data set '{content_hash}'. GET /v1/datasets lists them.",
            code="dataset_not_found",
            param="content_hash",
        )
    return row


async def page(session: AsyncSession, *, after: str | None, limit: int) -> Sequence[PreparedDatasetRow]:
    """Up to ``limit`` data sets, newest first, after the one named ``after`` in that order."""
    table = PreparedDatasetRow
    query = select(table).order_by(table.created_at.desc(), table.content_hash)
    if after is not None:
        anchor = await get(session, after)
        query = query.where(
            (table.created_at < anchor.created_at)
            | ((table.created_at == anchor.created_at) & (table.content_hash > anchor.content_hash))
        )
    return (await session.scalars(query.limit(limit))).all()
