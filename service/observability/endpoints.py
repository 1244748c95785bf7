"""Health and metrics of the control plane itself."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import Context, ReadSession
from service.observability.health import readiness
from service.observability.metrics import exposition
from service.observability.schemas import Health, Readiness

router = APIRouter(tags=["observability"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Something is missing."}})
async def readyz(context: Context, response: Response) -> Readiness:
    """The database, the reconciler and Ray, each by name."""
    result = await readiness(context)
    if result.status != "ready":
        response.status_code = 503
    return result


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(session: ReadSession) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(await exposition(session), media_type=CONTENT_TYPE_LATEST)
