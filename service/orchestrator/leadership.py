"""Which control plane acts: several may run, and one of them holds the lease with its fencing number.

In: the holder's name and the time. Out: a `Leadership`, or None while another process leads.
The lease expires by the clock, so a holder may think for a moment too long that it leads. Each writing
transaction of the reconciler therefore checks the fencing number again: what an old leader was about to write
is rolled back.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.orchestrator.tables import LeaderLeaseRow
from tide_core.contracts.errors import ConflictError


class LeadershipLostError(ConflictError):
    """Another control plane leads: drop what was about to be written."""

    code = "leadership_lost"


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to act in a role, under a fencing number that rises with every change of the holder."""

    role: str
    holder: str
    fencing: int


def make_holder() -> str:
    """A name for this process that no other process has."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(8)}"


async def acquire(
    session: AsyncSession, role: str, holder: str, *, now: datetime, lifetime: timedelta
) -> Leadership | None:
    """Take or renew the lease of a role in a writing transaction; None while another process holds it.

    Two control planes that take a role which never had a holder may collide on the primary key: the
    database refuses the second, which asks again.
    """
    row = await session.get(LeaderLeaseRow, role, with_for_update=True, populate_existing=True)
    if row is None:
        row = LeaderLeaseRow(role=role, holder=holder, fencing=1, expires_at=now + lifetime)
        session.add(row)
        await session.flush()
        return Leadership(role, holder, row.fencing)
    if row.holder != holder:
        if row.expires_at > now:
            return None
        row.holder, row.fencing = holder, row.fencing + 1
    row.expires_at = now + lifetime
    await session.flush()
    return Leadership(role, holder, row.fencing)


async def read_leases(session: AsyncSession) -> Sequence[LeaderLeaseRow]:
    """Who leads in which role, and until when."""
    return (await session.scalars(select(LeaderLeaseRow).order_by(LeaderLeaseRow.role))).all()


async def check(session: AsyncSession, leadership: Leadership) -> None:
    """Hold the lease's row for the rest of the transaction, or refuse to go on.

    Raises:
        LeadershipLostError: another holder took the role.
    """
    row = await session.get(LeaderLeaseRow, leadership.role, with_for_update=True, populate_existing=True)
    if row is None or (row.holder, row.fencing) != (leadership.holder, leadership.fencing):
        raise LeadershipLostError(f"Another control plane is now the {leadership.role}.")


async def release(session: AsyncSession, leadership: Leadership, *, now: datetime) -> None:
    """Let the next one lead at once; does nothing when the role is another's by now."""
    row = await session.get(LeaderLeaseRow, leadership.role, with_for_update=True, populate_existing=True)
    if row is not None and (row.holder, row.fencing) == (leadership.holder, leadership.fencing):
        row.expires_at = now
        await session.flush()
