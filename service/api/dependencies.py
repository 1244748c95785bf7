"""What endpoints ask for: the context of the application and the request's one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.session import Database
from service.orchestrator.compute import Compute
from service.orchestrator.reconciler import Reconciler
from service.settings import Settings
from tide_core.tracing import Tracing


@dataclass(frozen=True)
class AppContext:
    """What lives as long as the application."""

    settings: Settings
    database: Database
    compute: Compute | None
    """How Ray is reached; none in a control plane that only keeps records."""
    reconciler: Reconciler | None
    tracing: Tracing

    async def wake_reconciler(self) -> None:
        """Let the reconciler look at once instead of at the end of its interval."""
        if self.reconciler is not None:
            self.reconciler.wake()


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
