"""Which metrics of teachers there are: declared once, exported by the replicas, documented from here.

Names begin with `tide_`, units are base units, a job's id is a label only where the series ends with the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus shows it; a counter's ends in `_total`.
        kind: of Prometheus' types.
        meaning: one sentence.
        labels: their names, in the order in which values are given.
        buckets: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert self.name.startswith("tide_"), self.name
        assert self.name.endswith("_total") == (self.kind == "counter"), self.name
        assert bool(self.buckets) == (self.kind == "histogram"), self.name

    @property
    def series(self) -> tuple[str, ...]:
        """Names of the series that Prometheus stores."""
        return tuple(self.name + suffix for suffix in _SUFFIXES[self.kind])


_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "counter": ("",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class TeacherMetrics:
    """What a replica of a teacher pool exports through Ray. All carry the labels `POOL_LABELS` first."""

    requests: Metric
    queue_delay: Metric
    batch_occupancy: Metric
    tokens: Metric
    compute: Metric
    attestations: Metric
    is_sound: Metric
    queued_tokens: Metric
    queued_jobs: Metric
    job_tokens: Metric
    memory: Metric

    def __iter__(self) -> Iterator[Metric]:
        return (getattr(self, name) for name in self.__slots__)


POOL_LABELS = ("application", "model")
"""The pool's Serve application, and which model it serves."""


def _of_pool(name: str, kind: Kind, meaning: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"tide_teacher_{name}", kind, meaning, (*POOL_LABELS, *labels), buckets)


TEACHER_METRICS = TeacherMetrics(
    requests=_of_pool(
        "requests_total",
        "counter",
        "Score requests by outcome: answered, refused (the queue was full) or failed.",
        "outcome",
    ),
    queue_delay=_of_pool(
        "queue_delay_seconds",
        "histogram",
        "Time from a request to its first forward. Ray rebuilds the sum from the buckets' middles.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    batch_occupancy=_of_pool(
        "batch_occupancy_ratio",
        "histogram",
        "Tokens of a forward, padding included, over the most that one may hold; a long sequence exceeds 1.",
        buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2),
    ),
    tokens=_of_pool(
        "tokens_total", "counter", "Tokens that went through forwards: content or padding.", "kind"
    ),
    compute=_of_pool("compute_seconds_total", "counter", "Time in forwards."),
    attestations=_of_pool(
        "attestations_total", "counter", "Rounds of golden prompts by result: passed or failed.", "result"
    ),
    is_sound=_of_pool(
        "is_sound", "gauge", "1 while the replica's last golden prompts were answered well, else 0."
    ),
    queued_tokens=_of_pool("queued_tokens", "gauge", "Tokens that wait in the replica's queue."),
    queued_jobs=_of_pool("queued_jobs", "gauge", "Jobs with something waiting in the replica's queue."),
    job_tokens=_of_pool(
        "job_tokens_per_second",
        "gauge",
        "Tokens a second that the replica computed for a job over the last minute; a job that asks nothing "
        "any more has no series.",
        "job_id",
    ),
    memory=_of_pool(
        "memory_bytes",
        "gauge",
        "Memory of a replica: resident, and on a GPU what torch allocated and what it reserved.",
        "kind",
    ),
)
