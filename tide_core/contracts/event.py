"""Events: the append-only story of a job.

In: nothing. Out: the event as the REST interface gives it, and the types of the events that programs read.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from tide_core.contracts.base import Contract
from tide_core.contracts.states import JobState, Phase


class EventType(StrEnum):
    """Types of events that are no change of state (`state_event`) and no step of a phase (`phase_event`).

    A worker's notes are events too: their type is the code that the worker gave.
    """

    ATTEMPT_STARTED = "attempt.started"
    CHECKPOINT_DELETED = "checkpoint.deleted"
    CHECKPOINT_SAVED = "checkpoint.saved"
    DATA_PREPARED = "data.prepared"
    METRICS_NON_FINITE = "metrics.non_finite"
    MODEL_EXPORTED = "model.exported"
    TEACHER_ATTESTED = "teacher.attested"
    """Its ``data`` names the `fingerprint`."""
    TEACHER_LEASED = "teacher.leased"
    TEACHER_RELEASED = "teacher.released"


class PhaseStep(StrEnum):
    """What a phase's own events say of it."""

    SUBMITTED = "submitted"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


def state_event(state: JobState) -> str:
    """Type of the event that tells of a job's entry into a state."""
    return f"job.{state}"


def phase_event(phase: Phase, step: PhaseStep) -> str:
    """Type of the event that tells of a phase's submission or end."""
    return f"{phase}.{step}"


class Event(Contract):
    """One line of a job's story, as the REST interface and the SSE stream give it."""

    id: int = Field(ge=1)
    """Rises over all events; `Last-Event-ID` of the stream."""
    object: Literal["job.event"] = "job.event"
    job_id: str
    created_at: datetime
    type: str
    """Dotted name: "job.queued", "job.running", "checkpoint.saved", "data.prepared", ..."""
    level: Literal["info", "warning", "error"] = "info"
    message: str
    data: dict[str, Any] = Field(default_factory=dict)
