"""Health, readiness and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.clock import utc_now
from service.db.session import Database
from service.jobs import repository
from service.jobs.state_machine import transition
from service.jobs.tables import MetricRow
from service.observability import metrics_document
from service.observability.metrics import GAUGES
from service.observability.readings import _OF_STEP
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings
from tide_core.contracts.states import JobState, Phase

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


async def test_readiness_can_be_asked_of_one_part(client: httpx.AsyncClient) -> None:
    answer = await client.get("/readyz", params={"check": "database"})
    assert (answer.status_code, [check["name"] for check in answer.json()["checks"]]) == (200, ["database"])
    assert (await client.get("/readyz", params={"check": "weather"})).status_code == 422


async def test_metrics_tell_how_training_goes(
    complete_app: FastAPI, settings: Settings, post_job: PostJob, database: Database
) -> None:
    job_id = (await post_job())["id"]
    values = {1: {"loss": 9.0}, 2: {"loss": 4.0, "loss/kl": 3.0, "unheard_of": 1.0}}
    async with database.write() as session:
        job = await repository.lock(session, job_id)
        job.started_at = utc_now()
        for step, figures in values.items():
            for name, value in figures.items():
                session.add(_metric(job_id, name, step, value))
        session.add(_metric(job_id, "held_out/nelbo", 1, 2.5))
        run = await repository.ensure_phase_run(session, job_id, 1, Phase.TRAIN)
        run.submitted_at = utc_now() - timedelta(seconds=90)
    async with _client(complete_app) as client:
        samples = _samples((await client.get("/metrics")).text)
    assert samples["tide_job_step", job_id] == 2
    assert samples["tide_job_loss", job_id, "total"] == 4.0
    assert samples["tide_job_loss", job_id, "kl"] == 3.0
    assert samples["tide_job_held_out", job_id, "nelbo"] == 2.5
    assert 90 <= samples["tide_job_report_age_seconds", job_id, "train"] < 120
    assert "tide_reconciler_is_leader" in {name for name, *_ in samples}
    assert samples["tide_database_connections", "in_use"] >= 1


def test_what_the_workers_report_has_a_gauge() -> None:
    assert set(_OF_STEP.values()) <= set(GAUGES)
    loop = (Path(__file__).parents[3] / "workers" / "student" / "loop.py").read_text()
    assert all(f'"{name}"' in loop for name in _OF_STEP), "a figure was renamed in the trainer"


def _metric(job_id: str, name: str, step: int, value: float) -> MetricRow:
    return MetricRow(job_id=job_id, name=name, step=step, value=value, attempt=1, recorded_at=utc_now())


def _samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_reference_of_the_metrics_is_current() -> None:
    assert metrics_document.TARGET.read_text() == metrics_document.document(), (
        "run: python -m service.observability.metrics_document"
    )
