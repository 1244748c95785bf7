"""Tokens that workers show; only their hashes are stored."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime, words
from tide_core.contracts.states import Phase


class AttemptTokenRow(Base):
    """A bearer token of one phase of one attempt."""

    __tablename__ = "attempt_tokens"
    __table_args__ = (Index("ix_attempt_tokens_job_id_attempt", "job_id", "attempt"),)

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Hex SHA-256; the token has 256 random bits, so no salt or stretching is needed."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column()
    phase: Mapped[Phase] = mapped_column(words(Phase))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
