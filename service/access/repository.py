"""Queries over API tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.access.tables import ApiTokenRow
from tide_core.contracts.errors import NotFoundError


async def get(session: AsyncSession, name: str) -> ApiTokenRow:
    """A token by its name.

    Raises:
        NotFoundError: ``token_not_found``.
    """
    row = await session.get(ApiTokenRow, name)
    if row is None:
        raise NotFoundError(
            f"There is no token '{name}'. `tide tokens list` shows them.", code="token_not_found"
        )
    return row


async def by_hash(session: AsyncSession, token_hash: str) -> ApiTokenRow | None:
    """The token with a hash, whatever its state."""
    return await session.scalar(select(ApiTokenRow).where(ApiTokenRow.token_hash == token_hash))


async def all_tokens(session: AsyncSession) -> Sequence[ApiTokenRow]:
    """Every token ever made, oldest first."""
    return (
        await session.scalars(select(ApiTokenRow).order_by(ApiTokenRow.created_at, ApiTokenRow.name))
    ).all()


async def touch(session: AsyncSession, name: str, now: datetime, unless_since: datetime) -> None:
    """Note a use, unless one was noted since a moment."""
    stale = or_(ApiTokenRow.last_used_at.is_(None), ApiTokenRow.last_used_at < unless_since)
    await session.execute(update(ApiTokenRow).where(ApiTokenRow.name == name, stale).values(last_used_at=now))
