"""Lists as the REST interface gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query

from tide_core.contracts.resources import Item, Page

Limit = Annotated[int, Query(ge=1, le=100, description="At most so many entries.")]
After = Annotated[
    str | None,
    Query(
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="Id of the last entry of the page before: the page goes on after it.",
    ),
]


def page_of(items: Sequence[Item], ids: Sequence[str | int], limit: int | None = None) -> Page[Item]:
    """A page of what a query for ``limit + 1`` entries gave; without a limit, the whole list.

    Args:
        items: the entries, one more than ``limit`` when there is a further page.
        ids: the entries' ids.
        limit: entries a page.
    """
    has_more = limit is not None and len(items) > limit
    shown, names = list(items)[:limit], list(ids)[:limit]
    return Page[Item](
        data=shown,
        has_more=has_more,
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
    )
