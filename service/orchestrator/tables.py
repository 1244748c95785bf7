"""Who leads: one row a role, held by one control plane at a time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, BigKey, UtcDateTime


class LeaderLeaseRow(Base):
    """The right to act in a role ("reconciler") until `expires_at`."""

    __tablename__ = "leader_leases"

    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    fencing: Mapped[int] = mapped_column(BigKey)
    """Rises with every change of the holder: an old holder's writes are recognised by it."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
