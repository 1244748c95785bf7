"""The reporter of an attempt: the control plane's, and those of the trackers that the job asks for.

In: the attempt's brief. Out: one `Reporter` that tells all of them. A tracker is one entry of `TRACKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from tide_core.contracts.reporting import AttemptBrief
from workers.reporting.control import ControlPlane
from workers.reporting.fan_out import FanOutReporter
from workers.reporting.http_reporter import HttpReporter
from workers.reporting.reporter import Reporter

log = structlog.get_logger(__name__)

OpenTracker = Callable[[AttemptBrief], Reporter | None]
"""Opens the reporter of a tracker; None for a job that does not ask for it."""

TRACKERS: Mapping[str, OpenTracker] = {}
"""Every tracker that Tide knows, by name. Each reads its own settings from the brief's spec."""


def open_reporter(
    brief: AttemptBrief,
    control: ControlPlane | None = None,
    trackers: Mapping[str, OpenTracker] = TRACKERS,
) -> FanOutReporter:
    """The reporter of an attempt's phase; close it, or use it as a context manager.

    A tracker that cannot be opened is logged and left out: a job does not fail because of it.

    Args:
        brief: the attempt.
        control: the control plane; by default the one that this Ray job was started for.
        trackers: the trackers that exist.

    Raises:
        InvalidInputError: the environment does not name the control plane.
    """
    delivering = HttpReporter(control or ControlPlane.from_environment(), brief)
    opened: dict[str, Reporter] = {}
    for name, open_tracker in trackers.items():
        try:
            tracker = open_tracker(brief)
        except Exception as error:
            log.warning("tracker.not_opened", tracker=name, kind=type(error).__name__, reason=str(error))
            continue
        if tracker is not None:
            opened[name] = tracker
    return FanOutReporter(delivering, opened)
