"""What a teacher replica exports of its engine: counters as things happen, gauges at every health check."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tide_core.contracts.metrics import TEACHER_METRICS, Metric
from tide_core.queueing.fair_queue import Entry
from workers.reporting.ray_metrics import MetricSink
from workers.teachers.attestation import PROBE_JOB
from workers.teachers.statistics import EngineStatistics, StatisticsRecorder

WINDOW_SECONDS = 60.0
"""Over so long a job's tokens a second are taken."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class TeacherMeter:
    """Gives the metrics of one replica to a sink.

    Args:
        sink: where they go.
        application: name of the pool.
        model: which one it serves.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sink: MetricSink,
        *,
        application: str,
        model: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._labels = (application, model)
        self._clock = clock
        self._is_sound: bool | None = None
        self._served: deque[tuple[float, Mapping[str, int]]] = deque()

    def count(self, metric: Metric, value: float, *labels: str) -> None:
        """Record a metric of this pool."""
        self._sink.record(metric, value, *self._labels, *labels)

    def count_attestation(self, is_sound: bool) -> None:
        """The golden prompts were answered, well or not."""
        self._is_sound = is_sound
        self.count(TEACHER_METRICS.attestations, 1, "passed" if is_sound else "failed")
        self.count(TEACHER_METRICS.is_sound, is_sound)

    def publish(self, statistics: EngineStatistics) -> None:
        """Set the gauges. Called every few seconds: those that are not set again lose their series."""
        if self._is_sound is not None:
            self.count(TEACHER_METRICS.is_sound, self._is_sound)
        self.count(TEACHER_METRICS.queued_tokens, statistics.queued_tokens)
        self.count(TEACHER_METRICS.queued_jobs, statistics.queued_jobs)
        for job_id, rate in self._rates(statistics.tokens_by_job).items():
            self.count(TEACHER_METRICS.job_tokens, rate, job_id)
        for kind, size in memory_in_use().items():
            self.count(TEACHER_METRICS.memory, size, kind)

    def _rates(self, served: Mapping[str, int]) -> dict[str, float]:
        """Tokens a second of the jobs that were served within the window."""
        now = self._clock()
        self._served.append((now, served))
        while len(self._served) > 1 and self._served[1][0] <= now - WINDOW_SECONDS:
            self._served.popleft()
        began, before = self._served[0]
        if now <= began:
            return {}
        # A job that was forgotten meanwhile and came back counts from nothing: its total is then the smaller.
        grown = {
            job: total - (old if (old := before.get(job, 0)) <= total else 0) for job, total in served.items()
        }
        return {job: more / (now - began) for job, more in grown.items() if more and job != PROBE_JOB}


class MeteredRecorder(StatisticsRecorder):
    """Counts for the statistics and for the meter at once; the caller holds the engine's lock."""

    def __init__(self, meter: TeacherMeter) -> None:
        super().__init__()
        self._meter = meter

    def count_answer(self, queue_seconds: float) -> None:
        """See `StatisticsRecorder`."""
        super().count_answer(queue_seconds)
        self._meter.count(TEACHER_METRICS.requests, 1, "answered")
        self._meter.count(TEACHER_METRICS.queue_delay, queue_seconds)

    def count_refusal(self) -> None:
        """See `StatisticsRecorder`."""
        super().count_refusal()
        self._meter.count(TEACHER_METRICS.requests, 1, "refused")

    def count_failure(self) -> None:
        """See `StatisticsRecorder`."""
        super().count_failure()
        self._meter.count(TEACHER_METRICS.requests, 1, "failed")

    def count_forward(
        self, entries: Sequence[Entry[Any]], *, padded: int, budget: int, seconds: float
    ) -> None:
        """See `StatisticsRecorder`."""
        super().count_forward(entries, padded=padded, budget=budget, seconds=seconds)
        content = sum(entry.tokens for entry in entries)
        self._meter.count(TEACHER_METRICS.tokens, content, "content")
        self._meter.count(TEACHER_METRICS.tokens, padded - content, "padding")
        self._meter.count(TEACHER_METRICS.batch_occupancy, padded / budget)
        self._meter.count(TEACHER_METRICS.compute, seconds)


def memory_in_use() -> dict[str, int]:
    """Bytes that this process holds, by kind: resident, and on a GPU what torch allocated and reserved."""
    sizes = {}
    if _STATM.exists():  # Linux alone says it without another package
        sizes["resident"] = int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    if torch.cuda.is_available():
        sizes["gpu_allocated"] = torch.cuda.memory_allocated()
        sizes["gpu_reserved"] = torch.cuda.memory_reserved()
    return sizes
