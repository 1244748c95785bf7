"""What the database, the reconciler and the connection pool say at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from service.clock import utc_now
from service.health.sources import Sources
from service.jobs import repository as jobs
from service.jobs.tables import JobRow, PhaseRunRow
from service.observability.metrics import GaugeSample
from service.orchestrator.leadership import read_leases
from service.teachers import repository as teachers
from tide_core.contracts.figures import LOSS, figure_of
from tide_core.contracts.teacher import PoolState


async def read_samples(sources: Sources, session: AsyncSession) -> list[GaugeSample]:
    """Everything but the counters of this process."""
    now = utc_now()
    active = await jobs.active(session)
    samples = [*_sample_process(sources), *await _sample_leader_leases(session, now)]
    oldest = await jobs.oldest_queued(session)
    samples.append(
        GaugeSample("tide_queue_oldest_age_seconds", (now - oldest).total_seconds() if oldest else 0.0)
    )
    for state, count in (await jobs.count_by_state(session)).items():
        samples.append(GaugeSample("tide_jobs", count, (str(state),)))
    for code, count in (await jobs.count_failures(session)).items():
        samples.append(GaugeSample("tide_jobs_failed", count, (code,)))
    samples += await _sample_teachers(session)
    for run in await jobs.open_phase_runs(session):
        samples += _sample_phase(run, now)
    for job in active:
        samples += _sample_progress(job)
        samples += [
            sample
            for name, step, value in await jobs.newest_metrics(session, job.id)
            for sample in _sample_figure(job.id, name, step, value)
        ]
    return samples


def _sample_process(sources: Sources) -> Iterator[GaugeSample]:
    if sources.loop is not None:
        yield GaugeSample("tide_reconciler_is_leader", float(sources.loop.is_leading))
        yield GaugeSample("tide_reconciler_look_age_seconds", sources.loop.seconds_since_look)
    pool = sources.database.engine.pool
    if isinstance(pool, QueuePool):
        yield GaugeSample("tide_database_connections", pool.checkedout(), ("in_use",))
        yield GaugeSample("tide_database_connections", pool.checkedin(), ("idle",))
        yield GaugeSample("tide_database_connections_limit", sources.database.max_connections)


async def _sample_leader_leases(session: AsyncSession, now: datetime) -> list[GaugeSample]:
    samples = []
    for lease in await read_leases(session):
        left = (lease.expires_at - now).total_seconds()
        samples.append(GaugeSample("tide_leader_lease_remaining_seconds", left, (lease.role,)))
        samples.append(GaugeSample("tide_leader_lease_fencing", lease.fencing, (lease.role,)))
    return samples


async def _sample_teachers(session: AsyncSession) -> list[GaugeSample]:
    pools = await teachers.all_pools(session)
    samples = [
        GaugeSample("tide_teachers", sum(pool.state is state for pool in pools), (str(state),))
        for state in PoolState
    ]
    samples += [
        GaugeSample("tide_teacher_ready_replicas", pool.ready_replicas, (pool.application,))
        for pool in pools
        if pool.state is not PoolState.STOPPED
    ]
    leases = await teachers.live_leases(session)
    return [*samples, GaugeSample("tide_teacher_leases", len(leases))]


def _sample_phase(run: PhaseRunRow, now: datetime) -> Iterator[GaugeSample]:
    if run.submitted_at is not None:
        labels = (run.job_id, str(run.phase))
        heard = run.last_report_at or run.submitted_at
        yield GaugeSample("tide_job_phase_age_seconds", (now - run.submitted_at).total_seconds(), labels)
        yield GaugeSample("tide_job_report_age_seconds", (now - heard).total_seconds(), labels)


def _sample_progress(job: JobRow) -> Iterator[GaugeSample]:
    yield GaugeSample("tide_job_attempt", job.attempt, (job.id,))
    progress = job.progress or {}
    if progress.get("total"):
        labels = (job.id, str(progress["phase"]))
        yield GaugeSample("tide_job_progress_ratio", progress["completed"] / progress["total"], labels)
    if isinstance(progress.get("eta_seconds"), int | float):
        yield GaugeSample("tide_job_eta_seconds", progress["eta_seconds"], (job.id, str(progress["phase"])))


def _sample_figure(job_id: str, name: str, step: int, value: float) -> Iterator[GaugeSample]:
    if name == LOSS.name:
        yield GaugeSample("tide_job_step", step, (job_id,))
    found = figure_of(name)
    if found is not None and found[0].gauge:
        figure, member = found
        yield GaugeSample(figure.gauge_name, value, (job_id, member) if figure.member_label else (job_id,))
