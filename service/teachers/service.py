"""Leases: which pools are wanted, and by whom."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.events import service as events
from service.identifiers import new_id
from service.teachers import repository
from service.teachers.tables import LeaseRow, TeacherRow
from tide_core.contracts.event import EventType
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.teacher import PoolState, TeacherPool, pool_for


async def acquire_lease(session: AsyncSession, job_id: str, spec: ResolvedJobSpec) -> LeaseRow:
    """Give a job its lease on the pool of its teacher, creating the pool's row where there is none.

    Does nothing when the job holds the lease already. The caller holds the job's row.
    """
    held = await repository.find_lease(session, job_id)
    if held is not None:
        return held
    pool = pool_for(spec)
    await _ensure_pool(session, pool)
    lease = LeaseRow(
        id=new_id("lease"),
        application=pool.application,
        job_id=job_id,
        replicas=pool.replicas,
        max_replicas=spec.resources.teacher_replicas_max,
        weight=spec.resources.teacher_share,
        created_at=utc_now(),
    )
    session.add(lease)
    events.append(
        session,
        job_id,
        EventType.TEACHER_LEASED,
        f"The job holds a lease on {pool.application}.",
        data={"application": pool.application, "replicas": pool.replicas},
    )
    await session.flush()
    return lease


async def release_lease(session: AsyncSession, job_id: str) -> None:
    """Give a job's lease back; does nothing when it holds none. The caller holds the job's row."""
    lease = await repository.find_lease(session, job_id)
    if lease is None:
        return
    now = utc_now()
    lease.released_at = now
    (await repository.get(session, lease.application)).last_used_at = now
    events.append(
        session,
        job_id,
        EventType.TEACHER_RELEASED,
        f"The job returned its lease on {lease.application}.",
        data={"application": lease.application},
    )
    await session.flush()


async def set_state(
    session: AsyncSession,
    application: str,
    state: PoolState,
    *,
    message: str | None = None,
    ready_replicas: int = 0,
) -> None:
    """Record what was observed of a pool."""
    row = await repository.get(session, application)
    if row.state is not state:
        row.state_since = utc_now()
    row.state, row.message, row.ready_replicas = state, message, ready_replicas
    await session.flush()


async def _ensure_pool(session: AsyncSession, pool: TeacherPool) -> TeacherRow:
    now = utc_now()
    row = await session.get(TeacherRow, pool.application, with_for_update=True)
    if row is None:
        row = TeacherRow(
            application=pool.application, state=PoolState.STARTING, created_at=now, state_since=now
        )
        session.add(row)
    elif row.state in (PoolState.STOPPED, PoolState.STOPPING):
        row.state, row.state_since = PoolState.STARTING, now
    row.pool = pool.model_dump(mode="json")
    row.last_used_at = now
    await session.flush()
    return row
