"""A database as the version before left it: `schema_0004.json` holds what its reconciler wrote on SQLite.

Tide 0.1 was run on a cluster in memory. One job runs in its fourth attempt: the first was lost with a node,
the second ended without the teacher, the third by the job's own fault. One job is paused after it was resumed
once; one each has succeeded, failed and been cancelled; one is queued. The file also holds the attempt token
of the running trainer and the application that the teacher's pool runs as. Times are moved so that all of it
was written a moment ago.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, Connection, DateTime, MetaData, text

from service.clock import utc_now
from service.db.session import Database
from service.migrations.migrate import upgrade
from service.orchestrator.compute import Application, Scaling

SCHEMA = "0004"
STORAGE = "/var/lib/tide/storage"
_AGE = timedelta(seconds=10)


@cache
def _content() -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "schema_0004.json").read_text()))


def job_id(state: str) -> str:
    """Id of the one job in a state."""
    return str(_content()["ids"][state])


def trainer_token() -> str:
    """The attempt token that the running trainer shows."""
    return str(_content()["tokens"]["running"])


def running_application() -> Application:
    """What the cluster was asked to run for the teacher's pool."""
    (stored,) = _content()["applications"].values()
    return Application(**(stored | {"scaling": Scaling(**stored["scaling"])}))


async def fill(database: Database) -> None:
    """Make the version before's schema in an empty database, and write its rows."""
    await upgrade(database, SCHEMA)
    async with database.engine.begin() as connection:
        await connection.run_sync(_insert)


def _insert(connection: Connection) -> None:
    stored: dict[str, list[dict[str, Any]]] = _content()["rows"]
    tables = MetaData()
    tables.reflect(connection)
    shift = utc_now() - _AGE - _newest(stored)
    for table in tables.sorted_tables:
        rows = [
            {name: _value(table.c[name].type, value, shift) for name, value in row.items()}
            for row in stored.get(table.name, ())
        ]
        if rows:
            connection.execute(table.insert(), rows)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(pg_get_serial_sequence('events', 'id'), max(id)) FROM events"))


def _newest(stored: dict[str, list[dict[str, Any]]]) -> datetime:
    return max(_moment(row["created_at"]) for rows in stored.values() for row in rows if "created_at" in row)


def _value(kind: Any, value: Any, shift: timedelta) -> Any:
    """A value of SQLite's file as the column's type asks for it."""
    if value is None:
        return None
    if isinstance(kind, JSON):
        return json.loads(value)
    if isinstance(kind, Boolean):
        return bool(value)
    if isinstance(kind, DateTime):
        return _moment(value) + shift
    return value


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(f"{value}+00:00")
