"""Attempt tokens: issued with a Ray job, shown by its workers, revoked when the attempt ends."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from service.access.bearer_tokens import hash_bearer_token, make_bearer_token
from service.access.tables import AttemptTokenRow
from service.clock import utc_now
from tide_core.contracts.errors import UnauthorizedError
from tide_core.contracts.states import Phase

_PREFIX = "tide-attempt-"


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """Who shows a token: one phase of one attempt of one job."""

    job_id: str
    attempt: int
    phase: Phase
    is_revoked: bool


def issue(session: AsyncSession, job_id: str, attempt: int, phase: Phase) -> str:
    """Make an attempt token for one phase of one attempt; only its hash is kept.

    Several may be valid at once: a reconciler that died between issuing and submitting issues another.
    """
    token = make_bearer_token(_PREFIX)
    session.add(
        AttemptTokenRow(
            token_hash=hash_bearer_token(token),
            job_id=job_id,
            attempt=attempt,
            phase=phase,
            created_at=utc_now(),
        )
    )
    return token


async def identify(session: AsyncSession, token: str) -> AttemptIdentity:
    """Whose token this is; a revoked one is still known, so that its holder learns why it is refused.

    Raises:
        UnauthorizedError: the token is unknown.
    """
    row = await session.get(AttemptTokenRow, hash_bearer_token(token))
    if row is None:
        raise UnauthorizedError("The attempt token is unknown; workers get theirs in TIDE_ATTEMPT_TOKEN.")
    return AttemptIdentity(row.job_id, row.attempt, row.phase, row.revoked_at is not None)


async def revoke_attempt(session: AsyncSession, job_id: str, attempt: int) -> None:
    """Revoke every token of an attempt."""
    await session.execute(
        update(AttemptTokenRow)
        .where(
            AttemptTokenRow.job_id == job_id,
            AttemptTokenRow.attempt == attempt,
            AttemptTokenRow.revoked_at.is_(None),
        )
        .values(revoked_at=utc_now())
    )
