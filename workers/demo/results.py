"""What the demo found: figures of every model and paired comparisons, from the jobs' own reports."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tide_core.contracts.errors import TideError
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.resources import Job
from tide_core.contracts.states import JobState
from tide_core.studies.statistics import PairedResult, paired_bootstrap
from workers.demo.setting import DemoJob

Columns = Mapping[str, Float64[np.ndarray, " sequence"]]

_BOOTSTRAP_SEED = 0
CONTROL = Variant.NONE


class DemoJobError(TideError):
    """A job of the demo did not succeed."""

    code = "demo_job_failed"


@dataclass(frozen=True)
class TableFigure:
    """One column of the table.

    Attributes:
        title: its heading.
        keys: where a report holds it; the first that is there counts (pipelines name their divergence apart).
        is_lower_better: which way is better.
        numerator, denominator: columns of the per-sequence file; no denominator counts sequences; no
            numerator means that the figure is shown without an interval.
    """

    title: str
    keys: tuple[str, ...]
    is_lower_better: bool
    numerator: str | None = None
    denominator: str | None = None


NELBO = TableFigure("NELBO, nats/token", ("nelbo_per_token",), True, "nll", "tokens")
FIGURES = (
    NELBO,
    TableFigure("NELBO, nats/byte", ("content_nelbo_per_byte",), True),
    TableFigure("masked-token accuracy", ("masked_token_accuracy",), False, "hits", "asked"),
    TableFigure("exact match", ("exact_match",), False, "exact_match"),
    TableFigure("KL to teacher", ("forward_kl_to_teacher", "forward_chunk_kl_to_teacher"), True),
)
COMPARED = tuple(figure for figure in FIGURES if figure.numerator is not None)


@dataclass(frozen=True)
class FinishedJob:
    """A job that succeeded, with its report.

    Attributes:
        demo_job: teacher and variant.
        job: as the service shows it.
        columns: per-sequence sums by `<model>/<column>`; empty when their file cannot be read from here.
    """

    demo_job: DemoJob
    job: Job
    columns: Columns

    @property
    def report(self) -> Mapping[str, Any]:
        """The evaluation's report."""
        return self.job.result or {}


def read_finished(demo_job: DemoJob, job: Job) -> FinishedJob:
    """Read what a job left.

    Raises:
        DemoJobError: it did not succeed; the service's own reason is passed on.
    """
    if job.status is not JobState.SUCCEEDED:
        reason = f"{job.error.message} ({job.error.code})" if job.error else "no reason is known"
        raise DemoJobError(f"The job {job.id} ({demo_job.name}) {job.status}: {reason}")
    path = Path((job.result or {}).get("sequences", ""))
    return FinishedJob(demo_job, job, _read_columns(path) if path.is_file() else {})


def _read_columns(path: Path) -> Columns:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as packed:
        return {name: packed[name] for name in packed.files}


@dataclass(frozen=True)
class TableRow:
    """One model of the table: its figures in the order of `FIGURES`, None where it has none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """A distilled student against its control on the same held-out sequences."""

    variant: Variant
    figure: TableFigure
    result: PairedResult

    @property
    def verdict(self) -> str:
        """`helped`, `hurt`, or `no clear difference` when the interval holds 0."""
        if self.result.low <= 0.0 <= self.result.high:
            return "no clear difference"
        return "helped" if (self.result.difference < 0) == self.figure.is_lower_better else "hurt"


@dataclass(frozen=True)
class PipelineOutcome:
    """All jobs with one teacher."""

    pipeline: Pipeline
    rows: tuple[TableRow, ...]
    comparisons: tuple[Comparison, ...]
    jobs: tuple[FinishedJob, ...]


def group_outcomes(jobs: Sequence[FinishedJob]) -> list[PipelineOutcome]:
    """Group finished jobs by teacher and compare each distilled student with its control."""
    found = []
    for pipeline in Pipeline:
        members = [job for job in jobs if job.demo_job.pipeline is pipeline]
        if members:
            found.append(PipelineOutcome(pipeline, _rows(members), _comparisons(members), tuple(members)))
    return found


def _rows(jobs: Sequence[FinishedJob]) -> tuple[TableRow, ...]:
    ordered = sorted(jobs, key=lambda job: job.demo_job.variant is not CONTROL)
    # Controls leave the baselines out: start and teacher are the same for all jobs of a teacher.
    baselines = next((job for job in jobs if "start" in job.report["models"]), None)
    rows = [] if baselines is None else [_row("start", baselines, "start")]
    for job in ordered:
        variant = job.demo_job.variant
        rows.append(_row("control (none)" if variant is CONTROL else str(variant), job, "student"))
    if baselines is not None and "teacher" in baselines.report["models"]:
        rows.append(_row("teacher", baselines, "teacher"))
    return tuple(rows)


def _row(name: str, job: FinishedJob, model: str) -> TableRow:
    figures: Mapping[str, Any] = job.report["models"][model]
    return TableRow(name, tuple(_value(figures, figure) for figure in FIGURES))


def _value(figures: Mapping[str, Any], figure: TableFigure) -> float | None:
    for key in figure.keys:
        value = figures.get(key)
        if isinstance(value, Mapping):
            return float(value["rate"])
        if value is not None:
            return float(value)
    return None


def _comparisons(jobs: Sequence[FinishedJob]) -> tuple[Comparison, ...]:
    control = next((job for job in jobs if job.demo_job.variant is CONTROL), None)
    if control is None or not control.columns:
        return ()
    return tuple(
        comparison
        for job in jobs
        if job.demo_job.variant is not CONTROL and job.columns
        for comparison in (compare(job, control, figure) for figure in COMPARED)
        if comparison is not None
    )


def compare(job: FinishedJob, control: FinishedJob, figure: TableFigure) -> Comparison | None:
    """Distilled minus control with its paired bootstrap interval; None when either lacks the figure."""
    numerator = f"student/{figure.numerator}"
    if numerator not in job.columns or numerator not in control.columns:
        return None
    weights = None if figure.denominator is None else control.columns[f"student/{figure.denominator}"]
    ours, theirs = job.columns[numerator], control.columns[numerator]
    if weights is not None:
        # A sequence in which this figure asks for nothing says nothing about either model.
        is_asked = weights > 0
        ours, theirs, weights = ours[is_asked], theirs[is_asked], weights[is_asked]
    result = paired_bootstrap(ours, theirs, weights=weights, seed=_BOOTSTRAP_SEED)
    return Comparison(job.demo_job.variant, figure, result)
