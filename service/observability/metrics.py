"""Prometheus metrics of the control plane: prefix `tide_`, base units, bounded labels.

What happens in this process is counted in `REGISTRY`; what the database and the reconciler hold is read at
each scrape (`GAUGES`). Only the jobs that are being worked on have series of their own, so their number is
bounded by `max_active_jobs`. Their label is `job_id`: `job` is Prometheus' own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tide_core.contracts.figures import Figure, gauges
from tide_core.contracts.metrics import Metric

REGISTRY = CollectorRegistry()
COUNTED: dict[str, Metric] = {}
"""What `REGISTRY` holds, by name."""


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    COUNTED[name] = Metric(name, "counter", meaning, labels)
    return Counter(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    COUNTED[name] = Metric(name, "histogram", meaning, labels, buckets)
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


REQUESTS = _counter("tide_http_requests_total", "Requests answered.", "method", "route", "status")
REQUEST_SECONDS = _histogram(
    "tide_http_request_duration_seconds",
    "Time from a request to the end of its answer.",
    "method",
    "route",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
REPORTS = _counter("tide_reports_stored_total", "Reports of workers stored.", "type")
PHASE_SECONDS = _histogram(
    "tide_phase_duration_seconds",
    "Time from the submission of a phase (prepare, train, evaluate) to the report of its end.",
    "phase",
    "outcome",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 10_800, 36_000, 86_400, 259_200, 604_800),
)
LOOK_SECONDS = _histogram(
    "tide_reconciler_look_duration_seconds",
    "Duration of the reconciler's looks at all jobs and pools.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
AUTHENTICATION_FAILURES = _counter(
    "tide_authentication_failures_total",
    "Requests refused for their token: token_missing, token_unknown, token_revoked, token_expired, or "
    "role_not_allowed.",
    "code",
)
ACTIONS = _counter("tide_reconciler_actions_total", "Actions that the reconciler carried out.", "action")


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"tide_{name}", "gauge", meaning, labels)


def _of_job(name: str, meaning: str, *labels: str) -> Metric:
    return _gauge(f"job_{name}", meaning, "job_id", *labels)


def _show(figure: Figure) -> Metric:
    return _of_job(figure.gauge, figure.meaning, *filter(None, [figure.member_label]))


GAUGES: dict[str, Metric] = {
    gauge.name: gauge
    for gauge in (
        _gauge("jobs", "Jobs by state.", "state"),
        _gauge("jobs_failed", "Failed jobs by error code.", "code"),
        _gauge("queue_oldest_age_seconds", "Age of the oldest queued job; 0 without one."),
        _gauge("teachers", "Teacher pools by state.", "state"),
        _gauge("teacher_ready_replicas", "Replicas of a pool that answer.", "application"),
        _gauge("teacher_leases", "Leases that jobs hold on teachers."),
        _gauge("reconciler_is_leader", "1 when this control plane is the one that acts."),
        _gauge("reconciler_look_age_seconds", "Time since the reconciler's last look ended."),
        _gauge(
            "leader_lease_remaining_seconds",
            "Time until the leader's lease runs out, negative once it has.",
            "role",
        ),
        _gauge("leader_lease_fencing", "Fencing number: it rises with every change of the leader.", "role"),
        _gauge("database_connections", "Connections of the pool: in use, or open and idle.", "state"),
        _gauge("database_connections_limit", "Connections that the pool may open."),
        _of_job("progress_ratio", "Share of the present phase done.", "phase"),
        _of_job("eta_seconds", "Time remaining in the present phase.", "phase"),
        _of_job("attempt", "Number of the present attempt."),
        _of_job("phase_age_seconds", "Time since a running phase was submitted.", "phase"),
        _of_job("report_age_seconds", "Time since the worker of a running phase last reported.", "phase"),
        _of_job("step", "Newest optimiser step."),
        *(_show(figure) for _, figure in gauges()),
    )
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class GaugeSample:
    """The value of a gauge in `GAUGES` for one set of label values, in the order of its labels."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request; ``route`` is the template, so the label set is bounded."""
    known = method if method in _METHODS else "other"  # clients may make up as many methods as they like
    REQUESTS.labels(known, route, str(status)).inc()
    REQUEST_SECONDS.labels(known, route).observe(seconds)


def exposition(samples: Iterable[GaugeSample]) -> bytes:
    """Prometheus' text format: this process' counters, and the samples read for this scrape."""
    state = CollectorRegistry()
    gauges = {
        name: Gauge(name, metric.meaning, metric.labels, registry=state) for name, metric in GAUGES.items()
    }
    for sample in samples:
        gauge = gauges[sample.name]
        (gauge.labels(*sample.labels) if sample.labels else gauge).set(sample.value)
    return generate_latest(REGISTRY) + generate_latest(state)
