"""Client tokens, of people and programs, and attempt tokens, of workers; only their hashes are stored."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime, words
from tide_core.contracts.states import Phase


class Role(StrEnum):
    """What the holder of a client token may do."""

    VIEWER = "viewer"
    """Read: GET alone."""
    EDITOR = "editor"
    """Everything."""


class ClientTokenStatus(StrEnum):
    """Whether a client token is accepted."""

    VALID = "valid"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ClientTokenRow(Base):
    """A client token. A revoked one keeps its name, so that a job's `posted_by` means one token."""

    __tablename__ = "api_tokens"
    __table_args__ = (Index("uq_api_tokens_token_hash", "token_hash", unique=True),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    """See `bearer_tokens.hash_bearer_token`."""
    role: Mapped[Role] = mapped_column(words(Role))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """To the minute: not every request may write."""
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def status(self, now: datetime) -> ClientTokenStatus:
        """Whether the token is accepted at a moment."""
        if self.revoked_at is not None:
            return ClientTokenStatus.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return ClientTokenStatus.EXPIRED
        return ClientTokenStatus.VALID


class AttemptTokenRow(Base):
    """An attempt token: what the workers of one phase of one attempt show."""

    __tablename__ = "attempt_tokens"
    __table_args__ = (Index("ix_attempt_tokens_job_id_attempt", "job_id", "attempt"),)

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column()
    phase: Mapped[Phase] = mapped_column(words(Phase))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
