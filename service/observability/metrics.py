"""Prometheus metrics of the control plane: prefix `tide_`, base units, bounded labels.

What happens in this process is counted in `REGISTRY`; what the database and the reconciler hold is read at
each scrape (`GAUGES`). The series of a job die with it: the unfinished jobs bound their number. Their label
is `job_id`: `job` is Prometheus' own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "tide_http_requests_total", "Requests answered.", ("method", "route", "status"), registry=REGISTRY
)
REQUEST_SECONDS = Histogram(
    "tide_http_request_duration_seconds",
    "Time from a request to the end of its answer.",
    ("method", "route"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
REPORTS = Counter("tide_reports_stored_total", "Reports of workers stored.", ("type",), registry=REGISTRY)


@dataclass(frozen=True, slots=True)
class GaugeDescription:
    """A gauge that is read at each scrape: what it means and its labels."""

    meaning: str
    labels: tuple[str, ...] = ()


GAUGES: dict[str, GaugeDescription] = {
    "tide_jobs": GaugeDescription("Jobs by state.", ("state",)),
    "tide_jobs_failed": GaugeDescription("Failed jobs by error code.", ("code",)),
    "tide_queue_oldest_age_seconds": GaugeDescription("Age of the oldest queued job; 0 without one."),
    "tide_teachers": GaugeDescription("Teacher pools by state.", ("state",)),
    "tide_teacher_ready_replicas": GaugeDescription("Replicas of a pool that answer.", ("application",)),
    "tide_teacher_leases": GaugeDescription("Leases that jobs hold on teachers."),
    "tide_reconciler_is_leader": GaugeDescription("1 when this control plane is the one that acts."),
    "tide_reconciler_look_age_seconds": GaugeDescription("Time since the reconciler's last look ended."),
    "tide_database_connections": GaugeDescription(
        "Connections of the pool: in use, or open and idle.", ("state",)
    ),
    "tide_job_progress_ratio": GaugeDescription("Share of the present phase done.", ("job_id", "phase")),
    "tide_job_eta_seconds": GaugeDescription("Expected rest of the present phase.", ("job_id", "phase")),
    "tide_job_attempt": GaugeDescription("Number of the present attempt.", ("job_id",)),
    "tide_job_report_age_seconds": GaugeDescription(
        "Time since the worker of a running phase last reported.", ("job_id", "phase")
    ),
    "tide_job_step": GaugeDescription("Newest optimiser step.", ("job_id",)),
    "tide_job_loss": GaugeDescription(
        'Loss of the newest step, in total (term "total") and by term.', ("job_id", "term")
    ),
    "tide_job_held_out": GaugeDescription("Newest held-out figures.", ("job_id", "figure")),
    "tide_job_mask_ratio": GaugeDescription("Share of the maskable tokens that was masked.", ("job_id",)),
    "tide_job_teacher_trust_ratio": GaugeDescription("Mean lambda of TIDAL (arXiv 2604.26951).", ("job_id",)),
    "tide_job_gradient_norm": GaugeDescription("Norm of the gradient before clipping.", ("job_id",)),
    "tide_job_learning_rate": GaugeDescription("Learning rate of the newest step.", ("job_id",)),
    "tide_job_tokens_per_second": GaugeDescription("Student tokens a second, newest step.", ("job_id",)),
    "tide_job_step_seconds": GaugeDescription("Duration of the newest step.", ("job_id",)),
    "tide_job_teacher_wait_seconds": GaugeDescription("Wait for scores in the newest step.", ("job_id",)),
    "tide_job_feed_wait_seconds": GaugeDescription("Wait for data in the newest step.", ("job_id",)),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a gauge in `GAUGES` for one set of label values, in the order of its labels."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request; ``route`` is the template, so the label set is bounded."""
    REQUESTS.labels(method, route, str(status)).inc()
    REQUEST_SECONDS.labels(method, route).observe(seconds)


def exposition(samples: Iterable[Sample]) -> bytes:
    """Prometheus' text format: this process' counters, and the samples read for this scrape."""
    state = CollectorRegistry()
    gauges = {
        name: Gauge(name, description.meaning, description.labels, registry=state)
        for name, description in GAUGES.items()
    }
    for sample in samples:
        gauge = gauges[sample.name]
        (gauge.labels(*sample.labels) if sample.labels else gauge).set(sample.value)
    return generate_latest(REGISTRY) + generate_latest(state)
