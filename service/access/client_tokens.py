"""Client tokens: made by the operator, shown once, looked up by their hash at each request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from service.access import repository
from service.access.bearer_tokens import hash_bearer_token, make_bearer_token
from service.access.tables import ClientTokenRow, ClientTokenStatus, Role
from service.clock import utc_now
from service.db.session import Database
from service.db.upsert import upsert
from tide_core.contracts.errors import ConflictError, ForbiddenError, InvalidInputError, UnauthorizedError

BOOTSTRAP = "bootstrap"
"""Name of the token that comes with the deployment, by the setting `bootstrap_token`."""
_PREFIX = "tide_"
_FORM = re.compile(r"tide_[A-Za-z0-9_-]{43,128}")
"""43 characters of 64 are 258 bits. The prefix lets scanners find a token that leaked; a job's own begins
otherwise."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_USE_NOTED_EVERY = timedelta(minutes=1)
_SAFE_METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, by the client token that came with it."""

    name: str
    role: Role


async def create(session: AsyncSession, name: str, role: Role, lifetime: timedelta | None) -> str:
    """Make a client token; only its hash is kept.

    Args:
        session: a writing transaction.
        name: for people, and for the jobs that are posted with it.
        role: what it allows.
        lifetime: until it expires; None: never.

    Raises:
        InvalidInputError: ``bad_token_name`` or ``bad_token_lifetime``.
        ConflictError: ``token_name_taken``; names of revoked tokens stay taken.
    """
    if not _NAME.fullmatch(name) or name == BOOTSTRAP:
        raise InvalidInputError(
            f"A token cannot be named '{name}': use 1 to 64 letters, digits and . _ @ -. The name "
            f"'{BOOTSTRAP}' is reserved for the deployment's own token.",
            code="bad_token_name",
            param="name",
        )
    if lifetime is not None and lifetime <= timedelta():
        raise InvalidInputError(
            "The lifetime of a token must be longer than zero.",
            code="bad_token_lifetime",
            param="expires_days",
        )
    token, now = make_bearer_token(_PREFIX), utc_now()
    row = _columns(name, token, role, now, None if lifetime is None else now + lifetime)
    if await upsert(session, ClientTokenRow, [row], update=()) == 0:
        raise ConflictError(
            f"A token named '{name}' exists already (`tide tokens list`). The names of revoked tokens stay "
            "taken, so that a job's posted_by means one token.",
            code="token_name_taken",
            param="name",
        )
    return token


async def revoke(session: AsyncSession, name: str) -> datetime:
    """Revoke a token; a revoked one stays as it is. Gives the moment of its end.

    Raises:
        NotFoundError: ``token_not_found``.
    """
    row = await repository.get(session, name)
    if row.revoked_at is None:
        row.revoked_at = utc_now()
    return row.revoked_at


async def register_bootstrap(session: AsyncSession, token: str) -> None:
    """Make the deployment's own token valid, with the role of an editor.

    Every replica does it at its start: the same token again changes nothing (a revoked one stays revoked),
    another token takes the place of the one before.

    Raises:
        InvalidInputError: ``bad_bootstrap_token``; the message does not show it.
    """
    if not _FORM.fullmatch(token):
        raise InvalidInputError(
            f"bootstrap_token must be '{_PREFIX}' and at least 43 random letters and digits, such as "
            f'"{_PREFIX}$(openssl rand -hex 32)".',
            code="bad_bootstrap_token",
            param="bootstrap_token",
        )
    row = _columns(BOOTSTRAP, token, Role.EDITOR, utc_now(), None)
    # Two statements, each of which any number of replicas may run at once: the first lets one of them insert.
    await upsert(session, ClientTokenRow, [row], update=())
    await session.execute(
        update(ClientTokenRow)
        .where(ClientTokenRow.name == BOOTSTRAP, ClientTokenRow.token_hash != row["token_hash"])
        .values(row | {"last_used_at": None, "revoked_at": None})
    )


async def identify(database: Database, token: str) -> Caller:
    """Whose token this is; notes that it was used.

    Raises:
        UnauthorizedError: ``token_unknown``, ``token_revoked`` or ``token_expired``.
    """
    row, now = None, utc_now()
    if _FORM.fullmatch(token):
        async with database.read() as session:
            row = await repository.find_by_hash(session, hash_bearer_token(token))
    if row is None:
        raise UnauthorizedError(
            "This token is unknown here. `tide tokens create`, run where the control plane runs, makes one.",
            code="token_unknown",
        )
    match row.status(now):
        case ClientTokenStatus.REVOKED:
            raise UnauthorizedError(
                "This token was revoked. Ask the operator for another.", code="token_revoked"
            )
        case ClientTokenStatus.EXPIRED:
            raise UnauthorizedError(
                "This token has expired. Ask the operator for another.", code="token_expired"
            )
        case ClientTokenStatus.VALID:
            pass
    if row.last_used_at is None or row.last_used_at < now - _USE_NOTED_EVERY:
        async with database.write() as session:
            await repository.touch(session, row.name, now, unless_since=now - _USE_NOTED_EVERY)
    return Caller(row.name, row.role)


async def is_valid(session: AsyncSession, caller: Caller) -> bool:
    """Whether the token that a caller came with has neither expired nor been revoked since."""
    row = await repository.get(session, caller.name)
    return row.status(utc_now()) is ClientTokenStatus.VALID


def check_role(caller: Caller, method: str) -> None:
    """Refuse what the caller's role does not allow.

    Raises:
        ForbiddenError: a viewer may only read.
    """
    if caller.role is Role.VIEWER and method not in _SAFE_METHODS:
        raise ForbiddenError(
            f"The token '{caller.name}' has the role {caller.role}, which may read and nothing else. Use one "
            f"with the role {Role.EDITOR}."
        )


def _columns(name: str, token: str, role: Role, now: datetime, expires_at: datetime | None) -> dict[str, Any]:
    return {
        "name": name,
        "token_hash": hash_bearer_token(token),
        "role": role,
        "created_at": now,
        "expires_at": expires_at,
    }
