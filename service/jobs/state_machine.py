"""The only writer of a job's state.

In: a job's row and the state that it shall have. Out: the row in that state and an event, or `ConflictError`.

Every change checks the one table of allowed transitions, the optimistic version, and writes its event in the
same transaction: what the event log says and what the job says cannot differ.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession

from service.access import attempt_tokens
from service.clock import utc_now
from service.events import service as events
from service.jobs.outcomes import AttemptEnd
from service.jobs.tables import AttemptRow, JobRow
from tide_core.contracts.errors import ConflictError
from tide_core.contracts.event import EventType, state_event
from tide_core.contracts.states import TERMINAL_STATES, JobState, is_allowed

_LEVELS: dict[JobState, events.Level] = {JobState.FAILED: "error"}


async def transition(
    session: AsyncSession,
    job: JobRow,
    target: JobState,
    message: str,
    *,
    error_code: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Move a job to another state and tell its event log.

    Args:
        session: a writing transaction.
        job: as it was read; its version must still be the stored one.
        target: the new state.
        message: for the event, and for the job's error when ``target`` is FAILED.
        error_code: stable code of the failure; required with FAILED, else not given.
        data: further facts for the event.

    Raises:
        ConflictError: ``transition_not_allowed``, or ``job_changed`` when another transaction was faster.
    """
    assert (error_code is not None) == (target is JobState.FAILED)
    if not is_allowed(job.state, target):
        raise ConflictError(
            f"Job {job.id} is {job.state}; it cannot become {target}.", code="transition_not_allowed"
        )
    values: dict[str, Any] = {"state": target}
    if target is JobState.PREPARING and job.started_at is None:
        values["started_at"] = utc_now()
    if target in TERMINAL_STATES:
        values["finished_at"] = utc_now()
    if target is JobState.FAILED:
        values |= {"error_code": error_code, "error_message": message}
    source = job.state
    await _write(session, job, values)
    if target in TERMINAL_STATES:
        end = AttemptEnd.JOB_FAULT if target is JobState.FAILED else AttemptEnd.ENDED
        await _end_attempt(session, job, end, f"the job is {target}")
    facts = {"from": str(source), "attempt": job.attempt} | (data or {})
    if error_code is not None:
        facts["code"] = error_code
    events.append(
        session, job.id, state_event(target), message, level=_LEVELS.get(target, "info"), data=facts
    )


async def begin_next_attempt(session: AsyncSession, job: JobRow, end: AttemptEnd, reason: str) -> None:
    """End the present attempt and number the next; its tokens are worthless from here on (fencing).

    Args:
        session: a writing transaction.
        job: as it was read; its version must still be the stored one.
        end: why the present attempt ended, and thus whether it uses up one of the job's `max_attempts`.
        reason: the same in words, for the event log.

    Raises:
        ConflictError: ``job_changed`` when another transaction was faster.
    """
    previous = job.attempt
    await _end_attempt(session, job, end, reason)
    await _write(session, job, {"attempt": previous + 1, "own_failures": job.own_failures + int(end.counts)})
    session.add(AttemptRow(job_id=job.id, number=job.attempt, started_at=utc_now()))
    events.append(
        session,
        job.id,
        EventType.ATTEMPT_STARTED,
        f"Attempt {job.attempt} follows attempt {previous}: {reason}",
        data={"attempt": job.attempt, "previous": previous, "counts": end.counts},
    )


async def _write(session: AsyncSession, job: JobRow, values: dict[str, Any]) -> None:
    values |= {"version": job.version + 1, "updated_at": utc_now()}
    statement = update(JobRow).where(JobRow.id == job.id, JobRow.version == job.version).values(**values)
    result = await session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise ConflictError(
            f"Job {job.id} changed meanwhile (it is no longer at version {job.version}); read it again.",
            code="job_changed",
        )
    await session.refresh(job)


async def _end_attempt(session: AsyncSession, job: JobRow, end: AttemptEnd, reason: str) -> None:
    await session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job.id, AttemptRow.number == job.attempt, AttemptRow.ended_at.is_(None))
        .values(ended_at=utc_now(), end_kind=end, end_reason=reason, counts=end.counts)
    )
    await attempt_tokens.revoke_attempt(session, job.id, job.attempt)
