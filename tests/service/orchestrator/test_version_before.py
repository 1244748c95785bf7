"""What the version before left behind goes on: its running job, its paused one, its pool and its workers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from service.access import attempt_tokens
from service.clock import utc_now
from service.db.session import Database
from service.jobs import reports
from service.jobs import repository as jobs
from service.jobs import service as job_service
from service.jobs.briefing import attempt_brief
from service.jobs.outcomes import AttemptEnd
from service.jobs.tables import AttemptRow
from service.migrations.migrate import upgrade
from service.orchestrator import snapshots
from service.orchestrator.compute import Submission
from service.orchestrator.decide import JobSnapshot
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings
from tests.service.orchestrator.conftest import World
from tests.support.version_before import rows
from tide_core.contracts.reporting import ENV_ATTEMPT_TOKEN, Finished, ReportBatch, ReportReceipt
from tide_core.contracts.states import JobState, Phase, submission_id
from tide_core.contracts.teacher import PoolState

ATTEMPT = 4
"""In which the running job is."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Both: what is stored differs between them."""
    return str(request.param)


@pytest.fixture
async def world(tmp_path: Path, empty_database: Database) -> World:
    """The version before's database, upgraded, and its cluster: the trainer runs, the teacher serves."""
    await rows.fill(empty_database)
    await upgrade(empty_database)
    settings = Settings(
        data_dir=tmp_path,
        storage=rows.STORAGE,
        reconcile_interval_seconds=0.01,
        teacher_linger_seconds=600,
    )
    compute = FakeCompute()
    trainer = submission_id(rows.job_id("running"), ATTEMPT, Phase.TRAIN)
    await compute.submit(Submission(trainer, "python -m workers.main", {ENV_ATTEMPT_TOKEN: _token()}))
    await compute.put_applications([rows.running_application()])
    compute.calls.clear()
    return World(empty_database, compute, settings)


def _token() -> str:
    return rows.trainer_token()


async def look(world: World, looks: int = 3) -> None:
    reconciler = world.new_reconciler()
    for _ in range(looks):
        await reconciler.look()
    await reconciler.step_down()


async def snapshot(world: World, job_id: str) -> JobSnapshot:
    async with world.database.read() as session:
        return await snapshots.read_job(session, await jobs.get(session, job_id), now=utc_now())


async def send(world: World, body: str) -> ReportReceipt:
    """What a trainer of the version before sends, as it is on the wire."""
    async with world.database.write() as session:
        identity = await attempt_tokens.identify(session, _token())
        run = await jobs.phase_run(session, identity.job_id, identity.attempt, identity.phase)
        assert run is not None
        sequence = run.last_sequence + 1
        wire = f'{{"reports":[{{"sequence":{sequence},"time":"{utc_now().isoformat()}","body":{body}}}]}}'
        return await reports.store(session, identity, ReportBatch.model_validate_json(wire))


async def test_a_running_job_is_left_alone(world: World) -> None:
    job_id = rows.job_id("running")
    (before,) = await world.live_leases()
    await look(world)
    job = await world.job(job_id)
    assert (job.state, job.attempt, job.own_failures) == (JobState.RUNNING, ATTEMPT, 1)
    assert before.id in {lease.id for lease in await world.live_leases()}
    # The queued job was taken up; besides that the cluster was only asked.
    queued = submission_id(rows.job_id("queued"), 1, Phase.PREPARE)
    assert set(world.compute.submissions) == {submission_id(job_id, ATTEMPT, Phase.TRAIN), queued}


async def test_its_pool_is_not_deployed_anew(world: World) -> None:
    await look(world)
    assert "put_applications" not in world.compute.calls
    pool = await world.pool()
    assert pool is not None
    assert (pool.state, pool.fingerprint) == (PoolState.READY, "fp-before")


async def test_a_running_job_reaches_its_end(world: World) -> None:
    job_id = rows.job_id("running")
    (lease,) = await world.live_leases()
    await send(world, '{"type":"metrics","step":10,"values":{"loss":1.25}}')
    await send(world, '{"type":"finished","result":{}}')
    world.compute.finish(submission_id(job_id, ATTEMPT, Phase.TRAIN))
    await look(world)
    assert (await world.job(job_id)).state is JobState.EVALUATING
    assert lease.id in {held.id for held in await world.live_leases()}, "the evaluation asks the same teacher"
    assert submission_id(job_id, ATTEMPT, Phase.EVALUATE) in world.compute.submissions
    await world.report(job_id, Phase.EVALUATE, Finished(result={"nelbo": 1.0}))
    world.compute.finish(submission_id(job_id, ATTEMPT, Phase.EVALUATE))
    await look(world)
    job = await world.job(job_id)
    assert (job.state, job.attempt, job.own_failures) == (JobState.SUCCEEDED, ATTEMPT, 1)
    assert lease.id not in {held.id for held in await world.live_leases()}


async def test_the_attempts_of_a_running_job_go_on_counting(world: World) -> None:
    job_id = rows.job_id("running")
    assert (await snapshot(world, job_id)).platform_losses == 2
    world.compute.lose_head()
    await look(world)
    found = await snapshot(world, job_id)
    assert (found.platform_losses, found.own_failures) == (3, 1)
    await _let_the_pause_pass(world, job_id)
    for _ in range(2):
        assert (await world.job(job_id)).state is JobState.RUNNING
        await world.fail(job_id, Phase.TRAIN, retryable=True, code="out_of_memory")
        await _let_the_pause_pass(world, job_id)
        await look(world)
    job = await world.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "out_of_memory"), "the third failure of its own"


async def _let_the_pause_pass(world: World, job_id: str) -> None:
    """Begin the next attempt, whose start waits after losses."""
    await look(world)
    async with world.database.write() as session:
        attempt = await session.get(AttemptRow, (job_id, (await jobs.get(session, job_id)).attempt))
        assert attempt is not None
        attempt.started_at -= timedelta(seconds=100)
    await look(world)


async def test_a_paused_job_resumes_at_once(world: World) -> None:
    job_id = rows.job_id("paused")
    assert (await snapshot(world, job_id)).platform_losses == 0, "a pause is no loss"
    async with world.database.write() as session:
        await job_service.resume(session, job_id)
    await look(world)
    assert (await world.job(job_id)).state is JobState.RUNNING
    assert submission_id(job_id, 3, Phase.TRAIN) in world.compute.submissions
    async with world.database.read() as session:
        ends = [
            attempt.end_kind
            for number in (1, 2, 3)
            if (attempt := await session.get(AttemptRow, (job_id, number))) is not None
        ]
    assert ends == [AttemptEnd.RESUMED, AttemptEnd.RESUMED, None]


async def test_the_attestation_of_an_older_worker_is_understood(world: World) -> None:
    job_id = rows.job_id("running")
    async with world.database.write() as session:
        job = await jobs.lock(session, job_id)
        job.teacher_fingerprint = None
    note = '{"type":"note","level":"info","code":"teacher.attested","message":"fp-older"}'
    await send(world, note)
    job = await world.job(job_id)
    pool = await world.pool()
    assert job.teacher_fingerprint == "fp-older"
    assert pool is not None
    assert pool.fingerprint == "fp-older"
    assert (await world.events(job_id))[-1] == "teacher.attested"


async def test_a_worker_of_the_version_before_is_briefed_again(world: World) -> None:
    async with world.database.read() as session:
        job = await jobs.get(session, rows.job_id("running"))
        brief = await attempt_brief(session, job, Phase.TRAIN, world.settings)
    assert brief.teacher is not None
    assert (brief.attempt, brief.teacher.fingerprint) == (ATTEMPT, "fp-before")
    assert brief.folder.model == f"{rows.STORAGE}/jobs/{job.id}/model"
    assert brief.prepared == "/s/prepared/h"


async def test_an_attempt_that_an_older_leader_ends_counts_as_a_loss(world: World) -> None:
    """While control planes are replaced one by one, the older one may still act: it writes no kind."""
    job_id = rows.job_id("running")
    async with world.database.write() as session:
        attempt = await session.get(AttemptRow, (job_id, 1))
        assert attempt is not None
        attempt.end_kind = None
    assert (await snapshot(world, job_id)).platform_losses == 2
