"""Migrations of a database that has rows in it: nothing is lost, upwards and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, text

import service.migrations.versions
from service.db.session import Database
from service.migrations.migrate import check, downgrade, upgrade
from tests.support.version_before import rows

Stored = dict[str, list[tuple[Any, ...]]]


async def _dump(database: Database) -> Stored:
    """All rows of all tables, as they are stored."""
    tables = MetaData()
    async with database.engine.begin() as connection:
        await connection.run_sync(tables.reflect)
        found = {}
        for table in tables.sorted_tables:
            if table.name != "alembic_version":
                fetched = await connection.execute(table.select().order_by(*table.primary_key.columns))
                found[table.name] = [tuple(row) for row in fetched]
    return found


async def _attempt_ends(database: Database) -> list[tuple[str, int, str | None]]:
    query = "SELECT job_id, number, end_kind FROM attempts ORDER BY job_id, number"
    async with database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def test_the_ends_of_old_attempts_are_told_apart(empty_database: Database) -> None:
    await rows.fill(empty_database)
    await upgrade(empty_database)
    await check(empty_database)
    expected: dict[str, list[str | None]] = {
        "running": ["platform_loss", "teacher_away", "job_fault", None],
        "paused": ["resumed", None],
        "succeeded": ["ended"],
        "cancelled": ["ended"],
        "failed": ["job_fault"],
        "queued": [None],
    }
    ends = await _attempt_ends(empty_database)
    assert ends == sorted(
        (rows.job_id(state), number, kind)
        for state, kinds in expected.items()
        for number, kind in enumerate(kinds, 1)
    )


async def test_the_way_back_gives_the_rows_of_the_version_before(empty_database: Database) -> None:
    await rows.fill(empty_database)
    before = await _dump(empty_database)
    await upgrade(empty_database)
    async with empty_database.engine.begin() as connection:
        # The version before must know by its own words what this version ended.
        reworded = "UPDATE attempts SET end_reason = 'other words' WHERE end_kind = 'resumed'"
        await connection.execute(text(reworded))
    await downgrade(empty_database, rows.SCHEMA)
    assert await _dump(empty_database) == before


async def test_every_step_back_keeps_the_rows_of_jobs(empty_database: Database) -> None:
    await rows.fill(empty_database)
    before = await _dump(empty_database)
    for revision in ("0003", "0002", "0001"):
        await downgrade(empty_database, revision)
    after = await _dump(empty_database)
    assert {name: len(found) for name, found in after.items()} == {
        name: len(found) for name, found in before.items() if name != "api_tokens"
    }
    await upgrade(empty_database)
    await check(empty_database)


def test_no_migration_makes_a_table_anew() -> None:
    """In a batch, SQLite drops the old table for these: all rows that refer to it are deleted with it."""
    folder = Path(service.migrations.versions.__path__[0])
    for path in folder.glob("*.py"):
        content = path.read_text()
        assert "batch_op.drop_column" not in content, path.name
        assert "batch_op.alter_column" not in content, path.name
