"""Queries over jobs and what belongs to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.jobs.tables import CheckpointRow, IdempotencyKeyRow, JobRow, MetricRow, PhaseRunRow
from tide_core.contracts.errors import NotFoundError
from tide_core.contracts.figures import HELD_OUT, LOSS, Measure
from tide_core.contracts.states import ACTIVE_STATES, JobState, Phase


async def get(session: AsyncSession, job_id: str) -> JobRow:
    """A job.

    Raises:
        NotFoundError: ``job_not_found``.
    """
    return _require(await session.get(JobRow, job_id), job_id)


async def lock(session: AsyncSession, job_id: str) -> JobRow:
    """A job whose row this transaction now holds (a writing transaction on SQLite holds everything).

    Raises:
        NotFoundError: ``job_not_found``.
    """
    return _require(await session.get(JobRow, job_id, with_for_update=True, populate_existing=True), job_id)


def _require(job: JobRow | None, job_id: str) -> JobRow:
    if job is None:
        raise NotFoundError(
            f"There is no job '{job_id}'. GET /v1/jobs lists them.", code="job_not_found", param="job_id"
        )
    return job


async def page(
    session: AsyncSession, *, after: str | None, limit: int, states: Iterable[JobState] = ()
) -> Sequence[JobRow]:
    """Up to ``limit`` jobs, newest first, that come after the job ``after`` in that order.

    Raises:
        NotFoundError: ``after`` names no job.
    """
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc())
    chosen = tuple(states)
    if chosen:
        query = query.where(JobRow.state.in_(chosen))
    if after is not None:
        anchor = await get(session, after)
        query = query.where(
            (JobRow.created_at < anchor.created_at)
            | ((JobRow.created_at == anchor.created_at) & (JobRow.id < anchor.id))
        )
    return (await session.scalars(query.limit(limit))).all()


async def active(session: AsyncSession) -> Sequence[JobRow]:
    """All jobs that are being worked on, oldest first."""
    query = select(JobRow).where(JobRow.state.in_(ACTIVE_STATES))
    return (await session.scalars(query.order_by(JobRow.created_at, JobRow.id))).all()


async def oldest_queued(session: AsyncSession) -> datetime | None:
    """When the job that waits longest was posted; None when none waits."""
    return await session.scalar(select(func.min(JobRow.created_at)).where(JobRow.state == JobState.QUEUED))


async def count_by_state(session: AsyncSession) -> dict[JobState, int]:
    """How many jobs are in each state; every state has an entry."""
    rows = await session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
    return dict.fromkeys(JobState, 0) | {state: count for state, count in rows.all()}  # noqa: C416


async def count_failures(session: AsyncSession) -> dict[str, int]:
    """How many jobs failed with each error code."""
    query = select(JobRow.error_code, func.count()).where(JobRow.state == JobState.FAILED)
    rows = await session.execute(query.group_by(JobRow.error_code))
    return {code or "unknown": count for code, count in rows.all()}


async def open_phase_runs(session: AsyncSession) -> Sequence[PhaseRunRow]:
    """Phases of present attempts that the cluster took and that have not ended."""
    query = (
        select(PhaseRunRow)
        .join(JobRow, (JobRow.id == PhaseRunRow.job_id) & (JobRow.attempt == PhaseRunRow.attempt))
        .where(JobRow.state.in_(ACTIVE_STATES), PhaseRunRow.submitted_at.is_not(None))
        .where(PhaseRunRow.ended_at.is_(None))
    )
    return (await session.scalars(query)).all()


async def newest_metrics(session: AsyncSession, job_id: str) -> Sequence[tuple[str, int, float]]:
    """(name, step, value) of the newest training step and of the newest held-out evaluation."""
    found: list[tuple[str, int, float]] = []
    held_out = HELD_OUT.of(Measure.NELBO)
    for anchor in (LOSS.name, held_out):  # one index look-up each, however long the series are
        step = await session.scalar(
            select(func.max(MetricRow.step)).where(MetricRow.job_id == job_id, MetricRow.name == anchor)
        )
        if step is not None:
            kind = MetricRow.name.like(HELD_OUT.of("%"))
            query = select(MetricRow.name, MetricRow.step, MetricRow.value).where(
                MetricRow.job_id == job_id, MetricRow.step == step, kind if anchor == held_out else ~kind
            )
            found += [(name, at, value) for name, at, value in (await session.execute(query)).all()]
    return found


async def phase_run(session: AsyncSession, job_id: str, attempt: int, phase: Phase) -> PhaseRunRow | None:
    """What is known of a phase of an attempt, or None before it began."""
    return await session.get(PhaseRunRow, (job_id, attempt, phase))


async def ensure_phase_run(session: AsyncSession, job_id: str, attempt: int, phase: Phase) -> PhaseRunRow:
    """The row of a phase, created at its first mention; the caller holds the job's row."""
    row = await session.get(PhaseRunRow, (job_id, attempt, phase), populate_existing=True)
    if row is None:
        row = PhaseRunRow(job_id=job_id, attempt=attempt, phase=phase, last_sequence=0, created_at=utc_now())
        session.add(row)
    return row


async def phase_runs(session: AsyncSession, job_id: str, attempt: int) -> Sequence[PhaseRunRow]:
    """The phases of an attempt, in the order in which they began."""
    query = select(PhaseRunRow).where(PhaseRunRow.job_id == job_id, PhaseRunRow.attempt == attempt)
    return (await session.scalars(query.order_by(PhaseRunRow.created_at))).all()


async def metric_series(
    session: AsyncSession, job_id: str, names: Sequence[str] = (), *, after_step: int = -1
) -> Sequence[MetricRow]:
    """Figures of a job at steps above ``after_step``, by name and step; all series when no name is given."""
    query = select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.step > after_step)
    if names:
        query = query.where(MetricRow.name.in_(names))
    return (await session.scalars(query.order_by(MetricRow.name, MetricRow.step))).all()


async def checkpoints(session: AsyncSession, job_id: str) -> Sequence[CheckpointRow]:
    """A job's checkpoints that still exist, newest step first."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
    return (await session.scalars(query.order_by(CheckpointRow.step.desc(), CheckpointRow.id.desc()))).all()


async def idempotency_key(session: AsyncSession, key: str) -> IdempotencyKeyRow | None:
    """What was posted with a key, or None."""
    return await session.get(IdempotencyKeyRow, key)


async def checkpoint_at(session: AsyncSession, job_id: str, location: str) -> CheckpointRow | None:
    """A job's checkpoint at a location, if it is recorded, deleted or not."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.location == location)
    return await session.scalar(query)
