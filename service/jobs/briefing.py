"""What a worker is told of its attempt."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from service.datasets import repository as datasets
from service.jobs import repository
from service.jobs.tables import JobRow
from service.settings import Settings
from service.teachers import repository as teachers
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.placement import purpose_of
from tide_core.contracts.reporting import AttemptBrief
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import TeacherLease, phase_needs_teacher


async def attempt_brief(session: AsyncSession, job: JobRow, phase: Phase, settings: Settings) -> AttemptBrief:
    """The brief of one phase of a job's present attempt."""
    spec = ResolvedJobSpec.model_validate(job.spec)
    run = await repository.phase_run(session, job.id, job.attempt, phase)
    prepared = None
    if job.prepared_hash is not None:
        prepared = (await datasets.get(session, job.prepared_hash)).location
    return AttemptBrief(
        job_id=job.id,
        attempt=job.attempt,
        phase=phase,
        spec=spec,
        storage=settings.resolved_storage,
        prepared=prepared,
        teacher=await _teacher(session, job, spec, phase),
        node_labels=settings.node_labels(purpose_of(phase)),
        score_deadline_seconds=settings.score_deadline_seconds,
        last_sequence=0 if run is None else run.last_sequence,
    )


async def _teacher(
    session: AsyncSession, job: JobRow, spec: ResolvedJobSpec, phase: Phase
) -> TeacherLease | None:
    if not phase_needs_teacher(spec, phase):
        return None
    lease = await teachers.find_lease(session, job.id)
    if lease is None:
        return None
    return TeacherLease(
        application=lease.application,
        job_weight=lease.weight,
        replicas=spec.resources.teacher_replicas,
        fingerprint=job.teacher_fingerprint,
    )
