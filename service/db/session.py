"""Engine and transactions. `commit` is called in this module and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

_BUSY_TIMEOUT_MS = 30_000
_IS_WRITE = "tide_is_write"
_SERVER_POOL, _SQLITE_POOL = (10, 20), (8, 0)
"""Connections that are kept, and how many more are opened under load."""


class Database:
    """One engine, and the two kinds of transaction: reading and writing.

    On SQLite a writing transaction takes the write lock at its start, so that it can never fail half-way for
    having read an old snapshot; writers of this process queue up before they take a connection, so that
    hundreds of concurrent requests do not run the pool dry.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _create_engine(url, is_sqlite=self.is_sqlite)
        self._write_lock = asyncio.Lock()

    @property
    def max_connections(self) -> int:
        """How many connections the pool may open."""
        return sum(_SQLITE_POOL if self.is_sqlite else _SERVER_POOL)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that may write: commits at the end, rolls back on any exception."""
        async with self._serialise(), self._session(is_write=True) as session:
            yield session
            await session.commit()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only reads; whatever it flushed is rolled back."""
        async with self._session(is_write=False) as session:
            yield session
            session.expunge_all()  # a rollback would empty the rows that the caller takes along
            await session.rollback()

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def _serialise(self) -> AsyncIterator[None]:
        if not self.is_sqlite:
            yield
            return
        async with self._write_lock:
            yield

    @contextlib.asynccontextmanager
    async def _session(self, *, is_write: bool) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            await session.connection(execution_options={_IS_WRITE: is_write})
            yield session


def _create_engine(url: str, *, is_sqlite: bool) -> AsyncEngine:
    if not is_sqlite:
        kept, more = _SERVER_POOL
        return create_async_engine(url, pool_pre_ping=True, pool_size=kept, max_overflow=more)
    kept, more = _SQLITE_POOL
    engine = create_async_engine(url, pool_size=kept, max_overflow=more, pool_timeout=60)
    event.listen(engine.sync_engine, "do_connect", _make_folder)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _make_folder(_dialect: object, _record: object, arguments: list[Any], _options: object) -> None:
    """SQLite creates the file, but not its folder."""
    Path(str(arguments[0])).parent.mkdir(parents=True, exist_ok=True)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged report survives a power cut
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_write = connection.get_execution_options().get(_IS_WRITE, True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
