"""REST of exported models."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dependencies import ReadSession, ResourceId
from service.api.errors import error_responses
from service.api.paging import After, Limit, page_of
from service.models import repository
from tide_core.contracts.resources import Model, Page

router = APIRouter(tags=["models"])


@router.get("/models", responses=error_responses(404, 422))
async def list_models(session: ReadSession, after: After = None, limit: Limit = 20) -> Page[Model]:
    """Exported models, newest first."""
    rows = await repository.page(session, after=after, limit=limit + 1)
    items = [Model.model_validate(row) for row in rows]
    return page_of(items, [item.id for item in items], limit)


@router.get("/models/{model_id}", responses=error_responses(404, 422))
async def get_model(session: ReadSession, model_id: ResourceId) -> Model:
    """One exported model."""
    return Model.model_validate(await repository.get(session, model_id))
