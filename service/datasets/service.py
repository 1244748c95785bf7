"""Recording prepared data sets."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.datasets.tables import PreparedDatasetRow
from service.db.upsert import upsert
from tide_core.contracts.reporting import DatasetPrepared


async def record(session: AsyncSession, report: DatasetPrepared) -> None:
    """Remember a prepared data set; one that is known already is only brought up to date.

    Two jobs may prepare the same thing at once: both writes mean the same, so the last one stands.
    """
    now = utc_now()
    row = {
        "content_hash": report.content_hash,
        "location": report.location,
        "rows": report.rows,
        "held_out_rows": report.held_out_rows,
        "rejected": report.rejected,
        "coverage": report.coverage.model_dump(mode="json"),
        "created_at": now,
        "last_used_at": now,
    }
    await upsert(session, PreparedDatasetRow, [row], update=("location", "last_used_at"))
