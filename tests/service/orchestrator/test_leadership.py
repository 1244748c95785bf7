"""One leader at a time, on both databases, also when many ask at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from service.clock import utc_now
from service.db.session import Database
from service.orchestrator import leadership
from service.orchestrator.leadership import Leadership, LeadershipLostError

NOW, LIFETIME = utc_now(), timedelta(seconds=10)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def take(database: Database, holder: str, seconds: float = 0.0) -> Leadership | None:
    try:
        async with database.write() as session:
            now = NOW + timedelta(seconds=seconds)
            return await leadership.acquire(session, "reconciler", holder, now=now, lifetime=LIFETIME)
    except IntegrityError:
        return None


async def test_renewed_by_its_holder_and_taken_once_it_ran_out(database: Database) -> None:
    first = await take(database, "a")
    assert first == Leadership("reconciler", "a", 1)
    assert await take(database, "b", 9) is None
    assert await take(database, "a", 9) == first
    assert await take(database, "b", 18) is None
    assert await take(database, "b", 20) == Leadership("reconciler", "b", 2)


async def test_an_old_leader_is_stopped_in_its_transaction(database: Database) -> None:
    first = await take(database, "a")
    second = await take(database, "b", 11)
    async with database.write() as session:
        await leadership.check(session, second)
        with pytest.raises(LeadershipLostError):
            await leadership.check(session, first)


async def test_given_up_in_order(database: Database) -> None:
    first = await take(database, "a")
    async with database.write() as session:
        await leadership.release(session, first, now=NOW)
    second = await take(database, "b")
    assert second.fencing == 2
    async with database.write() as session:
        await leadership.release(session, first, now=NOW)  # not its to give any more
    assert await take(database, "c") is None


async def test_of_many_at_once_one_leads(database: Database) -> None:
    for moment in (0, 11):
        taken = await asyncio.gather(*(take(database, f"{moment}-{number}", moment) for number in range(8)))
        assert sum(leader is not None for leader in taken) == 1
