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
