"""Recording exported models."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from service.clock import utc_now
from service.identifiers import new_id
from service.models import repository
from service.models.tables import ModelRow
from tide_core.contracts.reporting import CheckpointSaved


async def record(session: AsyncSession, job_id: str, report: CheckpointSaved) -> ModelRow:
    """Remember a model; one at the same place is replaced by it. The caller holds the job's row."""
    row = await repository.find_by_location(session, job_id, report.location)
    if row is None:
        row = ModelRow(id=new_id("model"), job_id=job_id, location=report.location)
        session.add(row)
    row.step, row.bytes, row.created_at = report.step, report.bytes, utc_now()
    await session.flush()
    return row
