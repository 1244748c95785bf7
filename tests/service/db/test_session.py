"""Transactions: what is committed, what is not, and how many may write at once."""

from __future__ import annotations

import ast
import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import StatementError

import service
from service.db.session import Database
from service.db.storable import check_storable, storable
from service.db.upsert import upsert
from service.orchestrator.tables import LeaderLeaseRow
from tide_core.contracts.errors import InvalidInputError


def _row(role: str, expires_at: datetime | None = None, fencing: int = 1) -> LeaderLeaseRow:
    moment = expires_at or datetime.now(UTC)
    return LeaderLeaseRow(role=role, holder="me", fencing=fencing, expires_at=moment)


async def test_hundreds_of_writers_at_once_all_get_their_turn(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.write() as session:
            session.add(_row(f"role-{number}"))

    await asyncio.gather(*(write(number) for number in range(300)))
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(LeaderLeaseRow)) == 300


async def test_concurrent_increments_lose_nothing(database: Database) -> None:
    async with database.write() as session:
        session.add(_row("counter", fencing=0))

    async def increment() -> None:
        async with database.write() as session:
            row = await session.get(LeaderLeaseRow, "counter", with_for_update=True)
            assert row is not None
            await asyncio.sleep(0)
            row.fencing += 1

    await asyncio.gather(*(increment() for _ in range(50)))
    async with database.read() as session:
        row = await session.get(LeaderLeaseRow, "counter")
    assert row is not None
    assert row.fencing == 50


async def test_two_control_planes_on_one_database_lose_nothing(database: Database, database_url: str) -> None:
    other = Database(database_url)
    async with database.write() as session:
        session.add(_row("counter", fencing=0))

    async def increment(through: Database) -> None:
        async with through.write() as session:
            row = await session.get(LeaderLeaseRow, "counter", with_for_update=True)
            assert row is not None
            await asyncio.sleep(0.001)
            row.fencing += 1

    await asyncio.gather(*(increment(through) for through in (database, other) * 15))
    await other.close()
    async with database.read() as session:
        row = await session.get(LeaderLeaseRow, "counter")
    assert row is not None
    assert row.fencing == 30


async def test_writers_that_wait_keep_no_reader_out(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.write() as session:
            session.add(_row(f"role-{number}"))

    async with database.write() as holder:
        holder.add(_row("holder"))
        await holder.flush()
        waiting = [asyncio.create_task(write(number)) for number in range(29 if database.is_sqlite else 5)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(20), database.read() as session:
            assert await session.get(LeaderLeaseRow, "holder") is None
    await asyncio.gather(*waiting)


async def test_a_reading_transaction_stores_nothing(database: Database) -> None:
    async with database.read() as session:
        session.add(_row("nobody"))
        await session.flush()
    async with database.read() as session:
        assert await session.get(LeaderLeaseRow, "nobody") is None


async def test_times_come_back_in_utc_and_naive_ones_are_refused(database: Database) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))
    async with database.write() as session:
        session.add(_row("clock", moment))
    async with database.read() as session:
        row = await session.get(LeaderLeaseRow, "clock")
    assert row is not None
    assert row.expires_at == moment
    assert row.expires_at.utcoffset() == timedelta(0)
    with pytest.raises((StatementError, AssertionError)):
        async with database.write() as session:
            session.add(_row("naive", datetime(2026, 1, 2)))


async def test_upsert_inserts_then_updates_then_leaves_alone(database: Database) -> None:
    def values(holder: str) -> list[dict[str, object]]:
        now = datetime.now(UTC)
        return [
            {"role": f"role-{number}", "holder": holder, "fencing": 1, "expires_at": now}
            for number in range(1200)
        ]

    async with database.write() as session:
        assert await upsert(session, LeaderLeaseRow, values("first"), update=()) == 1200
        assert await upsert(session, LeaderLeaseRow, values("second"), update=("holder",)) == 1200
        assert await upsert(session, LeaderLeaseRow, values("third"), update=()) == 0
    async with database.read() as session:
        assert set((await session.scalars(select(LeaderLeaseRow.holder))).all()) == {"second"}


def test_commit_is_called_in_one_module_only() -> None:
    root = Path(service.__file__).parent
    callers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit"
    }
    assert callers == {"db/session.py"}


def test_what_no_database_holds_is_replaced_or_refused() -> None:
    document = {"a\0": [float("nan"), 1.5, ("x\0y",)], "b": float("inf")}
    assert storable(document) == {"a�": [None, 1.5, ["x�y"]], "b": None}
    with pytest.raises(InvalidInputError) as caught:
        check_storable({"outer": [{"fine": 1.0}, {"odd": float("nan")}]})
    assert caught.value.param == "outer.1.odd"
    check_storable({"fine": [1, "text", None, 2.5]})
