"""The number of series is bounded, however many jobs there were and whatever clients ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import inspect, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.db.session import Database
from service.jobs import repository
from service.jobs.tables import AttemptRow, JobRow, MetricRow, PhaseRunRow
from tide_core.contracts.figures import FIGURES
from tide_core.contracts.states import ACTIVE_STATES, JobState, Phase

PostJob = Callable[..., Awaitable[dict[str, Any]]]
Series = set[tuple[str, tuple[tuple[str, str], ...]]]

ACTIVE = 16
"""As many as `max_active_jobs` allows by default."""
OTHERS = {
    JobState.QUEUED: 300,
    JobState.PAUSED: 84,
    JobState.SUCCEEDED: 400,
    JobState.CANCELLED: 100,
    JobState.FAILED: 100,
}
REPORTED = (
    *(figure.name for figure in FIGURES if figure.gauge and (figure.whole or not figure.member_label)),
    "loss/kl",
    "loss/ce",
    "teacher_tail_mass/1",
    "held_out/nelbo",
    "held_out/rate",
)
MOST_OF_A_JOB = 40
"""Series of one job, and some room."""
MOST_OF_THE_REST = 300


@pytest.fixture(params=["sqlite"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """A thousand jobs in the embedded default."""
    return str(request.param)


async def _series(client: httpx.AsyncClient) -> Series:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _jobs_of(series: Series) -> set[str]:
    return {value for _, labels in series for name, value in labels if name == "job_id"}


async def _copies(session: AsyncSession, template: JobRow, state: JobState, count: int) -> None:
    """Jobs in a state with a worker's reports behind them."""
    columns = {column.key: getattr(template, column.key) for column in inspect(JobRow).columns}
    for number in range(count):
        job_id = f"job_{state}_{number}"
        code = f"code_{number % 5}" if state is JobState.FAILED else None
        progress = {"phase": "train", "completed": 3, "total": 12, "eta_seconds": 5}
        changes = {"id": job_id, "state": state, "error_code": code, "progress": progress}
        session.add(JobRow(**columns | changes))
        await session.flush()
        session.add(AttemptRow(job_id=job_id, number=1, started_at=utc_now()))
        await session.flush()
        run = PhaseRunRow(job_id=job_id, attempt=1, phase=Phase.TRAIN, last_sequence=1, created_at=utc_now())
        run.submitted_at = utc_now() - timedelta(minutes=1)
        session.add(run)
        session.add_all(
            MetricRow(job_id=job_id, name=name, step=1, value=1.0, attempt=1, recorded_at=utc_now())
            for name in REPORTED
        )


async def test_a_thousand_jobs_do_not_add_series(
    client: httpx.AsyncClient, database: Database, post_job: PostJob
) -> None:
    posted = (await post_job())["id"]
    async with database.write() as session:
        template = await repository.get(session, posted)
        await _copies(session, template, JobState.RUNNING, ACTIVE)
    await client.get("/metrics")  # the series of this very request
    few = await _series(client)
    async with database.write() as session:
        for state, count in OTHERS.items():
            await _copies(session, template, state, count)
    many = await _series(client)
    assert sum(OTHERS.values()) + ACTIVE == 1000
    assert _jobs_of(many) == {f"job_running_{number}" for number in range(ACTIVE)}
    of_jobs = [one for one in many if "job_id" in dict(one[1])]
    assert ACTIVE * len(REPORTED) < len(of_jobs) <= ACTIVE * MOST_OF_A_JOB
    # The registry is this process': it holds what other tests asked over HTTP, too.
    rest = [one for one in many if "job_id" not in dict(one[1]) and not one[0].startswith("tide_http_")]
    assert len(rest) <= MOST_OF_THE_REST
    new = {(name, labels) for name, labels in many - few if name != "tide_jobs_failed"}
    assert not new, "only the failures' codes may be new"


async def test_a_jobs_series_end_with_it(
    client: httpx.AsyncClient, database: Database, post_job: PostJob
) -> None:
    posted = (await post_job())["id"]
    async with database.write() as session:
        await _copies(session, await repository.get(session, posted), JobState.RUNNING, ACTIVE)
    for state in JobState:
        async with database.write() as session:
            await session.execute(update(JobRow).values(state=state))
        expected = ACTIVE + 1 if state in ACTIVE_STATES else 0
        assert len(_jobs_of(await _series(client))) == expected, state


async def test_clients_cannot_make_series(client: httpx.AsyncClient) -> None:
    for path in ("/nowhere/0", "/v1/jobs/0"):
        for method in ("GET", "MADEUP0"):
            await client.request(method, path)
    before = await _series(client)
    for number in range(50):
        await client.get(f"/nowhere/{number}")
        await client.get(f"/v1/jobs/{number}")
        await client.request(f"MADEUP{number}", f"/v1/jobs/{number}")
    assert {name for name, _ in await _series(client) - before} <= {"tide_reports_stored_total"}
