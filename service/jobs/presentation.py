"""From rows to what clients see (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from service.jobs.tables import CheckpointRow, JobRow, MetricRow
from service.models.tables import ModelRow
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.resources import (
    Checkpoint,
    Job,
    JobError,
    JobModel,
    JobProgress,
    MetricSeries,
    RepeatableSpec,
)
from tide_core.contracts.teacher import pool_for


def job_object(job: JobRow, model: ModelRow | None) -> Job:
    """A job with its exported model, if there is one."""
    spec = ResolvedJobSpec.model_validate(job.spec)
    error = None
    if job.error_code is not None:
        error = JobError(code=job.error_code, message=job.error_message or "")
    return Job(
        id=job.id,
        name=job.name,
        status=job.state,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        pipeline=job.pipeline,
        variant=job.variant,
        attempt=job.attempt,
        progress=None if job.progress is None else JobProgress.model_validate(job.progress),
        error=error,
        teacher=pool_for(spec).application,
        teacher_fingerprint=job.teacher_fingerprint,
        dataset=job.prepared_hash,
        model=model_object(model),
        result=job.result,
        posted_by=job.posted_by,
        metadata=spec.metadata,
        spec=RepeatableSpec(**{name: value for name, value in spec if name != "variant"}),
    )


def model_object(row: ModelRow | None) -> JobModel | None:
    """The exported model as a job shows it."""
    if row is None:
        return None
    return JobModel(id=row.id, location=row.location, step=row.step, bytes=row.bytes)


def checkpoint_object(row: CheckpointRow) -> Checkpoint:
    """A checkpoint."""
    return Checkpoint(
        id=row.id,
        job_id=row.job_id,
        attempt=row.attempt,
        step=row.step,
        location=row.location,
        bytes=row.bytes,
        is_export=row.is_export,
        created_at=row.created_at,
    )


def series_objects(rows: Sequence[MetricRow], max_points: int) -> list[MetricSeries]:
    """Series from rows ordered by name and step, each thinned to ``max_points``."""
    series = []
    for name, group in groupby(rows, key=lambda row: row.name):
        points = [(row.step, row.value) for row in group]
        kept = thin(points, max_points)
        series.append(
            MetricSeries(
                name=name,
                count=len(points),
                steps=[step for step, _ in kept],
                values=[value for _, value in kept],
            )
        )
    return series


def thin(points: Sequence[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """At most ``max_points`` of the points, for a plot.

    The first and the last point stay; of each bucket in between, its lowest and its highest: a spike is never
    lost and no value is made up.
    """
    if len(points) <= max_points:
        return list(points)
    inner = points[1:-1]
    buckets = max(1, (max_points - 2) // 2)
    kept = [points[0]]
    for number in range(buckets):
        bucket = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        extremes = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept.extend(sorted(extremes))
    kept.append(points[-1])
    return kept
