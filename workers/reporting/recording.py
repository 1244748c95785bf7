"""A reporter that only remembers: for tests and for runs without a control plane."""

from __future__ import annotations

import threading
from typing import TypeVar

from tide_core.contracts.reporting import AnyReport, Metrics

Body = TypeVar("Body", bound=object)


class RecordingReporter:
    """Keeps every report in `bodies`; `request_stop()` stands for the control plane's request to stop."""

    def __init__(self) -> None:
        self.bodies: list[AnyReport] = []
        self._stop = threading.Event()

    def send(self, body: AnyReport) -> None:
        """Remember one report."""
        self.bodies.append(body)

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """From now on `stop_requested` is true."""
        self._stop.set()

    def keep(self) -> None:
        """Everything is kept already."""

    def flush(self, deadline_seconds: float) -> bool:
        """Nothing to wait for."""
        return True

    def close(self, deadline_seconds: float = 30.0) -> bool:
        """Nothing to end."""
        return True

    def of_type(self, kind: type[Body]) -> list[Body]:
        """The reports of one class, in order."""
        return [body for body in self.bodies if isinstance(body, kind)]

    def series(self, name: str) -> list[float]:
        """One metric over the steps that reported it."""
        return [body.values[name] for body in self.of_type(Metrics) if name in body.values]
