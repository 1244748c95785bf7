"""Prepared data sets: shared by all jobs that prepare the same thing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime


class PreparedDatasetRow(Base):
    """A folder of prepared shards under the hash of everything that went in."""

    __tablename__ = "prepared_datasets"

    content_hash: Mapped[str] = mapped_column(String(128), primary_key=True)
    location: Mapped[str] = mapped_column(String(1024))
    rows: Mapped[int] = mapped_column()
    held_out_rows: Mapped[int] = mapped_column()
    rejected: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Rows left out, by reason."""
    coverage: Mapped[dict[str, Any]] = mapped_column(JSON)
    """How much of the text can be compared: share, counts, histograms."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime)
