"""Leases: one pool for many jobs, one live lease a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import IntegrityError

from service.clock import utc_now
from service.db.session import Database
from service.jobs import repository as jobs
from service.teachers import repository, service
from service.teachers.tables import LeaseRow
from tide.cli.teachers import replica_bounds
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.teacher import PoolState

PostJob = Callable[..., Awaitable[dict[str, Any]]]


async def _acquire(database: Database, job_id: str) -> LeaseRow:
    async with database.write() as session:
        job = await jobs.lock(session, job_id)
        return await service.acquire_lease(session, job_id, ResolvedJobSpec.model_validate(job.spec))


async def test_jobs_with_the_same_teacher_share_its_pool(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    small = (await post_job(resources={"teacher_share": 2.0}))["id"]
    large = (await post_job(resources={"teacher_replicas": 3}))["id"]
    leases = [await _acquire(database, job_id) for job_id in (small, large)]
    assert leases[0].application == leases[1].application
    (pool,) = (await client.get("/v1/teachers")).json()["data"]
    assert (pool["status"], pool["replicas"]) == ("starting", 3)
    assert [(lease["job_id"], lease["weight"]) for lease in pool["leases"]] == [(small, 2.0), (large, 1.0)]
    async with database.write() as session:
        await service.release_lease(session, large)
    pool = (await client.get(f"/v1/teachers/{pool['id']}")).json()
    assert (pool["replicas"], len(pool["leases"])) == (1, 1)


async def test_taking_and_giving_back_twice_changes_nothing(post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    first, second = [await _acquire(database, job_id) for _ in range(2)]
    assert first.id == second.id
    for _ in range(2):
        async with database.write() as session:
            await service.release_lease(session, job_id)
    async with database.read() as session:
        assert await repository.find_lease(session, job_id) is None
        assert await repository.live_leases(session) == []
    assert (await _acquire(database, job_id)).id != first.id


async def test_the_database_refuses_a_second_live_lease(post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    lease = await _acquire(database, job_id)

    async def add_another() -> None:
        async with database.write() as session:
            session.add(
                LeaseRow(
                    id="lease-2",
                    application=lease.application,
                    job_id=job_id,
                    replicas=1,
                    weight=1.0,
                    created_at=utc_now(),
                )
            )

    with pytest.raises(IntegrityError):
        await add_another()


async def test_a_stopped_pool_starts_again_with_its_next_lease(post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    lease = await _acquire(database, job_id)
    async with database.write() as session:
        await service.release_lease(session, job_id)
        await service.set_state(session, lease.application, PoolState.STOPPED, message="nobody uses it")
    await _acquire(database, job_id)
    async with database.read() as session:
        pool = await repository.get(session, lease.application)
    assert pool.state is PoolState.STARTING


async def test_a_pool_shows_how_far_it_may_grow(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    for resources in ({"teacher_replicas_max": 4}, {"teacher_replicas": 2}):
        await _acquire(database, (await post_job(resources=resources))["id"])
    (pool,) = (await client.get("/v1/teachers")).json()["data"]
    assert (pool["replicas"], pool["max_replicas"]) == (2, 4)
    assert [(lease["replicas"], lease["max_replicas"]) for lease in pool["leases"]] == [(1, 4), (2, None)]
    page = (await client.get("/")).text
    assert "0 of 2 to 4" in page


@pytest.mark.parametrize(("least", "most", "shown"), [(1, 1, "1"), (2, 4, "2-4"), (3, 3, "3")])
def test_the_command_line_shows_the_bounds(least: int, most: int, shown: str) -> None:
    pool: Any = SimpleNamespace(replicas=least, max_replicas=most)
    assert replica_bounds(pool) == shown
