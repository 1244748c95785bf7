"""Insert-or-update: the same statement for SQLite and PostgreSQL, two dialects for SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.base import Base

_ROWS_PER_STATEMENT = 500
"""Keeps a statement's variables below the limits of both databases."""


async def upsert(
    session: AsyncSession, table: type[Base], rows: Sequence[dict[str, Any]], *, update: Sequence[str]
) -> int:
    """Insert rows; where the primary key exists, set the columns ``update`` instead (none: leave the row).

    Args:
        session: a writing transaction.
        table: mapped class.
        rows: column values, all with the same columns and with distinct primary keys.
        update: columns to overwrite.

    Returns:
        How many rows were inserted or updated.
    """
    count = 0
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        statement = insert(table).values(list(rows[start : start + _ROWS_PER_STATEMENT]))
        if update:
            new = {name: statement.excluded[name] for name in update}
            keys = list(table.__table__.primary_key.columns)  # type: ignore[attr-defined]
            statement = statement.on_conflict_do_update(index_elements=keys, set_=new)
        else:
            statement = statement.on_conflict_do_nothing()
        result = await session.execute(statement)
        assert isinstance(result, CursorResult)
        count += result.rowcount
    return count
