"""Prometheus metrics of the control plane: prefix `tide_`, base units, bounded labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy.ext.asyncio import AsyncSession

from service.jobs import repository as jobs
from service.teachers import repository as teachers
from tide_core.contracts.teacher import PoolState

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


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request; ``route`` is the template, so the label set is bounded."""
    REQUESTS.labels(method, route, str(status)).inc()
    REQUEST_SECONDS.labels(method, route).observe(seconds)


async def exposition(session: AsyncSession) -> bytes:
    """Everything in Prometheus' text format: this process' counters, and what the database holds now."""
    state = CollectorRegistry()
    job_gauge = Gauge("tide_jobs", "Jobs by state.", ("state",), registry=state)
    for job_state, count in (await jobs.count_by_state(session)).items():
        job_gauge.labels(str(job_state)).set(count)
    pool_gauge = Gauge("tide_teachers", "Teacher pools by state.", ("state",), registry=state)
    pools = await teachers.all_pools(session)
    for pool_state in PoolState:
        pool_gauge.labels(str(pool_state)).set(sum(pool.state is pool_state for pool in pools))
    leases = await teachers.live_leases(session)
    Gauge("tide_teacher_leases", "Leases that jobs hold on teachers.", registry=state).set(len(leases))
    _describe_running_jobs(state, await jobs.unfinished(session))
    return generate_latest(REGISTRY) + generate_latest(state)


def _describe_running_jobs(registry: CollectorRegistry, rows: object) -> None:
    """Progress of the jobs that are not finished; a series dies with its job."""
    assert isinstance(rows, list | tuple)
    ratio = Gauge(
        "tide_job_progress_ratio", "Share of the present phase done.", ("job", "phase"), registry=registry
    )
    attempt = Gauge("tide_job_attempt", "Number of the present attempt.", ("job",), registry=registry)
    for job in rows:
        attempt.labels(job.id).set(job.attempt)
        if job.progress and job.progress.get("total"):
            ratio.labels(job.id, job.progress["phase"]).set(job.progress["completed"] / job.progress["total"])
