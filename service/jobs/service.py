"""What a client may do to jobs: submit, cancel, pause, resume.

In: a job spec, or a job's id. Out: the job's row with its first or next state, and the event that says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.db.session import Database
from service.db.storable import check_storable
from service.db.upsert import upsert
from service.events import service as events
from service.identifiers import new_id
from service.jobs import preflight, repository
from service.jobs.outcomes import RESUMED_MESSAGE, AttemptEnd
from service.jobs.state_machine import begin_next_attempt, transition
from service.jobs.tables import AttemptRow, IdempotencyKeyRow, JobRow
from tide_core.contracts.errors import ConflictError
from tide_core.contracts.event import state_event
from tide_core.contracts.job import JobSpec, ResolvedJobSpec
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.states import TERMINAL_STATES, JobState
from tide_core.tracing import current_traceparent


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a post."""

    job: JobRow
    is_new: bool
    """False when an idempotency key led to the job of an earlier post."""


async def submit(
    database: Database, spec: JobSpec, key: str | None, posted_by: str | None = None
) -> Submitted:
    """Accept a job: check it, resolve it, store it with its first event.

    An earlier post with the same key is looked up before the checks (its files may be gone by now) and once
    more with the insertion, in one transaction, so that two posts at once make one job.

    Args:
        database: where jobs are kept.
        spec: the request.
        key: the client's idempotency key.
        posted_by: name of the client's token, where authentication is on.

    Raises:
        InvalidInputError: the spec cannot work; nothing is stored.
        ConflictError: ``idempotency_key_reused``: the key was used before with another body.
    """
    check_storable(spec.model_dump(mode="python"))
    body_hash = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    if key is not None:
        async with database.read() as session:
            earlier = await _find_earlier(session, key, body_hash)
        if earlier is not None:
            return Submitted(earlier, is_new=False)
    resolved = await asyncio.to_thread(preflight.accept, spec)
    try:
        async with database.write() as session:
            job = await _store(session, spec, resolved, key, body_hash, posted_by=posted_by)
            return Submitted(job, is_new=True)
    except _KeyTakenError:
        assert key is not None
        async with database.read() as session:
            earlier = await _find_earlier(session, key, body_hash)
        assert earlier is not None, "a key that was taken belongs to a job"
        return Submitted(earlier, is_new=False)


class _KeyTakenError(Exception):
    """Another post with the same key was faster: roll back and give its job."""


async def _find_earlier(session: AsyncSession, key: str, body_hash: str) -> JobRow | None:
    row = await repository.idempotency_key(session, key)
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise ConflictError(
            f"The idempotency key '{key}' was used before with another body, for job {row.job_id}. Use a new "
            "key for a new job.",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return await repository.get(session, row.job_id)


async def _store(
    session: AsyncSession,
    spec: JobSpec,
    resolved: ResolvedJobSpec,
    key: str | None,
    body_hash: str,
    *,
    posted_by: str | None,
) -> JobRow:
    now = utc_now()
    job = JobRow(
        id=new_id("job"),
        name=spec.name,
        request=spec.model_dump(mode="json"),
        spec=resolved.model_dump(mode="json"),
        pipeline=Pipeline(resolved.pipeline),
        variant=resolved.variant,
        created_at=now,
        updated_at=now,
        traceparent=current_traceparent(),
        posted_by=posted_by,
    )
    session.add(job)
    await session.flush()
    session.add(AttemptRow(job_id=job.id, number=1, started_at=now))
    events.append(session, job.id, state_event(JobState.QUEUED), "The job was accepted.", data={"attempt": 1})
    if key is not None:
        row = {"key": key, "body_hash": body_hash, "job_id": job.id, "created_at": now}
        if await upsert(session, IdempotencyKeyRow, [row], update=()) == 0:
            raise _KeyTakenError
    await session.flush()
    return job


async def cancel(session: AsyncSession, job_id: str) -> JobRow:
    """Ask for a job's end; asking again while it is being cancelled changes nothing.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: ``job_finished``.
    """
    job = await repository.lock(session, job_id)
    if job.state in TERMINAL_STATES:
        raise ConflictError(
            f"Job {job.id} has ended already ({job.state}); there is nothing left to cancel.",
            code="job_finished",
        )
    if job.state is not JobState.CANCELLING:
        await transition(session, job, JobState.CANCELLING, "A client asked to cancel the job.")
    return job


async def pause(session: AsyncSession, job_id: str) -> JobRow:
    """Ask a running job to save and give its resources back; asking again changes nothing.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: ``transition_not_allowed``: only a running job can be paused.
    """
    job = await repository.lock(session, job_id)
    if job.state not in (JobState.PAUSING, JobState.PAUSED):
        if job.state is not JobState.RUNNING:
            raise ConflictError(
                f"Job {job.id} is {job.state}; only a running job can be paused.",
                code="transition_not_allowed",
            )
        await transition(session, job, JobState.PAUSING, "A client asked to pause the job.")
    return job


async def resume(session: AsyncSession, job_id: str) -> JobRow:
    """Let a paused job go on from its last checkpoint, as its next attempt.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: ``transition_not_allowed``: the job is not paused.
    """
    job = await repository.lock(session, job_id)
    if job.state is not JobState.PAUSED:
        raise ConflictError(
            f"Job {job.id} is {job.state}; only a paused job can be resumed.", code="transition_not_allowed"
        )
    await begin_next_attempt(session, job, AttemptEnd.RESUMED, RESUMED_MESSAGE)
    await transition(session, job, JobState.PROVISIONING, "The job continues from its last checkpoint.")
    return job
