"""A pool from its first lease to its end, over several jobs, against a cluster in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from service.events.tables import EventRow
from service.jobs import service as job_service
from service.jobs.briefing import attempt_brief
from service.orchestrator.compute import Application, ApplicationStatus
from service.orchestrator.reconciler import Reconciler
from service.teachers.tables import TeacherRow
from tests.service.orchestrator.conftest import World
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.placement import PURPOSE_LABEL, Purpose, labels_for
from tide_core.contracts.states import JobState, Phase
from tide_core.contracts.teacher import PoolState

Spec = Callable[..., ResolvedJobSpec]
LINGER = 3600.0


def settings(world: World, **changes: object) -> None:
    world.settings = world.settings.model_copy(update=changes)


async def looks(reconciler: Reconciler, times: int = 3) -> None:
    for _ in range(times):
        await reconciler.look()


async def prepared_job(world: World, reconciler: Reconciler, spec: ResolvedJobSpec | None = None) -> str:
    """A job that has come as far as it does without its teacher."""
    job_id = await world.add_job(spec)
    await looks(reconciler)
    await world.finish(job_id, Phase.PREPARE)
    await looks(reconciler)
    return job_id


async def cancelled(world: World, reconciler: Reconciler, job_id: str) -> None:
    async with world.database.write() as session:
        await job_service.cancel(session, job_id)
    await looks(reconciler)
    assert (await world.job(job_id)).state is JobState.CANCELLED


async def wait(world: World, seconds: float) -> None:
    """Let that much time pass for every pool."""
    async with world.database.write() as session:
        for row in await session.scalars(select(TeacherRow)):
            moved = row.last_used_at - timedelta(seconds=seconds)
            await session.execute(
                update(TeacherRow).where(TeacherRow.application == row.application).values(last_used_at=moved)
            )


async def application(world: World) -> Application:
    (state,) = (await world.compute.applications()).values()
    assert state.wanted is not None
    return state.wanted


async def test_the_next_job_finds_the_teacher_loaded(world: World) -> None:
    settings(world, teacher_linger_seconds=LINGER)
    reconciler = world.new_reconciler()
    await cancelled(world, reconciler, await prepared_job(world, reconciler))
    assert (await world.pool()).state is PoolState.READY
    puts = world.compute.calls.count("put_applications")
    await wait(world, LINGER - 60)
    await looks(reconciler)
    second = await prepared_job(world, reconciler)
    assert (await world.job(second)).state is JobState.RUNNING
    assert world.compute.calls.count("put_applications") == puts, "nothing was deployed anew"


async def test_a_pool_without_a_lease_goes_to_nothing_after_the_delay_and_wakes(world: World) -> None:
    settings(world, teacher_linger_seconds=LINGER)
    reconciler = world.new_reconciler()
    await cancelled(world, reconciler, await prepared_job(world, reconciler))
    await wait(world, LINGER + 1)
    await looks(reconciler)
    assert await world.compute.applications() == {}
    assert (await world.pool()).state is PoolState.STOPPED
    world.compute.starts_applications = False
    second = await prepared_job(world, reconciler)
    assert (await world.pool()).state is PoolState.STARTING
    assert (await world.job(second)).state is JobState.PROVISIONING
    world.compute.set_application((await application(world)).name, ApplicationStatus.RUNNING)
    await looks(reconciler)
    assert (await world.pool()).state is PoolState.READY
    assert (await world.job(second)).state is JobState.RUNNING


async def test_a_warm_pool_that_the_cluster_lost_is_not_started_without_a_lease(world: World) -> None:
    settings(world, teacher_linger_seconds=LINGER)
    reconciler = world.new_reconciler()
    await cancelled(world, reconciler, await prepared_job(world, reconciler))
    world.compute.lose_head()
    puts = world.compute.calls.count("put_applications")
    await looks(reconciler)
    assert world.compute.calls.count("put_applications") == puts
    assert (await world.pool()).state is PoolState.STOPPED


async def test_a_new_control_plane_keeps_a_pool_warm_for_what_is_left_of_the_delay(world: World) -> None:
    settings(world, teacher_linger_seconds=LINGER)
    reconciler = world.new_reconciler()
    await cancelled(world, reconciler, await prepared_job(world, reconciler))
    await reconciler.step_down()
    other = world.new_reconciler()
    await looks(other)
    assert len(await world.compute.applications()) == 1
    await wait(world, LINGER + 1)
    await looks(other)
    assert await world.compute.applications() == {}


async def test_a_job_gives_its_pool_room_to_grow_and_takes_it_along(world: World, spec: Spec) -> None:
    reconciler = world.new_reconciler()
    await prepared_job(world, reconciler, spec())
    assert ((await application(world)).scaling.minimum, (await application(world)).scaling.maximum) == (1, 1)
    roomy = spec(resources={"teacher_replicas": 2, "teacher_replicas_max": 6})
    second = await prepared_job(world, reconciler, roomy)
    assert ((await application(world)).scaling.minimum, (await application(world)).scaling.maximum) == (2, 6)
    await cancelled(world, reconciler, second)
    assert ((await application(world)).scaling.minimum, (await application(world)).scaling.maximum) == (1, 1)


class TestPlacement:
    @pytest.fixture(autouse=True)
    def by_purpose(self, world: World) -> None:
        settings(world, place_by_purpose=True)
        world.compute.starts_applications = False
        others = (labels_for(Purpose.TRAINER), labels_for(Purpose.PREPARATION))
        world.compute.size = dataclasses.replace(world.compute.size, labels=others)

    async def test_a_missing_node_is_said_and_waited_for(self, world: World) -> None:
        reconciler = world.new_reconciler()
        job_id = await prepared_job(world, reconciler)
        assert (await application(world)).node_labels == {PURPOSE_LABEL: "teacher"}
        assert "tide.dev/purpose=teacher" in (await world.pool()).message
        assert (await world.job(job_id)).state is JobState.PROVISIONING
        nodes = (*world.compute.size.labels, labels_for(Purpose.TEACHER))
        world.compute.size = dataclasses.replace(world.compute.size, labels=nodes)
        await looks(reconciler)
        assert (await world.pool()).message is None
        world.compute.set_application((await application(world)).name, ApplicationStatus.RUNNING)
        await looks(reconciler)
        assert (await world.job(job_id)).state is JobState.RUNNING

    async def test_a_node_that_does_not_come_fails_the_job_with_what_to_do(self, world: World) -> None:
        settings(world, teacher_start_timeout_seconds=0.01)
        job_id = await prepared_job(world, world.new_reconciler())
        job = await world.job(job_id)
        assert (job.state, job.error_code) == (JobState.FAILED, "no_node_for_teacher")
        assert "place_by_purpose" in job.error_message

    @pytest.mark.parametrize(
        ("missing", "event"), [(Purpose.PREPARATION, "job.preparing"), (Purpose.TRAINER, "job.running")]
    )
    async def test_other_missing_nodes_are_told_in_the_jobs_events(
        self, world: World, missing: Purpose, event: str
    ) -> None:
        there = tuple(labels_for(purpose) for purpose in Purpose if purpose is not missing)
        world.compute.size = dataclasses.replace(world.compute.size, labels=there)
        world.compute.starts_applications = True
        job_id = await prepared_job(world, world.new_reconciler())
        async with world.database.read() as session:
            query = select(EventRow.message).where(EventRow.job_id == job_id, EventRow.type == event)
            assert f"tide.dev/purpose={missing}" in (await session.scalar(query))

    @pytest.mark.parametrize(
        ("phase", "purpose"),
        [
            (Phase.PREPARE, Purpose.PREPARATION),
            (Phase.TRAIN, Purpose.TRAINER),
            (Phase.EVALUATE, Purpose.TRAINER),
        ],
    )
    async def test_workers_are_told_where_to_run(self, world: World, phase: Phase, purpose: Purpose) -> None:
        job_id = await world.add_job()
        async with world.database.read() as session:
            brief = await attempt_brief(session, await world.job(job_id), phase, world.settings)
            assert brief.node_labels == {PURPOSE_LABEL: purpose.value}
            settings(world, place_by_purpose=False)
            brief = await attempt_brief(session, await world.job(job_id), phase, world.settings)
            assert brief.node_labels == {}
