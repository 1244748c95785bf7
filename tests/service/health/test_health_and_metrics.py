"""Health, readiness and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.access.attempt_tokens import AttemptIdentity
from service.app import create_app
from service.clock import utc_now
from service.db.session import Database
from service.jobs import reports, repository
from service.jobs.state_machine import transition
from service.jobs.tables import MetricRow
from service.observability.metrics import GAUGES, REGISTRY
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings
from tide_core.contracts.figures import FIGURES, gauges
from tide_core.contracts.reporting import Finished, Report, ReportBatch
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
        await transition(session, job, JobState.PREPARING, "x")
        job.progress = {"phase": "train", "completed": 3, "total": 12}
        job = await repository.lock(session, failed)
        await transition(session, job, JobState.FAILED, "x", error_code="x")
    text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["tide_jobs", "preparing"] == 1
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
        if job.state is JobState.QUEUED:  # the reconciler may have been faster
            await transition(session, job, JobState.PREPARING, "x")
        for step, figures in values.items():
            for name, value in figures.items():
                session.add(_metric(job_id, name, step, value))
        session.add(_metric(job_id, "held_out/nelbo", 1, 2.5))
        session.add(_metric(job_id, "teacher_tail_mass/1", 2, 0.25))
        run = await repository.ensure_phase_run(session, job_id, 1, Phase.TRAIN)
        run.submitted_at = utc_now() - timedelta(seconds=90)
    async with _client(complete_app) as client:
        samples = _samples((await client.get("/metrics")).text)
    assert samples["tide_job_step", job_id] == 2
    assert samples["tide_job_loss", job_id, "total"] == 4.0
    assert samples["tide_job_loss", job_id, "kl"] == 3.0
    assert samples["tide_job_held_out", job_id, "nelbo"] == 2.5
    assert samples["tide_job_teacher_tail_mass_ratio", "1", job_id] == 0.25
    assert 90 <= samples["tide_job_report_age_seconds", job_id, "train"] < 120
    assert 90 <= samples["tide_job_phase_age_seconds", job_id, "train"] < 120
    assert "tide_reconciler_is_leader" in {name for name, *_ in samples}
    assert samples["tide_database_connections", "in_use"] >= 1
    assert samples["tide_database_connections_limit",] >= 8


async def test_metrics_tell_who_leads_and_what_it_did(complete_app: FastAPI, post_job: PostJob) -> None:
    reconciler = complete_app.state.control_plane.reconciler
    await post_job()

    async def read() -> dict[tuple[str, ...], float]:
        async with _client(complete_app) as client:
            return _samples((await client.get("/metrics")).text)

    before = await read()
    looks = ("tide_reconciler_look_duration_seconds_count",)
    deadline = utc_now() + timedelta(seconds=20)
    while (now := await read())[looks] < before[looks] + 2 or not now["tide_reconciler_is_leader",]:
        assert utc_now() < deadline
        reconciler.wake()
        await asyncio.sleep(0.05)
    assert now["tide_leader_lease_fencing", "reconciler"] == 1
    assert 0 < now["tide_leader_lease_remaining_seconds", "reconciler"] <= 5
    advances = ("tide_reconciler_actions_total", "Advance")
    assert now[advances] > before[advances], "the job went on from its queue"


async def test_the_end_of_a_phase_is_timed(database: Database, post_job: PostJob) -> None:
    job_id = (await post_job())["id"]

    def ended(suffix: str) -> float:
        labels = {"phase": "evaluate", "outcome": "finished"}
        return REGISTRY.get_sample_value(f"tide_phase_duration_seconds_{suffix}", labels) or 0.0

    count, seconds = ended("count"), ended("sum")
    async with database.write() as session:
        run = await repository.ensure_phase_run(session, job_id, 1, Phase.EVALUATE)
        run.submitted_at = utc_now() - timedelta(seconds=40)
        report = Report(sequence=1, time=utc_now(), body=Finished())
        identity = AttemptIdentity(job_id, 1, Phase.EVALUATE, is_revoked=False)
        await reports.store(session, identity, ReportBatch(reports=(report,)))
    assert ended("count") == count + 1
    assert 40 <= ended("sum") - seconds < 60


def test_the_gauges_of_what_the_workers_report_keep_their_names() -> None:
    """Dashboards and alerts outside of this repository read them."""
    expected = {
        "loss": "tide_job_loss",
        "mask_rate": "tide_job_mask_ratio",
        "lambda": "tide_job_teacher_trust_ratio",
        "gradient_norm": "tide_job_gradient_norm",
        "learning_rate": "tide_job_learning_rate",
        "step_seconds": "tide_job_step_seconds",
        "tokens_per_second": "tide_job_tokens_per_second",
        "teacher_wait_seconds": "tide_job_teacher_wait_seconds",
        "feed_wait_seconds": "tide_job_feed_wait_seconds",
        "teacher_queue_seconds": "tide_job_teacher_queue_seconds",
        "teacher_compute_seconds": "tide_job_teacher_compute_seconds",
        "teacher_bytes": "tide_job_teacher_answer_bytes",
        "teacher_cache_hit_ratio": "tide_job_teacher_cache_hit_ratio",
        "teacher_tail_mass": "tide_job_teacher_tail_mass_ratio",
        "held_out": "tide_job_held_out",
    }
    assert {figure.name: name for name, figure in gauges()} == expected
    assert set(expected.values()) <= set(GAUGES)


def test_the_control_plane_spells_no_figures_name() -> None:
    folder = Path(__file__).parents[3] / "service"
    names = {f'"{figure.name}' + ("/" if figure.member_label else '"') for figure in FIGURES}
    names -= {'"lambda"', '"learning_rate"'}  # common words
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert not [name for name in names if name in text], path


def _metric(job_id: str, name: str, step: int, value: float) -> MetricRow:
    return MetricRow(job_id=job_id, name=name, step=step, value=value, attempt=1, recorded_at=utc_now())


def _samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
