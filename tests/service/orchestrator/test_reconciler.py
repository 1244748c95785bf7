"""The reconciler against a cluster in memory: the good course, and everything that may go wrong in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from service.clock import utc_now
from service.events.tables import EventRow
from service.jobs import repository as jobs
from service.jobs import service as job_service
from service.jobs.tables import AttemptRow, MetricRow, PhaseRunRow
from service.orchestrator import leadership, snapshots
from service.orchestrator.actions import AcquireLease, Stop, Submit
from service.orchestrator.compute import ApplicationStatus, SubmissionStatus
from service.orchestrator.execution import Executor
from service.orchestrator.reconciler import Reconciler
from service.teachers import service as teacher_service
from tests.service.orchestrator.conftest import World
from tide_core.contracts.errors import ComputeUnavailableError, ConflictError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.reporting import ENV_CONTROL_URL, Finished, Metrics
from tide_core.contracts.states import JobState, Phase, submission_id
from tide_core.contracts.teacher import PoolState, pool_for

Spec = Callable[..., ResolvedJobSpec]


async def until_quiet(reconciler: Reconciler, looks: int = 3) -> None:
    for _ in range(looks):
        await reconciler.look()


async def run_to(
    world: World, state: JobState, spec: ResolvedJobSpec | None = None
) -> tuple[str, Reconciler]:
    """A job in a working state, and the reconciler that brought it there."""
    reconciler = world.new_reconciler()
    job_id = await world.add_job(spec)
    await until_quiet(reconciler)
    for phase, reached in ((Phase.PREPARE, JobState.RUNNING), (Phase.TRAIN, JobState.EVALUATING)):
        if (await world.job(job_id)).state is state:
            break
        await world.finish(job_id, phase)
        await until_quiet(reconciler)
        assert (await world.job(job_id)).state is reached
    return job_id, reconciler


async def test_the_good_course(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.EVALUATING)
    await world.finish(job_id, Phase.EVALUATE, {"nelbo": 1.5})
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result == {"nelbo": 1.5}
    assert sorted(world.compute.submissions) == sorted(submission_id(job_id, 1, phase) for phase in Phase)
    states = [name for name in await world.events(job_id) if name.startswith("job.")]
    assert states == [
        "job.preparing",
        "job.provisioning",
        "job.running",
        "job.evaluating",
        "job.succeeded",
    ]
    assert await world.live_leases() == []
    assert await world.compute.applications() == {}, "nobody wants the teacher any more"
    assert (await world.pool()).state is PoolState.STOPPED


async def test_what_a_worker_is_told(world: World) -> None:
    job_id, _ = await run_to(world, JobState.PREPARING)
    submission = world.compute.submissions[submission_id(job_id, 1, Phase.PREPARE)]
    assert submission.entrypoint == f"{world.settings.worker_python} -m workers.main"
    assert submission.environment[ENV_CONTROL_URL] == world.settings.resolved_control_url
    assert submission.environment["OMP_NUM_THREADS"] == "1"
    assert submission.labels["tide_job"] == job_id


@pytest.mark.parametrize("state", [JobState.PREPARING, JobState.RUNNING, JobState.EVALUATING])
async def test_a_lost_head_costs_an_attempt_that_does_not_count(world: World, state: JobState) -> None:
    job_id, reconciler = await run_to(world, state)
    world.compute.lose_head()
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.attempt, job.own_failures) == (2, 0)
    assert job.state is state
    assert submission_id(job_id, 1, Phase.TRAIN) not in world.compute.submissions


async def test_training_goes_on_after_the_loss_of_the_head(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    world.compute.lose_head()
    await until_quiet(reconciler)
    assert pool_for(ResolvedJobSpec.model_validate((await world.job(job_id)).spec)).application in (
        await world.compute.applications()
    )
    async with world.database.write() as session:  # the pause before the next attempt has passed
        attempt = await session.get(AttemptRow, (job_id, 2))
        attempt.started_at = attempt.started_at.replace(year=2020)
    await until_quiet(reconciler)
    await world.finish(job_id, Phase.TRAIN)
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.EVALUATING
    assert submission_id(job_id, 2, Phase.EVALUATE) in world.compute.submissions


async def test_an_old_attempt_is_fenced_off(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    old = world.compute.submissions[submission_id(job_id, 1, Phase.TRAIN)]
    world.compute.lose_head()
    await until_quiet(reconciler)
    async with world.database.write() as session:
        attempt = await session.get(AttemptRow, (job_id, 2))
        attempt.started_at = attempt.started_at.replace(year=2020)
    await until_quiet(reconciler)
    world.compute._entries[submission_id(job_id, 2, Phase.TRAIN)].submission = old  # a zombie's token
    with pytest.raises(ConflictError) as caught:
        await world.report(job_id, Phase.TRAIN, Metrics(step=1, values={"loss": 1.0}))
    assert caught.value.code == "attempt_ended"


async def test_own_failures_use_up_the_attempts(world: World, spec: Spec) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING, spec(resources={"max_attempts": 2}))
    for attempt in (1, 2):
        assert (await world.job(job_id)).attempt == attempt
        await world.fail(job_id, Phase.TRAIN, retryable=True, code="out_of_memory")
        await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "out_of_memory", 2)
    assert await world.live_leases() == []


async def _shift(world: World, job_id: str, **ages: float) -> None:
    """Let what a job did lie longer ago: seconds by what (attempts, phases, steps)."""
    async with world.database.write() as session:
        for row in await session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id)):
            row.started_at -= timedelta(seconds=ages.get("attempts", 0.0))
        for run in await session.scalars(select(PhaseRunRow).where(PhaseRunRow.job_id == job_id)):
            if run.ended_at is not None:
                run.ended_at -= timedelta(seconds=ages.get("phases", 0.0))
        for figure in await session.scalars(select(MetricRow).where(MetricRow.job_id == job_id)):
            figure.recorded_at -= timedelta(seconds=ages.get("steps", 0.0))


async def _teacher_away(world: World, job_id: str) -> float:
    async with world.database.read() as session:
        job = await jobs.get(session, job_id)
        return (await snapshots.read_job(session, job, now=utc_now())).teacher_away_seconds


async def test_a_lost_teacher_costs_no_attempt_until_it_was_away_for_too_long(
    world: World, spec: Spec
) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING, spec(resources={"max_attempts": 1}))
    await world.report(job_id, Phase.TRAIN, Metrics(step=1, values={"loss": 2.0}))
    for number in (1, 2, 3):
        assert (await world.job(job_id)).attempt == number
        await world.fail(job_id, Phase.TRAIN, retryable=True, code="score_deadline")
        await until_quiet(reconciler)
        job = await world.job(job_id)
        assert (job.state, job.attempt, job.own_failures) == (JobState.RUNNING, number + 1, 0)
        await _shift(world, job_id, attempts=100, phases=100, steps=100)  # past the pause between attempts
        await until_quiet(reconciler)
        assert await _teacher_away(world, job_id) == pytest.approx(100 * number, abs=20)
    await _shift(world, job_id, attempts=21_600, phases=21_600, steps=21_600)
    await world.fail(job_id, Phase.TRAIN, retryable=True, code="score_deadline")
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "teacher_lost", 4)
    assert "teacher_loss_timeout_seconds" in (job.error_message or "")
    assert await world.live_leases() == []


async def test_a_step_ends_the_teachers_absence(world: World, spec: Spec) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING, spec(resources={"max_attempts": 1}))
    assert await _teacher_away(world, job_id) == 0.0
    await world.fail(job_id, Phase.TRAIN, retryable=True, code="score_unavailable")
    await until_quiet(reconciler)
    await _shift(world, job_id, attempts=50_000, phases=50_000)
    await until_quiet(reconciler)
    assert await _teacher_away(world, job_id) >= 50_000
    await world.report(job_id, Phase.TRAIN, Metrics(step=1, values={"loss": 2.0}))
    assert await _teacher_away(world, job_id) == 0.0
    await world.fail(job_id, Phase.TRAIN, retryable=True, code="score_unavailable")
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.attempt, job.own_failures) == (JobState.RUNNING, 3, 0)
    assert 0 < await _teacher_away(world, job_id) < 60


async def test_another_loss_ends_the_count_of_the_teachers_absence(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    await world.fail(job_id, Phase.TRAIN, retryable=True, code="score_deadline")
    await until_quiet(reconciler)
    await _shift(world, job_id, attempts=1000, phases=1000)
    await until_quiet(reconciler)
    await world.fail(job_id, Phase.TRAIN, retryable=True, code="out_of_memory")
    await until_quiet(reconciler)
    assert (await world.job(job_id)).own_failures == 1
    assert await _teacher_away(world, job_id) == 0.0


async def test_a_final_failure_ends_the_job_at_once(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.PREPARING)
    await world.fail(job_id, Phase.PREPARE, retryable=False, code="no_rows")
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.error_code, job.error_message) == (JobState.FAILED, "no_rows", "It broke.")


async def test_a_silent_cluster_is_waited_for(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    world.compute.is_reachable = False
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)
    world.compute.is_reachable = True
    await world.finish(job_id, Phase.TRAIN)
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.EVALUATING


@pytest.mark.parametrize(
    "state", [JobState.QUEUED, JobState.PREPARING, JobState.RUNNING, JobState.EVALUATING]
)
async def test_cancel_from_any_state(world: World, state: JobState) -> None:
    if state is JobState.QUEUED:
        reconciler, job_id = world.new_reconciler(), await world.add_job()
    else:
        job_id, reconciler = await run_to(world, state)
    async with world.database.write() as session:
        await job_service.cancel(session, job_id)
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.CANCELLED
    assert await world.live_leases() == []
    for submission in world.compute.submissions:
        assert (await world.compute.status(submission)).has_ended


async def test_pause_saves_gives_the_teacher_back_and_resumes_as_the_next_attempt(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    async with world.database.write() as session:
        await job_service.pause(session, job_id)
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.PAUSING, "the trainer is given time to save"
    receipt = await world.report(job_id, Phase.TRAIN, Metrics(step=3, values={"loss": 1.0}))
    assert receipt.stop_requested
    await world.report(job_id, Phase.TRAIN, Finished(result={"stopped": True}))
    world.compute.finish(submission_id(job_id, 1, Phase.TRAIN))
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.PAUSED
    assert await world.live_leases() == []
    async with world.database.write() as session:
        await job_service.resume(session, job_id)
    async with world.database.read() as session:
        snapshot = await snapshots.read_job(
            session, await session.merge(await world.job(job_id)), now=utc_now()
        )
    assert snapshot.platform_losses == 0, "a pause is no loss: the job goes on at once"
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.RUNNING
    assert submission_id(job_id, 2, Phase.TRAIN) in world.compute.submissions


async def test_one_pool_serves_several_jobs(world: World, spec: Spec) -> None:
    reconciler = world.new_reconciler()
    few, many = spec(resources={"teacher_replicas": 1}), spec(resources={"teacher_replicas": 3}, seed=7)
    ids = [await world.add_job(few), await world.add_job(many)]
    await until_quiet(reconciler)
    for job_id in ids:
        await world.finish(job_id, Phase.PREPARE)
    await until_quiet(reconciler)
    (application,) = (await world.compute.applications()).values()
    assert application.wanted.scaling.minimum == 3
    assert application.wanted.arguments["replicas"] == 1, "a change of arguments would restart the replicas"
    assert len(await world.live_leases()) == 2
    async with world.database.write() as session:
        await job_service.cancel(session, ids[1])
    await until_quiet(reconciler)
    (application,) = (await world.compute.applications()).values()
    assert application.wanted.scaling.minimum == 1


async def test_a_pool_lingers_for_the_next_job(world: World) -> None:
    world.settings = world.settings.model_copy(update={"teacher_linger_seconds": 3600.0})
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    async with world.database.write() as session:
        await job_service.cancel(session, job_id)
    await until_quiet(reconciler)
    assert await world.live_leases() == []
    assert len(await world.compute.applications()) == 1
    assert (await world.pool()).state is PoolState.READY


async def test_a_teacher_that_cannot_start_fails_its_jobs_and_is_taken_down(world: World) -> None:
    world.settings = world.settings.model_copy(update={"teacher_linger_seconds": 3600.0})
    world.compute.starts_applications = False
    reconciler = world.new_reconciler()
    job_id = await world.add_job()
    await until_quiet(reconciler)
    await world.finish(job_id, Phase.PREPARE)
    await until_quiet(reconciler)
    assert (await world.job(job_id)).state is JobState.PROVISIONING
    (name,) = await world.compute.applications()
    world.compute.set_application(name, ApplicationStatus.FAILED, "RuntimeError: bad weights")
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "teacher_failed_to_start")
    assert "bad weights" in job.error_message
    assert await world.compute.applications() == {}, "a pool that does not work does not linger"


async def test_a_teacher_that_fits_nowhere_is_refused_before_anything_starts(
    world: World, spec: Spec, tmp_path: Path
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(9 << 30)
    reconciler = world.new_reconciler()
    job_id = await world.add_job(spec(teacher=str(tmp_path)))
    await until_quiet(reconciler)
    await world.finish(job_id, Phase.PREPARE)
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "teacher_too_large")
    assert "9.0 GiB" in job.error_message
    assert "8.0 GiB" in job.error_message
    assert await world.compute.applications() == {}
    assert await world.live_leases() == []


async def test_a_job_that_waits_for_a_larger_cluster_says_so(world: World, spec: Spec) -> None:
    greedy = spec(resources={"student_workers": 64})
    job_id, _ = await run_to(world, JobState.RUNNING, greedy)
    async with world.database.read() as session:
        query = select(EventRow.message).where(EventRow.job_id == job_id, EventRow.type == "job.running")
        assert "64 CPUs" in (await session.scalar(query))


async def test_the_queue_is_bounded(world: World) -> None:
    world.settings = world.settings.model_copy(update={"max_active_jobs": 2})
    reconciler = world.new_reconciler()
    ids = [await world.add_job() for _ in range(3)]
    await until_quiet(reconciler)
    assert [(await world.job(job_id)).state for job_id in ids] == [
        JobState.PREPARING,
        JobState.PREPARING,
        JobState.QUEUED,
    ]
    await world.fail(ids[0], Phase.PREPARE, retryable=False)
    await until_quiet(reconciler)
    assert (await world.job(ids[2])).state is JobState.PREPARING


async def test_only_one_of_two_control_planes_acts(world: World) -> None:
    first, second = world.new_reconciler(), world.new_reconciler()
    await world.add_job()
    await first.look()
    calls = len(world.compute.calls)
    await second.look()
    assert first.is_leading
    assert not second.is_leading
    assert len(world.compute.calls) == calls


async def test_a_leader_that_lost_its_lease_writes_nothing(world: World) -> None:
    job_id, old = await run_to(world, JobState.RUNNING)
    await world.finish(job_id, Phase.TRAIN)

    def lose(call: str) -> None:
        world.compute.before_call = None
        lost.append(call)

    lost: list[str] = []
    world.compute.before_call = lose
    original = world.compute.status

    async def status_while_another_takes_over(submission: str):
        async with world.database.write() as session:
            row = await session.get(leadership.LeaderLeaseRow, "reconciler")
            row.holder, row.fencing = "another", row.fencing + 1
        return await original(submission)

    world.compute.status = status_while_another_takes_over
    with pytest.raises(leadership.LeadershipLostError):
        await old.look()
    assert (await world.job(job_id)).state is JobState.RUNNING


async def test_what_was_decided_for_an_older_version_is_dropped(world: World) -> None:
    """A cancel that comes between the decision and the deed: nothing is started for it."""
    reconciler = world.new_reconciler()
    job_id = await world.add_job()
    await reconciler.look()
    held = reconciler._leadership
    old = (await world.job(job_id)).version
    async with world.database.write() as session:
        await job_service.cancel(session, job_id)
    submitted = set(world.compute.submissions)
    executor = Executor(world.database, world.compute, world.settings, held)
    for action in (Submit(Phase.TRAIN), Stop(Phase.PREPARE, "late"), AcquireLease()):
        with pytest.raises(ConflictError, match="changed"):
            await executor.execute(job_id, old, action)
    assert set(world.compute.submissions) == submitted
    assert await world.live_leases() == []


async def test_a_restarted_control_plane_leads_at_once_after_a_clean_end(world: World) -> None:
    first = world.new_reconciler()
    await first.look()
    await first.step_down()
    second = world.new_reconciler()
    await second.look()
    assert second.is_leading


class Died(BaseException):
    """The control plane was killed: nothing may catch this."""


async def _course_with_deaths(world: World, dies: Callable[[], bool], looks: int = 25) -> tuple[str, int]:
    """The good course with a control plane that is killed at chosen moments and started anew."""
    deaths = 0

    def hook(_call: str) -> None:
        if dies():
            raise Died

    job_id = await world.add_job()
    reconciler = world.new_reconciler()
    for phase in Phase:
        world.compute.before_call = hook
        for _ in range(looks):
            try:
                await reconciler.look()
            except ComputeUnavailableError:
                pass  # the loop goes on after its pause
            except Died:
                deaths += 1
                await reconciler.step_down()  # stands for the lease that runs out
                reconciler = world.new_reconciler()
        world.compute.before_call = None
        await world.finish(job_id, phase)
    await until_quiet(reconciler)
    return job_id, deaths


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_death_before_any_call_is_harmless(world: World, seed: int) -> None:
    chance = random.Random(seed)
    job_id, deaths = await _course_with_deaths(world, lambda: chance.random() < 0.3)
    job = await world.job(job_id)
    assert deaths >= 10
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert len(world.compute.submissions) == 3


@pytest.mark.parametrize(
    "call", ["ping", "submit", "status", "applications", "put_applications", "resources"]
)
async def test_failure_of_any_call_is_survived(world: World, call: str) -> None:
    for _ in range(3):
        world.compute.fail_next(call, ComputeUnavailableError("gone for a moment"))
    job_id, _ = await _course_with_deaths(world, lambda: False, looks=8)
    assert (await world.job(job_id)).state is JobState.SUCCEEDED
    assert (await world.job(job_id)).attempt == 1


async def test_death_between_submitting_and_remembering_it(world: World) -> None:
    """Ray took the job, SQL does not know it: the next look submits the same id again and nothing happens."""
    reconciler = world.new_reconciler()
    job_id = await world.add_job()
    original = world.compute.submit

    async def submit_and_die(submission) -> None:
        await original(submission)
        raise Died

    world.compute.submit = submit_and_die
    with pytest.raises(Died):
        await reconciler.look()
    world.compute.submit = original
    await reconciler.step_down()
    reconciler = world.new_reconciler()
    await until_quiet(reconciler)
    assert len(world.compute.submissions) == 1
    await world.finish(job_id, Phase.PREPARE)
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)


async def test_a_stopped_submission_is_lost_not_failed(world: World) -> None:
    job_id, reconciler = await run_to(world, JobState.RUNNING)
    world.compute.set_status(submission_id(job_id, 1, Phase.TRAIN), SubmissionStatus.STOPPED)
    await until_quiet(reconciler)
    job = await world.job(job_id)
    assert (job.attempt, job.own_failures) == (2, 0)


async def test_leases_of_finished_jobs_are_given_back(world: World) -> None:
    """A control plane that died between the end of a job and the release of its lease."""
    job_id, reconciler = await run_to(world, JobState.EVALUATING)
    await world.finish(job_id, Phase.EVALUATE)
    await until_quiet(reconciler)
    async with world.database.write() as session:
        spec = ResolvedJobSpec.model_validate((await world.job(job_id)).spec)
        await teacher_service.acquire_lease(session, job_id, spec)
    await until_quiet(reconciler)
    assert await world.live_leases() == []
