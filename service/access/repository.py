"""Queries over client tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.access.tables import ClientTokenRow
from tide_core.contracts.errors import NotFoundError


async def get(session: AsyncSession, name: str) -> ClientTokenRow:
    """A token by its name.

    Raises:
        NotFoundError: ``token_not_found``.
    """
    row = await session.get(ClientTokenRow, name)
    if row is None:
        raise NotFoundError(
            f"There is no token '{name}'. `tide tokens list` shows them.", code="token_not_found"
        )
    return row


async def find_by_hash(session: AsyncSession, token_hash: str) -> ClientTokenRow | None:
    """The token with a hash, whatever its state."""
    return await session.scalar(select(ClientTokenRow).where(ClientTokenRow.token_hash == token_hash))


async def all_tokens(session: AsyncSession) -> Sequence[ClientTokenRow]:
    """Every token ever made, oldest first."""
    return (
        await session.scalars(select(ClientTokenRow).order_by(ClientTokenRow.created_at, ClientTokenRow.name))
    ).all()


async def touch(session: AsyncSession, name: str, now: datetime, unless_since: datetime) -> None:
    """Note a use, unless one was noted since a moment."""
    stale = or_(ClientTokenRow.last_used_at.is_(None), ClientTokenRow.last_used_at < unless_since)
    await session.execute(
        update(ClientTokenRow).where(ClientTokenRow.name == name, stale).values(last_used_at=now)
    )
