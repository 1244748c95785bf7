"""What endpoints ask for: the context of the application and the request's one transaction.

In: what the composition root (`service.app`) put on the application. Out: the types of endpoints' parameters.
Nothing here knows a resource, the reconciler or a cluster: what a request needs of them is a callable or a
protocol below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Path, Request
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.session import Database
from service.settings import Settings


class LogSource(Protocol):
    """Keeps what submissions print."""

    async def logs(self, submission_id: str) -> str:
        """What a submission printed so far; empty when it is unknown.

        Raises:
            ComputeUnavailableError: the cluster does not answer.
        """


@dataclass(frozen=True)
class AppContext:
    """What a request is given besides its transaction.

    Attributes:
        wake: lets the reconciler look at once; awaited, so that it runs on the event loop.
        log_source: None in a control plane without a cluster.
    """

    settings: Settings
    database: Database
    wake: Callable[[], Awaitable[None]]
    log_source: LogSource | None


def app_context(request: Request) -> AppContext:
    """The application's context."""
    context = request.app.state.context
    assert isinstance(context, AppContext)
    return context


Context = Annotated[AppContext, Depends(app_context)]


async def _read_session(context: Context) -> AsyncIterator[AsyncSession]:
    async with context.database.read() as session:
        yield session


async def _write_session(context: Context) -> AsyncIterator[AsyncSession]:
    async with context.database.write() as session:
        yield session


# Scope "function" ends the transaction before the answer is sent: what a client was told is stored.
ReadSession = Annotated[AsyncSession, Depends(_read_session, scope="function")]
"""The request's transaction, for reading."""
WriteSession = Annotated[AsyncSession, Depends(_write_session, scope="function")]
"""The request's transaction, for writing: committed before the response is sent."""

JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Id of a job.")]
ResourceId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="Id of the resource.")]
