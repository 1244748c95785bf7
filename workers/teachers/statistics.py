"""What a teacher replica counts."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tide_core.queueing.fair_queue import Entry

REMEMBERED_JOBS = 256
"""Served tokens are kept for so many jobs, the most recently served."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Counters of one engine since its start. Seconds are wall-clock seconds.

    Attributes:
        requests: answered requests.
        refused: requests turned away because the queue was full.
        failed: requests that ended in an error.
        sequences: answered sequences.
        forwards: forwards of the model.
        tokens: tokens that went through forwards, without padding.
        padded_tokens: the same with padding.
        queue_seconds: sum over requests, until their first forward.
        busy_seconds: time in forwards.
        uptime_seconds: since the start.
        queued_tokens: waiting now.
        queued_jobs: jobs with something waiting now.
        tokens_by_job: tokens served to each job, for the most recent jobs.
    """

    requests: int
    refused: int
    failed: int
    sequences: int
    forwards: int
    tokens: int
    padded_tokens: int
    queue_seconds: float
    busy_seconds: float
    uptime_seconds: float
    queued_tokens: int
    queued_jobs: int
    tokens_by_job: dict[str, int]

    @property
    def occupancy(self) -> float:
        """Share of the time spent in forwards."""
        return self.busy_seconds / self.uptime_seconds if self.uptime_seconds > 0 else 0.0

    @property
    def batch_fill(self) -> float:
        """Share of a forward's tokens that are not padding."""
        return self.tokens / self.padded_tokens if self.padded_tokens else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The counters and the two ratios, as plain data."""
        return asdict(self) | {"occupancy": self.occupancy, "batch_fill": self.batch_fill}


@dataclass(slots=True)
class StatisticsRecorder:
    """The counters behind :class:`EngineStatistics`; the caller holds a lock."""

    clock: Callable[[], float] = time.monotonic
    requests: int = 0
    refusals: int = 0
    failures: int = 0
    sequences: int = 0
    forwards: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    queue_seconds: float = 0.0
    busy_seconds: float = 0.0
    tokens_by_job: OrderedDict[str, int] = field(default_factory=OrderedDict)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def count_answer(self, queue_seconds: float) -> None:
        """A request was answered after so long in the queue."""
        self.requests += 1
        self.queue_seconds += queue_seconds

    def count_refusal(self) -> None:
        """A request was turned away."""
        self.refusals += 1

    def count_failure(self) -> None:
        """A request ended in an error."""
        self.failures += 1

    def count_forward(
        self, entries: Sequence[Entry[Any]], *, padded: int, budget: int, seconds: float
    ) -> None:
        """A batch went through the model: so many tokens with padding, of so many that one may hold."""
        self.forwards += 1
        self.sequences += len(entries)
        self.padded_tokens += padded
        self.busy_seconds += seconds
        for entry in entries:
            self.tokens += entry.tokens
            self.tokens_by_job[entry.job_id] = self.tokens_by_job.pop(entry.job_id, 0) + entry.tokens
        while len(self.tokens_by_job) > REMEMBERED_JOBS:
            self.tokens_by_job.popitem(last=False)

    def snapshot(self, *, queued_tokens: int, queued_jobs: int) -> EngineStatistics:
        """The counters now."""
        return EngineStatistics(
            requests=self.requests,
            refused=self.refusals,
            failed=self.failures,
            sequences=self.sequences,
            forwards=self.forwards,
            tokens=self.tokens,
            padded_tokens=self.padded_tokens,
            queue_seconds=self.queue_seconds,
            busy_seconds=self.busy_seconds,
            uptime_seconds=self.clock() - self.started,
            queued_tokens=queued_tokens,
            queued_jobs=queued_jobs,
            tokens_by_job=dict(self.tokens_by_job),
        )
