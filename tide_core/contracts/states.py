"""A job's states and the one table of allowed transitions.

In: two states. Out: whether a job may go from the one to the other.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    EVALUATING = "evaluating"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TERMINAL_STATES = frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED})
ACTIVE_STATES = frozenset(JobState) - TERMINAL_STATES - {JobState.QUEUED, JobState.PAUSED}
"""The job is being worked on; how many may be is bounded (`max_active_jobs`)."""

ALLOWED_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PREPARING, JobState.CANCELLING, JobState.FAILED}),
    JobState.PREPARING: frozenset({JobState.PROVISIONING, JobState.CANCELLING, JobState.FAILED}),
    JobState.PROVISIONING: frozenset({JobState.RUNNING, JobState.CANCELLING, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {
            JobState.EVALUATING,
            JobState.SUCCEEDED,  # no evaluation asked for
            JobState.PROVISIONING,  # the attempt was lost: the next one starts from the last checkpoint
            JobState.PAUSING,
            JobState.CANCELLING,
            JobState.FAILED,
        }
    ),
    JobState.EVALUATING: frozenset({JobState.SUCCEEDED, JobState.CANCELLING, JobState.FAILED}),
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.CANCELLING, JobState.FAILED}),
    JobState.PAUSED: frozenset({JobState.PROVISIONING, JobState.CANCELLING}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.CANCELLED: frozenset(),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
}


def is_allowed(source: JobState, target: JobState) -> bool:
    """Whether a job may go from ``source`` to ``target``."""
    return target in ALLOWED_TRANSITIONS[source]


class Phase(StrEnum):
    """What a Ray job does for a Tide job; each phase is a Ray job of its own."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"


def submission_id(job_id: str, attempt: int, phase: Phase) -> str:
    """The Ray submission id of one phase of one attempt: the same action gives the same id.

    The trainer's is ``tide-<job>-<attempt>``; preparation and evaluation carry their phase as a suffix.
    """
    suffix = "" if phase is Phase.TRAIN else f"-{phase}"
    return f"tide-{job_id}-{attempt}{suffix}"
