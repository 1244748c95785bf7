"""api tokens

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import service.db.base

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column(
            "role", sa.Enum("viewer", "editor", name="role", native_enum=False, length=32), nullable=False
        ),
        sa.Column("created_at", service.db.base.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", service.db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("expires_at", service.db.base.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", service.db.base.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_api_tokens")),
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.create_index("uq_api_tokens_token_hash", ["token_hash"], unique=True)
    # Without a default and nullable: a control plane of the version before may still write jobs.
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("posted_by", sa.String(length=64), nullable=True))


def downgrade() -> None:
    # Not in a batch: SQLite would make the table anew, and with it delete all that refers to it.
    op.drop_column("jobs", "posted_by")
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.drop_index("uq_api_tokens_token_hash")
    op.drop_table("api_tokens")
