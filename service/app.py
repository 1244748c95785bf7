"""The control plane as an ASGI application: the composition root.

In: the settings and the cluster. Out: an application whose requests find their database, clock and wake-up
call, and whose lifespan runs the reconciler. All parts are put together here: no resource knows this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.responses import Response

from service.access.authentication import AuthenticationMiddleware, bearer_scheme
from service.access.client_tokens import register_bootstrap
from service.api.dependencies import AppContext
from service.api.errors import error_response, error_responses_beside_text, install_error_handlers
from service.api.request_id import RequestContextMiddleware
from service.datasets.endpoints import router as datasets_router
from service.db.session import Database
from service.health.endpoints import router as observability_router
from service.health.sources import Sources
from service.jobs.endpoints import router as jobs_router
from service.jobs.event_endpoints import router as events_router
from service.jobs.internal_endpoints import router as internal_router
from service.migrations.migrate import upgrade
from service.models.endpoints import router as models_router
from service.orchestrator.compute import Compute
from service.orchestrator.reconciler import Reconciler
from service.settings import Authentication, Settings
from service.teachers.endpoints import router as teachers_router
from service.web.endpoints import install as install_web
from service.web.endpoints import is_page, sign_in_page
from tide_core.contracts.errors import TideError, UnauthorizedError
from tide_core.tracing import Tracing

API_VERSION = "1"
_LAST_LOOK_SECONDS = 10.0
"""A look that hangs longer than this, on a cluster that is away, is cut off."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ControlPlaneParts:
    """What the process consists of; its parts live as long as the application.

    Attributes:
        reconciler: None in a control plane that only keeps records.
    """

    settings: Settings
    database: Database
    tracing: Tracing
    reconciler: Reconciler | None

    async def wake(self) -> None:
        """Let the reconciler look at once instead of at the end of its interval."""
        if self.reconciler is not None:
            self.reconciler.wake()


def create_app(settings: Settings, compute: Compute | None = None) -> FastAPI:
    """The control plane.

    Args:
        settings: see `Settings`.
        compute: the cluster; without one, jobs are kept but nothing runs them.

    Returns:
        An application whose lifespan migrates the database and runs the reconciler.

    Raises:
        InvalidInputError: ``tracing_not_installed``.
    """
    app = FastAPI(
        title="Tide",
        summary="Distils diffusion language models as a service.",
        version=API_VERSION,
        lifespan=_lifespan,
        docs_url=None,  # those pages load their scripts from the internet; /openapi.json is what counts
        redoc_url=None,
    )
    parts = _assemble(settings, compute)
    app.state.control_plane = parts
    app.state.context = AppContext(settings, parts.database, parts.wake, compute)
    app.state.health_sources = Sources(
        parts.database, settings.reconcile_interval_seconds, parts.reconciler, compute
    )
    if settings.authentication != Authentication.OFF:
        app.add_middleware(AuthenticationMiddleware, database=parts.database, refusal=_refuse)
    app.add_middleware(RequestContextMiddleware, tracing=parts.tracing)
    install_error_handlers(app)
    resources = _resources()
    app.include_router(resources, prefix="/v1")
    app.include_router(resources, include_in_schema=False)  # the alias: /jobs is /v1/jobs
    app.include_router(internal_router)
    app.include_router(observability_router)
    install_web(app)
    return app


def _assemble(settings: Settings, compute: Compute | None) -> ControlPlaneParts:
    database = Database(settings.resolved_database_url)
    tracing = Tracing("tide-control-plane", settings.tracing_endpoint)
    reconciler = None if compute is None else Reconciler(database, compute, settings, tracing)
    return ControlPlaneParts(settings, database, tracing, reconciler)


def _resources() -> APIRouter:
    router = APIRouter(dependencies=[Depends(bearer_scheme)], responses=error_responses_beside_text(401, 403))
    for part in (jobs_router, events_router, teachers_router, datasets_router, models_router):
        router.include_router(part)
    return router


def _refuse(request: Request, error: TideError) -> Response:
    if isinstance(error, UnauthorizedError) and is_page(request.url.path):
        return sign_in_page(request)
    return error_response(error)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: ControlPlaneParts = app.state.control_plane
    if parts.settings.migrate_on_start:
        await upgrade(parts.database)
    bootstrap_token = parts.settings.bootstrap_token
    if parts.settings.authentication != Authentication.OFF and bootstrap_token is not None:
        async with parts.database.write() as session:
            await register_bootstrap(session, bootstrap_token.get_secret_value())
    task = None if parts.reconciler is None else asyncio.create_task(parts.reconciler.run())
    log.info(
        "control_plane.started",
        database=parts.database.url.render_as_string(),
        storage=parts.settings.resolved_storage,
    )
    try:
        yield
    finally:
        if task is not None and parts.reconciler is not None:
            parts.reconciler.stop()
            await asyncio.wait({task}, timeout=_LAST_LOOK_SECONDS)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await parts.database.close()
        await asyncio.to_thread(parts.tracing.close)
        log.info("control_plane.stopped")
