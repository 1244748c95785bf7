"""Artifacts: the models that jobs hand over."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, BigKey, UtcDateTime


class ModelRow(Base):
    """An exported student in the Hugging Face layout."""

    __tablename__ = "models"
    __table_args__ = (Index("uq_models_job_id_location", "job_id", "location", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    location: Mapped[str] = mapped_column(String(1024))
    step: Mapped[int] = mapped_column(BigKey)
    bytes: Mapped[int] = mapped_column(BigKey)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
