"""What the reconciler may do to a job: the typed outcomes of `decide`."""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs.outcomes import AttemptEnd
from tide_core.contracts.states import JobState, Phase


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the job to another state (never to FAILED)."""

    target: JobState
    message: str


@dataclass(frozen=True, slots=True)
class Fail:
    """End the job: it cannot succeed."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Start the Ray job of a phase of the present attempt."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the Ray job of a phase of the present attempt."""

    phase: Phase
    reason: str


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """Give the present attempt up and number the next one.

    Attributes:
        end: why the present attempt ends.
        reason: the same in words, for the event log.
        target: state to go on in; None to stay.
    """

    end: AttemptEnd
    reason: str
    target: JobState | None = None


@dataclass(frozen=True, slots=True)
class AcquireLease:
    """Ask for the teacher's pool."""


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give the teacher's pool back."""

    reason: str


Action = Wait | Advance | Fail | Submit | Stop | NextAttempt | AcquireLease | ReleaseLease
