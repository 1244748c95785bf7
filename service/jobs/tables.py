"""Jobs, their attempts and phases, and what the workers report of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, BigKey, UtcDateTime, words
from service.jobs.outcomes import AttemptEnd, PhaseOutcome
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.states import JobState, Phase


class JobRow(Base):
    """One distillation job."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_created_at", "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(128))
    state: Mapped[JobState] = mapped_column(words(JobState), default=JobState.QUEUED)
    """Written by `state_machine.transition` alone."""
    version: Mapped[int] = mapped_column(default=1)
    """Rises with every transition and every new attempt: the optimistic lock."""
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The spec as it was posted."""
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The resolved spec, every default written out."""
    pipeline: Mapped[Pipeline] = mapped_column(words(Pipeline))
    variant: Mapped[Variant | None] = mapped_column(words(Variant))
    attempt: Mapped[int] = mapped_column(default=1)
    """Number of the present attempt."""
    own_failures: Mapped[int] = mapped_column(default=0)
    """Attempts that ended by the job's own fault; the platform's failures do not count."""
    prepared_hash: Mapped[str | None] = mapped_column(ForeignKey("prepared_datasets.content_hash"))
    teacher_fingerprint: Mapped[str | None] = mapped_column(String(128))
    """What the teacher attested to this job's first attempt: later attempts accept no other."""
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """First entry into `preparing`."""
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """W3C trace context of the request that posted it, where tracing is on."""
    posted_by: Mapped[str | None] = mapped_column(String(64))
    """Name of the token that came with the request, where authentication is on."""


class AttemptRow(Base):
    """One try at a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    end_kind: Mapped[AttemptEnd | None] = mapped_column(words(AttemptEnd))
    """None while it runs, and where a control plane of a version before schema 0005 ended it."""
    end_reason: Mapped[str | None] = mapped_column(Text)
    """For people."""
    counts: Mapped[bool] = mapped_column(default=False)
    """Whether it used up one of the job's `max_attempts`."""


class PhaseRunRow(Base):
    """One phase of one attempt: a Ray job, and how far its reports are stored."""

    __tablename__ = "phase_runs"
    __table_args__ = (
        ForeignKeyConstraint(
            ["job_id", "attempt"], ["attempts.job_id", "attempts.number"], ondelete="CASCADE"
        ),
    )

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[Phase] = mapped_column(words(Phase), primary_key=True)
    last_sequence: Mapped[int] = mapped_column(default=0)
    """Highest report number stored; every lower one is stored too."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    submitted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When Ray took the job: if Ray does not know it later, it was lost."""
    last_report_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[PhaseOutcome | None] = mapped_column(words(PhaseOutcome))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    retryable: Mapped[bool | None] = mapped_column()


class MetricRow(Base):
    """One figure of one step. A step that a later attempt repeats replaces the earlier figure."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    step: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column()
    attempt: Mapped[int] = mapped_column()
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CheckpointRow(Base):
    """A training state in storage."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("uq_checkpoints_job_id_location", "job_id", "location", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column()
    step: Mapped[int] = mapped_column(BigKey)
    location: Mapped[str] = mapped_column(String(1024))
    bytes: Mapped[int] = mapped_column(BigKey)
    is_export: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class IdempotencyKeyRow(Base):
    """A client's promise that two posts with this key mean the same job."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
