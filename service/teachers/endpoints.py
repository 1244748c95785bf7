"""REST of teacher pools."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from service.api.dependencies import ReadSession, ResourceId
from service.api.errors import error_responses
from service.api.paging import page_of
from service.teachers import repository
from service.teachers.tables import LeaseRow, TeacherRow
from tide_core.contracts.resources import Lease, Page, Teacher
from tide_core.contracts.teacher import TeacherPool

router = APIRouter(tags=["teachers"])


@router.get("/teachers")
async def list_teachers(session: ReadSession) -> Page[Teacher]:
    """Every pool with the jobs that lease it, oldest first."""
    leases = await repository.live_leases(session)
    items = [teacher_object(row, leases) for row in await repository.all_pools(session)]
    return page_of(items, [item.id for item in items])


@router.get("/teachers/{teacher_id}", responses=error_responses(404, 422))
async def get_teacher(session: ReadSession, teacher_id: ResourceId) -> Teacher:
    """One pool."""
    row = await repository.get(session, teacher_id)
    return teacher_object(row, await repository.live_leases(session))


def teacher_object(row: TeacherRow, leases: Sequence[LeaseRow]) -> Teacher:
    """A pool with those of the live leases that are on it."""
    pool = TeacherPool.model_validate(row.pool)
    own = [Lease.model_validate(lease) for lease in leases if lease.application == row.application]
    return Teacher(
        id=row.application,
        status=row.state,
        message=row.message,
        teacher=pool.teacher,
        fingerprint=row.fingerprint,
        replicas=max((lease.replicas for lease in own), default=pool.replicas),
        max_replicas=max((lease.max_replicas or lease.replicas for lease in own), default=pool.replicas),
        ready_replicas=row.ready_replicas,
        gpus_per_replica=pool.gpus_per_replica,
        cpus_per_replica=pool.cpus_per_replica,
        leases=own,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
    )
