"""Health and metrics of the control plane itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import ReadSession
from service.api.errors import error_responses
from service.health.health import ALL_CHECKS, readiness
from service.health.readings import read_samples
from service.health.sources import HealthSources
from service.observability.metrics import exposition
from tide_core.contracts.resources import CheckName, Health, Readiness

router = APIRouter(tags=["observability"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive."""
    return Health()


@router.get(
    "/readyz",
    responses={**error_responses(422), 503: {"model": Readiness, "description": "Something is missing."}},
)
async def readyz(
    sources: HealthSources,
    response: Response,
    check: Annotated[list[CheckName] | None, Query(description="Look at these alone.")] = None,
) -> Readiness:
    """The database, the reconciler and Ray, each by name."""
    result = await readiness(sources, frozenset(check) if check else ALL_CHECKS)
    if result.status != "ready":
        response.status_code = 503
    return result


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(sources: HealthSources, session: ReadSession) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(exposition(await read_samples(sources, session)), media_type=CONTENT_TYPE_LATEST)
