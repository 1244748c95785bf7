"""A control plane without the web: a database, a cluster in memory, and workers that report by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select

from service.access import attempt_tokens
from service.clock import utc_now
from service.db.session import Database
from service.events.tables import EventRow
from service.identifiers import new_id
from service.jobs import reports
from service.jobs import repository as jobs
from service.jobs.tables import AttemptRow, JobRow
from service.orchestrator.fake_compute import FakeCompute
from service.orchestrator.reconciler import Reconciler
from service.settings import Settings
from service.teachers.tables import LeaseRow, TeacherRow
from tests.support.coverage_reports import coverage
from tide_core.contracts.job import JobSpec, ResolvedJobSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.reporting import (
    ENV_ATTEMPT_TOKEN,
    AnyReport,
    DatasetPrepared,
    Failed,
    Finished,
    Report,
    ReportBatch,
    ReportReceipt,
)
from tide_core.contracts.states import Phase, submission_id
from tide_core.contracts.teacher import pool_for


def make_spec(teacher: str = "/models/teacher", **changes: object) -> ResolvedJobSpec:
    request = {
        "teacher": {"model": teacher},
        "student": {"model": "/models/student"},
        "objective": "tide_cross",
        "data": {"sources": [{"location": "/data/rows.jsonl"}]},
    }
    return resolve(JobSpec.model_validate(request | changes), pipeline=Pipeline.CROSS_TOKENIZER)


@dataclass
class World:
    """Everything a test of the reconciler touches."""

    database: Database
    compute: FakeCompute
    settings: Settings
    _sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def new_reconciler(self) -> Reconciler:
        """A control plane that was just started."""
        return Reconciler(self.database, self.compute, self.settings)

    async def add_job(self, spec: ResolvedJobSpec | None = None) -> str:
        """A job as `POST /v1/jobs` leaves it."""
        resolved = spec or make_spec()
        now = utc_now()
        async with self.database.write() as session:
            job = JobRow(
                id=new_id("job"),
                request={},
                spec=resolved.model_dump(mode="json"),
                pipeline=Pipeline(resolved.pipeline),
                created_at=now,
                updated_at=now,
            )
            session.add(job)
            await session.flush()
            session.add(AttemptRow(job_id=job.id, number=1, started_at=now))
        return job.id

    async def job(self, job_id: str) -> JobRow:
        async with self.database.read() as session:
            return await jobs.get(session, job_id)

    async def events(self, job_id: str) -> list[str]:
        async with self.database.read() as session:
            query = select(EventRow.type).where(EventRow.job_id == job_id).order_by(EventRow.id)
            return list(await session.scalars(query))

    async def live_leases(self) -> list[LeaseRow]:
        async with self.database.read() as session:
            return list(await session.scalars(select(LeaseRow).where(LeaseRow.released_at.is_(None))))

    async def pool(self, spec: ResolvedJobSpec | None = None) -> TeacherRow | None:
        async with self.database.read() as session:
            return await session.get(TeacherRow, pool_for(spec or make_spec()).application)

    async def report(self, job_id: str, phase: Phase, *bodies: AnyReport) -> ReportReceipt:
        """What the phase's worker sends, with the token that its Ray job was given."""
        job = await self.job(job_id)
        submission = self.compute.submissions[submission_id(job_id, job.attempt, phase)]
        token = submission.environment[ENV_ATTEMPT_TOKEN]
        batch = ReportBatch(
            reports=tuple(Report(sequence=next(self._sequence), time=utc_now(), body=body) for body in bodies)
        )
        async with self.database.write() as session:
            return await reports.store(session, await attempt_tokens.identify(session, token), batch)

    async def finish(self, job_id: str, phase: Phase, result: dict[str, object] | None = None) -> None:
        """The phase's worker reports its success and ends."""
        bodies: list[AnyReport] = [Finished(result=result or {})]
        if phase is Phase.PREPARE:
            prepared = DatasetPrepared(
                location="/s/prepared/h",
                content_hash="h",
                rows=10,
                held_out_rows=2,
                rejected={},
                coverage=coverage(),
            )
            bodies.insert(0, prepared)
        await self.report(job_id, phase, *bodies)
        self.compute.finish(submission_id(job_id, (await self.job(job_id)).attempt, phase))

    async def fail(self, job_id: str, phase: Phase, *, retryable: bool, code: str = "broken") -> None:
        """The phase's worker reports its failure and ends."""
        await self.report(job_id, phase, Failed(code=code, message="It broke.", retryable=retryable))
        self.compute.finish(submission_id(job_id, (await self.job(job_id)).attempt, phase), exit_code=1)


@pytest.fixture
def database_kind() -> str:
    """SQLite alone, for speed; what depends on the database's locks is run on both."""
    return "sqlite"


@pytest.fixture
def world(tmp_path: Path, database: Database, database_url: str) -> World:
    settings = Settings(
        data_dir=tmp_path,
        database_url=database_url,
        reconcile_interval_seconds=0.01,
        teacher_linger_seconds=0,
    )
    return World(database, FakeCompute(), settings)


@pytest.fixture
def spec() -> Callable[..., ResolvedJobSpec]:
    return make_spec
