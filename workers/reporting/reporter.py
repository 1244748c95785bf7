"""What a phase reports while it works, to any receiver: the protocol, and progress with an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from tide_core.contracts.reporting import AnyReport, Progress
from tide_core.contracts.states import Phase


class Reporter(Protocol):
    """Takes reports of one phase; never blocks the caller on a network."""

    def send(self, body: AnyReport) -> None:
        """Queue one report."""
        ...

    @property
    def stop_requested(self) -> bool:
        """True once the job is being cancelled or paused: save and end."""
        ...

    def keep(self) -> None:
        """Put what is not delivered yet where the next attempt finds it, at no wait for the network."""
        ...

    def flush(self, deadline_seconds: float) -> bool:
        """Wait until everything sent so far is stored; False when the deadline passed first."""
        ...

    def close(self, deadline_seconds: float = 30.0) -> bool:
        """Flush and end; False when something could not be delivered."""
        ...


class ProgressMeter:
    """Turns "12 of 300" into `Progress` reports with an ETA, at most one per `min_interval` seconds.

    The rate is taken from the moment of the first update, so that start-up does not count.
    """

    def __init__(
        self,
        reporter: Reporter,
        phase: Phase,
        stage: str,
        total: float | None,
        *,
        unit: str = "steps",
        min_interval: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._phase = phase
        self._stage = stage
        self._total = total
        self._unit = unit
        self._min_interval = min_interval
        self._clock = clock
        self._start: tuple[float, float] | None = None
        self._last_sent = -float("inf")

    def update(self, completed: float, total: float | None = None) -> None:
        """Say how far the stage is; the last update (`completed` = total) is always sent."""
        now = self._clock()
        self._total = self._total if total is None else total
        if self._start is None:
            self._start = (now, completed)
        is_last = self._total is not None and completed >= self._total
        if now - self._last_sent < self._min_interval and not is_last:
            return
        self._last_sent = now
        self._reporter.send(
            Progress(
                phase=self._phase,
                stage=self._stage,
                completed=completed,
                total=self._total,
                unit=self._unit,
                eta_seconds=self._eta(now, completed),
            )
        )

    def _eta(self, now: float, completed: float) -> float | None:
        if self._total is None or self._start is None:
            return None
        began, first = self._start
        if completed >= self._total:
            return 0.0
        if completed <= first or now <= began:
            return None
        return (self._total - completed) * (now - began) / (completed - first)
