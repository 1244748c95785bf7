"""One reporter for a phase that tells several: the control plane, and the trackers that a job asks for.

In: the reports of a phase. Out: each report to the control plane and to every tracker. The control plane
alone decides: its failures are the phase's, its request to stop counts, and `flush` and `close` answer for
it. It is told first. Trackers share its deadlines. One that fails is logged once and is told the next report
all the same; it never keeps a report from the others. No lock: each reporter guards itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog

from tide_core.contracts.reporting import AnyReport
from workers.reporting.reporter import Reporter

log = structlog.get_logger(__name__)


class FanOutReporter:
    """Sends each report to several reporters.

    Args:
        control: the control plane's reporter.
        trackers: further ones, by the names that logs call them.
    """

    def __init__(self, control: Reporter, trackers: Mapping[str, Reporter]) -> None:
        self._control = control
        self._trackers = dict(trackers)
        self._failed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, body: AnyReport) -> None:
        """See `Reporter`."""
        try:
            self._control.send(body)
        finally:
            self._tell_trackers(lambda tracker: tracker.send(body))

    @property
    def stop_requested(self) -> bool:
        """See `Reporter`; what trackers say does not count."""
        return self._control.stop_requested

    def keep(self) -> None:
        """See `Reporter`."""
        try:
            self._control.keep()
        finally:
            self._tell_trackers(lambda tracker: tracker.keep())

    def flush(self, deadline_seconds: float) -> bool:
        """See `Reporter`; True when the control plane has stored everything."""
        give_up = time.monotonic() + deadline_seconds
        try:
            return self._control.flush(deadline_seconds)
        finally:
            self._tell_trackers(lambda tracker: tracker.flush(_seconds_until(give_up)))

    def close(self, deadline_seconds: float = 30.0) -> bool:
        """See `Reporter`; False when the control plane could not be told everything."""
        give_up = time.monotonic() + deadline_seconds
        try:
            return self._control.close(deadline_seconds)
        finally:
            self._tell_trackers(lambda tracker: tracker.close(_seconds_until(give_up)))

    def _tell_trackers(self, tell: Callable[[Reporter], object]) -> None:
        for name, tracker in self._trackers.items():
            try:
                tell(tracker)
            except Exception as error:
                if name not in self._failed:
                    self._failed.add(name)
                    log.warning("tracker.failed", tracker=name, kind=type(error).__name__, reason=str(error))


def _seconds_until(give_up: float) -> float:
    return max(0.0, give_up - time.monotonic())
