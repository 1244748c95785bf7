"""Health, readiness and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.db.session import Database
from service.jobs import repository
from service.jobs.state_machine import transition
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings
from tide_core.contracts.states import JobState

PostJob = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def complete_app(settings: Settings) -> AsyncIterator[FastAPI]:
    """A control plane with a reconciler and a cluster."""
    made = create_app(settings, FakeCompute())
    async with made.router.lifespan_context(made):
        yield made


def _client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tide")


async def test_a_control_plane_without_a_cluster_is_alive_but_not_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
    checks = {check["name"]: check["is_ready"] for check in answer.json()["checks"]}
    assert checks == {"database": True, "reconciler": False, "ray": False}


async def test_a_complete_control_plane_is_ready(complete_app: FastAPI) -> None:
    async with _client(complete_app) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert [check["name"] for check in answer.json()["checks"]] == ["database", "reconciler", "ray"]


async def test_a_lost_database_is_named(complete_app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(complete_app.state.context.database, "read", refuse)
    async with _client(complete_app) as client:
        answer = await client.get("/readyz")
    database = answer.json()["checks"][0]
    assert (answer.status_code, database["is_ready"]) == (503, False)
    assert "disk gone" in database["message"]


async def test_metrics_tell_jobs_progress_and_requests(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    running, failed = (await post_job())["id"], (await post_job())["id"]
    async with database.write() as session:
        job = await repository.lock(session, running)
        job.progress = {"phase": "train", "completed": 3, "total": 12}
        job = await repository.lock(session, failed)
        await transition(session, job, JobState.FAILED, "x", error_code="x")
    text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["tide_jobs", "queued"] == 1
    assert samples["tide_jobs", "failed"] == 1
    assert samples["tide_jobs", "running"] == 0
    assert samples["tide_job_progress_ratio", running, "train"] == 0.25
    assert ("tide_job_attempt", failed) not in samples, "a job's series dies with the job"
    assert samples["tide_http_requests_total", "/jobs", "201", "POST"] >= 2
    assert all(name.startswith("tide_") for name, *_ in samples)
