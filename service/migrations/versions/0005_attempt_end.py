"""attempt end

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_RESUMED = "the job was paused and is resumed"
"""The sentence by which versions before this schema knew an attempt that a pause had ended."""

_FILL = f"""
UPDATE attempts SET end_kind = CASE
    WHEN counts THEN 'job_fault'
    WHEN end_reason = '{_RESUMED}' THEN 'resumed'
    WHEN end_reason IN ('the job is succeeded', 'the job is cancelled') THEN 'ended'
    WHEN EXISTS (
        SELECT 1 FROM phase_runs
        WHERE phase_runs.job_id = attempts.job_id AND phase_runs.attempt = attempts.number
            AND phase_runs.outcome = 'failed'
            AND phase_runs.error_code IN ('score_unavailable', 'score_deadline')
    ) THEN 'teacher_away'
    ELSE 'platform_loss'
END
WHERE ended_at IS NOT NULL
"""


def upgrade() -> None:
    # Without a default and nullable: a control plane of the version before may still end attempts.
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "end_kind",
                sa.Enum(
                    "job_fault",
                    "platform_loss",
                    "teacher_away",
                    "resumed",
                    "ended",
                    name="attemptend",
                    native_enum=False,
                    length=32,
                ),
                nullable=True,
            )
        )
    op.execute(sa.text(_FILL))


def downgrade() -> None:
    resumed = sa.text(f"UPDATE attempts SET end_reason = '{_RESUMED}' WHERE end_kind = 'resumed'")
    op.execute(resumed)
    # Not in a batch: SQLite would make the table anew, and with it delete all that refers to it.
    op.drop_column("attempts", "end_kind")
