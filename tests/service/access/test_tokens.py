"""API tokens in the database: made once, known by their hash, ended for good."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

from service.access import client_tokens as service
from service.access import repository
from service.access.tables import ClientTokenRow, Role
from service.clock import utc_now
from service.db.session import Database
from service.settings import Settings
from tide_core.contracts.errors import ConflictError, InvalidInputError, NotFoundError, UnauthorizedError


async def _made(
    database: Database, name: str = "ci", role: Role = Role.EDITOR, lifetime: timedelta | None = None
) -> str:
    async with database.write() as session:
        return await service.create(session, name, role, lifetime)


async def _row(database: Database, name: str = "ci") -> ClientTokenRow:
    async with database.read() as session:
        return await repository.get(session, name)


async def _refusal(database: Database, token: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        await service.identify(database, token)
    assert token not in caught.value.message
    return caught.value.code


async def _register(database: Database, token: str) -> None:
    async with database.write() as session:
        await service.register_bootstrap(session, token)


async def test_a_token_is_known_by_its_hash_and_not_kept(database: Database) -> None:
    token = await _made(database, role=Role.VIEWER)
    assert re.fullmatch(r"tide_[A-Za-z0-9_-]{43}", token)
    assert await service.identify(database, token) == service.Caller("ci", Role.VIEWER)
    async with database.read() as session:
        stored = (await session.execute(text("SELECT * FROM api_tokens"))).all()
    assert len(stored) == 1
    assert token.removeprefix("tide_") not in str(stored)
    assert await _refusal(database, token[:-1] + ("a" if token[-1] != "a" else "b")) == "token_unknown"


async def test_tokens_differ(database: Database) -> None:
    assert await _made(database, "a") != await _made(database, "b")


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "x" * 65, "ä", "bootstrap", "a\n"])
async def test_a_name_is_one_that_people_can_type(database: Database, name: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be named"):
        await _made(database, name)


async def test_a_name_is_taken_once_and_for_all(database: Database) -> None:
    first = await _made(database)
    async with database.write() as session:
        await service.revoke(session, "ci")
    with pytest.raises(ConflictError, match="'ci' exists already"):
        await _made(database)
    assert await _refusal(database, first) == "token_revoked"


async def test_revoking_again_keeps_the_first_moment(database: Database) -> None:
    await _made(database)
    moments = []
    for _ in range(2):
        async with database.write() as session:
            moments.append(await service.revoke(session, "ci"))
    assert moments[0] == moments[1] == (await _row(database)).revoked_at
    with pytest.raises(NotFoundError, match="no token 'nobody'"):
        async with database.write() as session:
            await service.revoke(session, "nobody")


async def test_a_token_expires(database: Database) -> None:
    token = await _made(database, lifetime=timedelta(days=2))
    expires_at = (await _row(database)).expires_at
    assert expires_at is not None
    assert timedelta(days=1, hours=23) < expires_at - utc_now() <= timedelta(days=2)
    assert (await service.identify(database, token)).name == "ci"
    async with database.write() as session:
        await session.execute(update(ClientTokenRow).values(expires_at=utc_now()))
    assert await _refusal(database, token) == "token_expired"
    with pytest.raises(InvalidInputError, match="longer than zero"):
        await _made(database, "dead", lifetime=timedelta())


async def test_a_use_is_noted_to_the_minute(database: Database) -> None:
    token = await _made(database)
    assert (await _row(database)).last_used_at is None
    await service.identify(database, token)
    first = (await _row(database)).last_used_at
    assert first is not None
    await service.identify(database, token)
    assert (await _row(database)).last_used_at == first
    async with database.write() as session:
        await session.execute(update(ClientTokenRow).values(last_used_at=first - timedelta(minutes=2)))
    await service.identify(database, token)
    again = (await _row(database)).last_used_at
    assert again is not None
    assert again >= first


class TestBootstrap:
    async def test_replicas_that_start_at_once_register_one(
        self, database: Database, database_url: str
    ) -> None:
        token = f"tide_{secrets.token_hex(32)}"
        replicas = [Database(database_url) for _ in range(6)]
        await asyncio.gather(*(_register(replica, token) for replica in replicas))
        for replica in replicas:
            await replica.close()
        async with database.read() as session:
            (row,) = (await session.scalars(select(ClientTokenRow))).all()
        assert (row.name, row.role, row.expires_at) == ("bootstrap", Role.EDITOR, None)
        assert (await service.identify(database, token)).name == "bootstrap"

    async def test_a_revoked_one_stays_revoked_and_another_takes_its_place(self, database: Database) -> None:
        old, new = f"tide_{'a' * 43}", f"tide_{'b' * 43}"
        await _register(database, old)
        async with database.write() as session:
            await service.revoke(session, "bootstrap")
        await _register(database, old)
        assert await _refusal(database, old) == "token_revoked"
        await _register(database, new)
        assert (await service.identify(database, new)).role is Role.EDITOR
        assert await _refusal(database, old) == "token_unknown"

    @pytest.mark.parametrize("token", ["", "changeme", "tide_short", f"tide_{'a' * 42}", "x" * 60])
    async def test_a_weak_one_is_refused_and_not_shown(self, database: Database, token: str) -> None:
        with pytest.raises(InvalidInputError, match="43 random") as caught:
            await _register(database, token)
        assert not token or token not in caught.value.message


@pytest.mark.parametrize(
    ("host", "authentication", "is_exposed"),
    [
        ("127.0.0.1", "off", False),
        ("127.8.0.1", "off", False),
        ("::1", "off", False),
        ("localhost", "off", False),
        ("0.0.0.0", "off", True),
        ("::", "off", True),
        ("10.0.0.7", "off", True),
        ("127.0.0.1.example.com", "off", True),
        ("0.0.0.0", "tokens", False),
    ],
)
def test_which_addresses_strangers_reach(host: str, authentication: str, is_exposed: bool) -> None:
    assert Settings(host=host, authentication=authentication).is_exposed is is_exposed
