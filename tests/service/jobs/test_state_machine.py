"""The one writer of states: every pair of the table, its event, and races."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sqlalchemy import select

import service
from service.access import attempt_tokens
from service.clock import utc_now
from service.db.session import Database
from service.events import repository as events
from service.identifiers import new_id
from service.jobs import repository
from service.jobs.outcomes import AttemptEnd
from service.jobs.state_machine import begin_next_attempt, transition
from service.jobs.tables import AttemptRow, JobRow
from tide_core.contracts.errors import ConflictError
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.states import ALLOWED_TRANSITIONS, TERMINAL_STATES, JobState, Phase


async def _insert(database: Database, state: JobState = JobState.QUEUED) -> str:
    job_id = new_id("job")
    async with database.write() as session:
        session.add(
            JobRow(
                id=job_id,
                state=state,
                request={},
                spec={},
                pipeline=Pipeline.CROSS_TOKENIZER,
                created_at=utc_now(),
                updated_at=utc_now(),
            )
        )
        await session.flush()
        session.add(AttemptRow(job_id=job_id, number=1, started_at=utc_now()))
    return job_id


async def _move(database: Database, job_id: str, target: JobState) -> None:
    code = "broken" if target is JobState.FAILED else None
    async with database.write() as session:
        job = await repository.lock(session, job_id)
        await transition(session, job, target, f"now {target}", error_code=code)


async def test_every_pair_of_states_is_allowed_or_refused_as_the_table_says(database: Database) -> None:
    for source in JobState:
        for target in JobState:
            job_id = await _insert(database, source)
            if target in ALLOWED_TRANSITIONS[source]:
                await _move(database, job_id, target)
            else:
                with pytest.raises(ConflictError) as caught:
                    await _move(database, job_id, target)
                assert caught.value.code == "transition_not_allowed"
            async with database.read() as session:
                job = await repository.get(session, job_id)
                story = await events.page(session, job_id, after=0, limit=10)
            is_moved = target in ALLOWED_TRANSITIONS[source]
            assert job.state is (target if is_moved else source)
            assert [event.type for event in story] == ([f"job.{target}"] if is_moved else [])
            assert job.version == (2 if is_moved else 1)
            assert (job.finished_at is not None) == (is_moved and target in TERMINAL_STATES)


async def test_a_failure_is_told_on_the_job_and_in_its_story(database: Database) -> None:
    job_id = await _insert(database, JobState.RUNNING)
    await _move(database, job_id, JobState.FAILED)
    async with database.read() as session:
        job = await repository.get(session, job_id)
        (event,) = await events.page(session, job_id, after=0, limit=10)
    assert (job.error_code, job.error_message) == ("broken", "now failed")
    assert event.level == "error"
    assert event.data == {"from": "running", "attempt": 1, "code": "broken"}


async def test_the_slower_of_two_writers_is_refused(database: Database) -> None:
    job_id = await _insert(database, JobState.RUNNING)
    async with database.read() as session:
        stale = await repository.get(session, job_id)
    await _move(database, job_id, JobState.PAUSING)
    stale_version = stale.version
    async with database.write() as session:
        with pytest.raises(ConflictError) as caught:
            await transition(session, stale, JobState.CANCELLING, "too late")
        assert caught.value.code == "job_changed"
    async with database.read() as session:
        job = await repository.get(session, job_id)
    assert job.state is JobState.PAUSING
    assert job.version == stale_version + 1


async def test_a_failed_transaction_leaves_neither_state_nor_event(database: Database) -> None:
    job_id = await _insert(database)

    async def fail_half_way() -> None:
        async with database.write() as session:
            job = await repository.lock(session, job_id)
            await transition(session, job, JobState.PREPARING, "never happened")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    async with database.read() as session:
        assert (await repository.get(session, job_id)).state is JobState.QUEUED
        assert await events.last_id(session, job_id) == 0


async def test_the_next_attempt_ends_the_last_one_and_its_tokens(database: Database) -> None:
    job_id = await _insert(database, JobState.RUNNING)
    async with database.write() as session:
        token = attempt_tokens.issue(session, job_id, 1, Phase.TRAIN)
    async with database.write() as session:
        job = await repository.lock(session, job_id)
        await begin_next_attempt(session, job, AttemptEnd.PLATFORM_LOSS, "the node vanished")
        await begin_next_attempt(session, job, AttemptEnd.JOB_FAULT, "the loss was NaN")
    async with database.read() as session:
        job = await repository.get(session, job_id)
        rows = (await session.scalars(select(AttemptRow).order_by(AttemptRow.number))).all()
        identity = await attempt_tokens.identify(session, token)
    assert (job.attempt, job.own_failures, job.version) == (3, 1, 3)
    assert [row.counts for row in rows] == [False, True, False]
    assert [row.end_kind for row in rows] == [AttemptEnd.PLATFORM_LOSS, AttemptEnd.JOB_FAULT, None]
    assert [row.ended_at is None for row in rows] == [False, False, True]
    assert identity.is_revoked


def test_no_other_module_writes_a_jobs_state() -> None:
    """No assignment to `<something named job>.state` and no `update(JobRow)` outside the state machine."""
    root = Path(service.__file__).parent
    writers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in [entry for group in targets for entry in ast.walk(group)]:
                if isinstance(target, ast.Attribute) and target.attr == "state":
                    owner = ast.unparse(target.value)
                    if "job" in owner.lower():
                        writers.add(path.name)
            if isinstance(node, ast.Call) and ast.unparse(node).startswith("update(JobRow"):
                writers.add(path.name)
    assert writers == {"state_machine.py"}
