"""Reading what `decide` and `pools` need out of SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.events.tables import EventRow
from service.jobs.outcomes import PLATFORM_LOSSES, PhaseOutcome
from service.jobs.tables import AttemptRow, JobRow, MetricRow, PhaseRunRow
from service.orchestrator.decide import JobSnapshot, PhaseSnapshot
from service.orchestrator.pools import LeasedReplicas, PoolSnapshot
from service.teachers import repository as teachers
from service.teachers.tables import LeaseRow, TeacherRow
from tide_core.contracts.event import state_event
from tide_core.contracts.figures import LOSS
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.reporting import TEACHER_AWAY
from tide_core.contracts.states import ACTIVE_STATES, TERMINAL_STATES, JobState, Phase
from tide_core.contracts.teacher import TeacherPool, phase_needs_teacher

AT_REST = TERMINAL_STATES | {JobState.PAUSED}
"""States in which there is nothing left to do but to give a lease back."""


async def find_jobs_with_work(session: AsyncSession) -> Sequence[str]:
    """Ids of all jobs that the reconciler must look at, oldest first."""
    holds_lease = exists().where(LeaseRow.job_id == JobRow.id, LeaseRow.released_at.is_(None))
    query = select(JobRow.id).where(or_(JobRow.state.not_in(AT_REST), holds_lease))
    return (await session.scalars(query.order_by(JobRow.created_at, JobRow.id))).all()


async def count_active_jobs(session: AsyncSession) -> int:
    """How many jobs are being worked on: neither queued nor at rest."""
    query = select(func.count()).where(JobRow.state.in_(ACTIVE_STATES))
    return await session.scalar(query) or 0


async def read_job(session: AsyncSession, job: JobRow, *, now: datetime) -> JobSnapshot:
    """A job as the policy sees it."""
    spec = ResolvedJobSpec.model_validate(job.spec)
    lease = await teachers.find_lease(session, job.id)
    attempt = await session.get(AttemptRow, (job.id, job.attempt))
    phases = await _phases(session, job)
    platform_losses = await _platform_losses(session, job)
    has_lost = platform_losses > 0 or any(phase.ending is PhaseOutcome.FAILED for phase in phases.values())
    return JobSnapshot(
        state=job.state,
        has_lease=lease is not None,
        is_prepared=job.prepared_hash is not None,
        own_failures=job.own_failures,
        max_attempts=spec.resources.max_attempts,
        platform_losses=platform_losses,
        teacher_away_seconds=await _teacher_away(session, job, now) if has_lost else 0.0,
        attempt_age_seconds=(now - attempt.started_at).total_seconds() if attempt else 0.0,
        state_age_seconds=await _state_age(session, job, now),
        training_needs_teacher=phase_needs_teacher(spec, Phase.TRAIN),
        evaluation_needs_teacher=phase_needs_teacher(spec, Phase.EVALUATE),
        is_evaluated=spec.evaluation.enabled,
        phases=phases,
    )


async def read_pools(session: AsyncSession) -> list[PoolSnapshot]:
    """Every pool with what its leases ask for."""
    leased: dict[str, list[LeasedReplicas]] = {}
    for lease in await teachers.live_leases(session):
        asked = LeasedReplicas(lease.replicas, lease.max_replicas or lease.replicas)
        leased.setdefault(lease.application, []).append(asked)
    return [
        PoolSnapshot(
            pool=TeacherPool.model_validate(row.pool),
            leases=tuple(leased.get(row.application, ())),
            last_used_at=row.last_used_at,
        )
        for row in await teachers.all_pools(session)
    ]


async def teacher_waited_seconds(session: AsyncSession, job_id: str, *, now: datetime) -> float:
    """How long a job has held a lease on a pool that is not ready."""
    lease = await teachers.find_lease(session, job_id)
    pool = await session.get(TeacherRow, lease.application) if lease else None
    if lease is None or pool is None:
        return 0.0
    return max(0.0, (now - max(lease.created_at, pool.state_since)).total_seconds())


async def _phases(session: AsyncSession, job: JobRow) -> dict[Phase, PhaseSnapshot]:
    query = select(PhaseRunRow).where(PhaseRunRow.job_id == job.id, PhaseRunRow.attempt == job.attempt)
    rows = await session.scalars(query.execution_options(populate_existing=True))
    return {row.phase: _phase(row) for row in rows}


def _phase(row: PhaseRunRow) -> PhaseSnapshot:
    return PhaseSnapshot(
        # A report proves that the cluster took it, even if we died before writing that down.
        was_submitted=row.submitted_at is not None or row.last_report_at is not None,
        ending=row.outcome,
        error_code=row.error_code or "worker_failed",
        error_message=row.error_message or "The worker failed and gave no reason.",
        is_retryable=bool(row.retryable),
    )


async def _platform_losses(session: AsyncSession, job: JobRow) -> int:
    # A control plane of a version before schema 0005 leads for a moment longer while it is replaced: what it
    # ends has no kind. To be removed once nothing is upgraded from 0.1.
    ended_by_older = and_(
        AttemptRow.end_kind.is_(None), AttemptRow.ended_at.is_not(None), AttemptRow.counts.is_(False)
    )
    query = select(func.count()).where(
        AttemptRow.job_id == job.id, or_(AttemptRow.end_kind.in_(PLATFORM_LOSSES), ended_by_older)
    )
    return await session.scalar(query) or 0


async def _teacher_away(session: AsyncSession, job: JobRow, now: datetime) -> float:
    """Time since the last step before the newest attempts ended, one after another, without the teacher.

    0 where they did not, and where a step was taken since.
    """
    is_teacher_loss = and_(
        PhaseRunRow.job_id == AttemptRow.job_id,
        PhaseRunRow.attempt == AttemptRow.number,
        PhaseRunRow.outcome == PhaseOutcome.FAILED,
        PhaseRunRow.error_code.in_(TEACHER_AWAY),
    )
    query = (
        select(AttemptRow.number, AttemptRow.started_at, PhaseRunRow.ended_at)
        .outerjoin(PhaseRunRow, is_teacher_loss)
        .where(AttemptRow.job_id == job.id)
        .order_by(AttemptRow.number.desc())
    )
    began = last_loss = None
    for number, started_at, lost_at in await session.execute(query):
        if lost_at is not None:
            began, last_loss = started_at, last_loss or lost_at
        elif number != job.attempt:  # the present attempt may still go well
            break
    if began is None or last_loss is None:
        return 0.0
    step = select(func.max(MetricRow.recorded_at)).where(
        MetricRow.job_id == job.id, MetricRow.name == LOSS.name
    )
    last_step = await session.scalar(step) or began
    return 0.0 if last_step > last_loss else (now - max(began, last_step)).total_seconds()


async def _state_age(session: AsyncSession, job: JobRow, now: datetime) -> float:
    """Time since the event of the last transition; a job's other columns change more often."""
    query = select(func.max(EventRow.created_at)).where(
        EventRow.job_id == job.id, EventRow.type == state_event(job.state)
    )
    entered = await session.scalar(query)
    return max(0.0, (now - entered).total_seconds()) if entered else 0.0
