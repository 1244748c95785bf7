"""How a phase of an attempt ends, and how an attempt ends (pure: no database, no web).

In: nothing. Out: the enums that the tables store and that the reconciler's policy reads.
"""

from __future__ import annotations

from enum import StrEnum


class PhaseOutcome(StrEnum):
    """How the worker of a phase said that it ended; a phase that is lost says nothing and has none."""

    FINISHED = "finished"
    """The worker reported `Finished`; its result is stored."""
    STOPPED = "stopped"
    """The worker ended early because it was asked to (cancel, pause)."""
    FAILED = "failed"
    """The worker reported `Failed`."""


class AttemptEnd(StrEnum):
    """Why an attempt ended."""

    JOB_FAULT = "job_fault"
    """The job itself failed."""
    PLATFORM_LOSS = "platform_loss"
    """A node, the cluster or the process went away, or the phase ended before its work was done."""
    TEACHER_AWAY = "teacher_away"
    """The teacher stopped answering."""
    RESUMED = "resumed"
    """The job was paused in this attempt and is resumed with the next one."""
    ENDED = "ended"
    """The job ended with this attempt, without a failure: it has succeeded or is cancelled."""

    @property
    def counts(self) -> bool:
        """Whether it uses up one of the job's `max_attempts`."""
        return self is AttemptEnd.JOB_FAULT


PLATFORM_LOSSES = frozenset({AttemptEnd.PLATFORM_LOSS, AttemptEnd.TEACHER_AWAY})
"""Ends without the job's fault: the next attempt waits a little longer each time."""
RESUMED_MESSAGE = "the job was paused and is resumed"
"""What the event log says of `AttemptEnd.RESUMED`; no program reads it."""
