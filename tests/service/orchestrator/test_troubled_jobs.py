"""One job's trouble is not the other jobs': what docs/loops/reconciler.md promises for a look."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.jobs import repository as jobs
from service.jobs import service as job_service
from service.orchestrator.compute import SubmissionStatus
from tests.service.orchestrator.conftest import World
from tide_core.contracts.states import JobState, Phase, submission_id


async def test_an_unexpected_error_for_one_job_is_logged_and_the_others_go_on(world: World) -> None:
    broken, sound = await world.add_job(), await world.add_job()
    async with world.database.write() as session:
        (await jobs.lock(session, broken)).spec = {"not": "a spec"}
    with capture_logs() as logs:
        await world.new_reconciler().look()
    assert [entry["job_id"] for entry in logs if entry["event"] == "reconciler.job_failed"] == [broken]
    assert (await world.job(broken)).state is JobState.QUEUED
    assert (await world.job(sound)).state is JobState.PREPARING


async def test_a_process_that_takes_its_time_to_stop_is_asked_once_a_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def stop_later(submission: str) -> None:
        asked.append(submission)

    reconciler, job_id = world.new_reconciler(), await world.add_job()
    await reconciler.look()
    world.compute.set_status(submission_id(job_id, 1, Phase.PREPARE), SubmissionStatus.RUNNING)
    monkeypatch.setattr(world.compute, "stop", stop_later)
    async with world.database.write() as session:
        await job_service.cancel(session, job_id)
    other = await world.add_job()
    with capture_logs() as logs:
        await reconciler.look()
    assert asked == [submission_id(job_id, 1, Phase.PREPARE)]
    assert [entry for entry in logs if entry["event"] == "reconciler.no_rest"] == []
    assert (await world.job(job_id)).state is JobState.CANCELLING
    assert (await world.job(other)).state is JobState.PREPARING
