"""Requests generated from the OpenAPI document: whatever is sent, the answer is one that is described."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.checks
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings

from service.access.client_tokens import register_bootstrap
from service.app import create_app
from service.db.session import Database
from service.migrations.migrate import upgrade
from service.settings import Settings
from tools.openapi import document

EXAMPLES = int(os.environ.get("TIDE_TEST_EXAMPLES", "12"))
TOKEN = f"tide_{secrets.token_hex(32)}"
STREAM = "/v1/jobs/{job_id}/events/stream"
"""Left out: the answer to a good request does not end."""


@pytest.fixture(scope="module")
def generated_app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A control plane for the whole module: what one request stores, the next may find."""
    folder = tmp_path_factory.mktemp("generated")
    url = f"sqlite+aiosqlite:///{folder / 'tide.db'}"

    async def prepare() -> None:
        database = Database(url)
        await upgrade(database)
        async with database.write() as session:
            await register_bootstrap(session, TOKEN)
        await database.close()

    asyncio.run(prepare())
    return create_app(
        Settings(data_dir=folder, database_url=url, migrate_on_start=False, authentication="tokens")
    )


@pytest.fixture(scope="module")
def api_schema(generated_app: FastAPI) -> Any:
    """The interface as its own document describes it."""
    return schemathesis.openapi.from_asgi("/openapi.json", generated_app)


def _excused(path: str) -> list[Any]:
    """Checks that do not fit an endpoint."""
    names = {
        # The document cannot say which models and files exist, nor what the validators demand.
        "/v1/jobs": "positive_data_acceptance",
        "/v1/jobs/plan": "positive_data_acceptance",
        # Without a cluster, 503 is the right answer.
        "/readyz": "not_a_server_error",
    }
    return [getattr(schemathesis.checks, names[path])] if path in names else []


def _operations() -> list[tuple[str, str]]:
    described = json.loads(document())
    return [
        (path, method) for path, methods in described["paths"].items() for method in methods if path != STREAM
    ]


@pytest.mark.parametrize(("path", "method"), _operations())
def test_answers_are_as_described(api_schema: Any, path: str, method: str) -> None:
    @given(case=api_schema[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def send(case: Any) -> None:
        case.call_and_validate(excluded_checks=_excused(path), headers={"Authorization": f"Bearer {TOKEN}"})

    send()


def test_the_document_is_the_committed_one(generated_app: FastAPI) -> None:
    committed = Path(__file__).parents[3] / "docs" / "openapi.json"
    assert json.loads(committed.read_text()) == generated_app.openapi()
