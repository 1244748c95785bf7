"""REST of prepared data sets."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dependencies import ReadSession, ResourceId
from service.api.errors import error_responses
from service.api.paging import After, Limit, page_of
from service.datasets import repository
from tide_core.contracts.resources import Dataset, Page

router = APIRouter(tags=["datasets"])


@router.get("/datasets", responses=error_responses(404, 422))
async def list_datasets(session: ReadSession, after: After = None, limit: Limit = 20) -> Page[Dataset]:
    """Prepared data sets, newest first."""
    rows = await repository.page(session, after=after, limit=limit + 1)
    items = [Dataset.model_validate(row) for row in rows]
    return page_of(items, [item.content_hash for item in items], limit)


@router.get("/datasets/{content_hash}", responses=error_responses(404, 422))
async def get_dataset(session: ReadSession, content_hash: ResourceId) -> Dataset:
    """One prepared data set."""
    return Dataset.model_validate(await repository.get(session, content_hash))
