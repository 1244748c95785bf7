"""Teacher pools and the leases that jobs hold on them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime, words
from tide_core.contracts.teacher import PoolState


class TeacherRow(Base):
    """One pool: a Serve application that several jobs may lease."""

    __tablename__ = "teachers"

    application: Mapped[str] = mapped_column(String(64), primary_key=True)
    pool: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The `TeacherPool` that is (to be) deployed."""
    state: Mapped[PoolState] = mapped_column(words(PoolState), default=PoolState.STARTING)
    message: Mapped[str | None] = mapped_column(Text)
    """What Serve says of it, when it is not ready."""
    fingerprint: Mapped[str | None] = mapped_column(String(128))
    """What it attested last."""
    ready_replicas: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    state_since: Mapped[datetime] = mapped_column(UtcDateTime)
    """When it entered its state."""
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """When the last lease was taken or released: lingering counts from here."""


class LeaseRow(Base):
    """A job's claim on a pool, for as long as a phase needs it."""

    __tablename__ = "leases"
    __table_args__ = (
        Index(
            "uq_leases_live",
            "job_id",
            unique=True,
            sqlite_where=text("released_at IS NULL"),
            postgresql_where=text("released_at IS NULL"),
        ),
        Index("ix_leases_application", "application"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    application: Mapped[str] = mapped_column(ForeignKey("teachers.application"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    replicas: Mapped[int] = mapped_column()
    """How many replicas the job asks for; the pool has at least the maximum over its live leases."""
    max_replicas: Mapped[int | None] = mapped_column()
    """How many the pool may have while the job waits for scores; None: no more than `replicas`."""
    weight: Mapped[float] = mapped_column()
    """The job's share in the pool's fair queue."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    released_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
