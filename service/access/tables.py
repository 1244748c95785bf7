"""Tokens of people and programs that use the interface; only their hashes are stored."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime, words


class Role(StrEnum):
    """What the holder of a token may do."""

    VIEWER = "viewer"
    """Read: GET alone."""
    EDITOR = "editor"
    """Everything."""


class TokenStatus(StrEnum):
    """Whether a token lets its holder in."""

    VALID = "valid"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ApiTokenRow(Base):
    """A bearer token. Revoked, it keeps its name, so that a job's `posted_by` means one token."""

    __tablename__ = "api_tokens"
    __table_args__ = (Index("uq_api_tokens_token_hash", "token_hash", unique=True),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    """Hex SHA-256; the token has 256 random bits, so no salt or stretching is needed."""
    role: Mapped[Role] = mapped_column(words(Role))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """To the minute, so that not every request writes."""
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def status(self, now: datetime) -> TokenStatus:
        """What the token is worth at a moment."""
        if self.revoked_at is not None:
            return TokenStatus.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return TokenStatus.EXPIRED
        return TokenStatus.VALID
