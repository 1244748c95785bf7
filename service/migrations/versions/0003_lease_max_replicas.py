"""lease max replicas

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Without a default and nullable: a control plane of the version before may still write leases.
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("max_replicas", sa.Integer(), nullable=True))


def downgrade() -> None:
    # Not in a batch: SQLite would make the table anew, and with it delete all that refers to it.
    op.drop_column("leases", "max_replicas")
