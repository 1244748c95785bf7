"""With authentication on nothing is answered without a token, but for the few paths that are named open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import BaseRoute, Mount
from structlog.testing import capture_logs

from service.access import attempt_tokens, client_tokens
from service.access.tables import Role
from service.app import create_app
from service.db.session import Database
from service.settings import Settings
from tide_core.contracts.states import Phase

OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/static/{path}"}
"""Answered to anybody."""
WORKERS = {"/internal/v1/attempt", "/internal/v1/reports"}
"""Ask for the token of an attempt by themselves."""
HIDDEN = {"/jobs", "/teachers", "/ui/jobs/{job_id}", "/ui/fragments/teachers", "/"}
"""Some routes that the OpenAPI document does not have."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A control plane that wants tokens."""
    return settings.model_copy(update={"authentication": "tokens", "host": "0.0.0.0"})


@pytest.fixture
async def viewer(database: Database) -> dict[str, str]:
    """Headers of a caller who may read."""
    async with database.write() as session:
        token = await client_tokens.create(session, "reader", Role.VIEWER, None)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def editor(database: Database) -> dict[str, str]:
    """Headers of a caller who may do everything."""
    async with database.write() as session:
        token = await client_tokens.create(session, "writer", Role.EDITOR, None)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def attempt_token(database: Database, client: httpx.AsyncClient, editor: Any, job_body: Any) -> str:
    """The token of a job's own worker."""
    job = (await client.post("/v1/jobs", json=job_body, headers=editor)).json()
    async with database.write() as session:
        return attempt_tokens.issue(session, job["id"], 1, Phase.TRAIN)


def _routes(found: Iterable[Any]) -> Iterator[tuple[str, set[str]]]:
    """(path, methods) of every route, however deep FastAPI keeps it."""
    for route in found:
        if hasattr(route, "effective_candidates"):
            yield from _routes(route.effective_candidates())
        elif isinstance(route, Mount):
            yield f"{route.path}/{{path}}", {"GET"}
        else:
            assert isinstance(route, BaseRoute) or hasattr(route, "methods"), route
            yield route.path, set(route.methods)


def _error(answer: httpx.Response) -> dict[str, Any]:
    return dict(answer.json()["error"])


async def test_no_route_answers_without_a_token(app: FastAPI, client: httpx.AsyncClient) -> None:
    routes = list(_routes(app.routes))
    paths = {path for path, _ in routes}
    described = set(app.openapi()["paths"])
    assert described | OPEN | WORKERS | HIDDEN <= paths, "the walk misses routes"
    asked = 0
    for path, methods in routes:
        address = re.sub(r"\{[^}]*\}", "x", path)
        for method in methods | {"GET", "POST", "DELETE", "OPTIONS"}:
            answer = await client.request(method, address)
            if path in OPEN:
                assert answer.status_code != 401, path
                continue
            if path in WORKERS and method not in methods:
                continue  # no such operation: 405
            assert answer.status_code == 401, f"{method} {path} answers without a token"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            asked += 1
    assert asked > 60


async def test_what_is_no_route_is_closed_too(client: httpx.AsyncClient) -> None:
    for path in ("/nowhere", "/v1/", "/v1/jobs/", "//v1/jobs", "/V1/jobs", "/internal/v2/x", "/staticx"):
        assert (await client.get(path)).status_code == 401, path
    for path in ("/static/%2e%2e/v1/jobs", "/internal/v1/%2e%2e/%2e%2e/v1/jobs", "/static/../index.html"):
        assert (await client.get(path)).status_code in (401, 404), path


async def test_a_refused_request_is_not_read(client: httpx.AsyncClient) -> None:
    was_read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield b"{"

    answer = await client.post("/v1/jobs", content=body())
    assert (answer.status_code, was_read) == (401, False)
    assert (await client.post("/v1/jobs", content=b"{")).status_code == 401


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "token_missing"),
        ("", "token_missing"),
        ("Bearer", "token_missing"),
        ("Bearer  ", "token_missing"),
        ("Basic dGlkZTp0aWRl", "token_missing"),
        ("Bearer nonsense", "token_unknown"),
        ("Bearer tide_" + "a" * 43, "token_unknown"),
        ("Bearer tide_" + "a" * 5000, "token_unknown"),
        ("Bearer tide_" + "'; DROP TABLE api_tokens; --", "token_unknown"),
    ],
)
async def test_what_is_no_token(client: httpx.AsyncClient, header: str | None, code: str) -> None:
    answer = await client.get("/v1/jobs", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    error = _error(answer)
    assert (error["code"], error["type"]) == (code, "authentication_error")
    assert "tide tokens create" in error["message"]


async def test_an_editor_may_do_everything_and_the_job_says_who(
    client: httpx.AsyncClient, editor: dict[str, str], job_body: dict[str, Any]
) -> None:
    posted = await client.post("/v1/jobs", json=job_body, headers=editor)
    assert posted.status_code == 201, posted.text
    path = f"/v1/jobs/{posted.json()['id']}"
    shown = (await client.get(path, headers=editor)).json()
    assert posted.json()["posted_by"] == shown["posted_by"] == "writer"
    assert (await client.post(f"{path}/cancel", headers=editor)).status_code == 200
    # The scheme's name is case-insensitive (RFC 9110).
    lower = {"Authorization": editor["Authorization"].replace("Bearer", "bearer")}
    assert (await client.get(path, headers=lower)).status_code == 200


async def test_a_viewer_reads_and_nothing_else(
    client: httpx.AsyncClient, viewer: dict[str, str], editor: dict[str, str], job_body: dict[str, Any]
) -> None:
    job_id = (await client.post("/v1/jobs", json=job_body, headers=editor)).json()["id"]
    for path in (
        "/v1/jobs",
        f"/jobs/{job_id}",
        f"/v1/jobs/{job_id}/events",
        "/v1/teachers",
        "/",
        "/ui/fragments/jobs",
    ):
        assert (await client.get(path, headers=viewer)).status_code == 200, path
    for path in ("/v1/jobs", "/jobs", "/v1/jobs/plan", f"/v1/jobs/{job_id}/cancel"):
        answer = await client.post(path, json=job_body, headers=viewer)
        assert answer.status_code == 403, path
        error = _error(answer)
        assert (error["code"], error["type"]) == ("role_not_allowed", "permission_error")
        assert "'reader'" in error["message"]
    assert (await client.post("/", headers=viewer)).status_code == 403
    (only,) = (await client.get("/v1/jobs", headers=viewer)).json()["data"]
    assert (only["id"], only["status"]) == (job_id, "queued")


async def test_a_revoked_token_is_refused_at_once(
    client: httpx.AsyncClient, database: Database, editor: dict[str, str]
) -> None:
    assert (await client.get("/v1/jobs", headers=editor)).status_code == 200
    async with database.write() as session:
        await client_tokens.revoke(session, "writer")
    answer = await client.get("/v1/jobs", headers=editor)
    assert (answer.status_code, _error(answer)["code"]) == (401, "token_revoked")


async def test_users_and_workers_cannot_pass_for_each_other(
    client: httpx.AsyncClient, editor: dict[str, str], attempt_token: str
) -> None:
    worker = {"Authorization": f"Bearer {attempt_token}"}
    assert (await client.get("/internal/v1/attempt", headers=worker)).status_code == 200
    for path in ("/v1/jobs", "/jobs", "/v1/teachers", "/ui/fragments/jobs", "/"):
        assert (await client.get(path, headers=worker)).status_code == 401, path
    for method, path in (("GET", "/internal/v1/attempt"), ("POST", "/internal/v1/reports")):
        answer = await client.request(method, path, headers=editor, json={"reports": []})
        assert (answer.status_code, _error(answer)["code"]) == (401, "unauthorized"), path


async def test_an_event_stream_wants_a_token_and_ends_with_it(
    client: httpx.AsyncClient, database: Database, editor: dict[str, str], job_body: dict[str, Any]
) -> None:
    job_id = (await client.post("/v1/jobs", json=job_body, headers=editor)).json()["id"]
    path = f"/v1/jobs/{job_id}/events/stream"
    assert (await client.get(path)).status_code == 401
    stream = asyncio.create_task(client.get(path, headers=editor, timeout=20))
    await asyncio.sleep(0.3)
    assert not stream.done(), "the job goes on, so does the stream"
    async with database.write() as session:
        await client_tokens.revoke(session, "writer")
    text = (await asyncio.wait_for(stream, 10)).text
    assert "job.queued" in text
    assert "event: done" not in text


async def test_the_page_asks_to_sign_in(client: httpx.AsyncClient, viewer: dict[str, str]) -> None:
    for path in ("/", "/ui/jobs/job-x"):
        answer = await client.get(path)
        assert answer.status_code == 401
        assert answer.headers["Content-Type"].startswith("text/html")
        assert 'id="sign-in"' in answer.text
        assert "data-refresh" not in answer.text
    assert 'id="sign-in"' not in (await client.get("/", headers=viewer)).text
    assert _error(await client.get("/ui/fragments/jobs"))["code"] == "token_missing"
    assert (await client.get("/static/session.js")).status_code == 200


async def _failures(client: httpx.AsyncClient) -> dict[str, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        sample.labels["code"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "tide_authentication_failures_total"
    }


async def test_refusals_are_counted_by_their_code(client: httpx.AsyncClient, viewer: dict[str, str]) -> None:
    before = await _failures(client)
    assert set(before) == {
        "token_missing", "token_unknown", "token_revoked", "token_expired", "role_not_allowed"
    }  # fmt: skip
    await client.get("/v1/jobs")
    await client.get("/v1/jobs", headers={"Authorization": "Bearer x"})
    await client.get("/v1/jobs", headers={"Authorization": "Bearer y"})
    await client.post("/v1/jobs", headers=viewer)
    after = await _failures(client)
    assert {code: after[code] - before[code] for code in after} == {
        "token_missing": 1, "token_unknown": 2, "token_revoked": 0, "token_expired": 0, "role_not_allowed": 1
    }  # fmt: skip


async def test_no_token_is_logged(
    client: httpx.AsyncClient, editor: dict[str, str], job_body: dict[str, Any]
) -> None:
    secret = editor["Authorization"].removeprefix("Bearer tide_")
    with capture_logs() as logs:
        await client.post("/v1/jobs", json=job_body, headers=editor)
        await client.get("/v1/jobs", headers={"Authorization": f"Bearer tide_{secret}x"})
    assert len(logs) >= 2
    assert secret not in str(logs)


async def test_the_deployments_own_token_is_registered_at_start(settings: Settings) -> None:
    token = "tide_" + "k" * 43
    for _ in range(2):  # a restart changes nothing
        made = create_app(settings.model_copy(update={"bootstrap_token": tokens_secret(token)}))
        async with made.router.lifespan_context(made):
            transport = httpx.ASGITransport(made)
            async with httpx.AsyncClient(transport=transport, base_url="http://tide") as opened:
                answer = await opened.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200


def tokens_secret(token: str) -> Any:
    secret = Settings(bootstrap_token=token).bootstrap_token
    assert secret is not None
    assert token not in repr(secret)
    return secret


async def test_off_needs_none_and_jobs_have_no_poster(settings: Settings, job_body: dict[str, Any]) -> None:
    made = create_app(settings.model_copy(update={"authentication": "off"}))
    async with made.router.lifespan_context(made):
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(transport=transport, base_url="http://tide") as opened:
            posted = await opened.post("/v1/jobs", json=job_body)
    assert (posted.status_code, posted.json()["posted_by"]) == (201, None)


def test_the_document_declares_the_scheme_where_it_holds(app: FastAPI) -> None:
    described = app.openapi()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            needs = [{"token": []}] if path.startswith("/v1/") else None
            assert operation.get("security") == needs, f"{method} {path}"
            assert ("401" in operation["responses"]) is (needs is not None)
