"""Jobs as the REST interface shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tide_core.contracts.job import JobSpec
from tide_core.contracts.objective import ObjectiveTerm, Pipeline, TeacherContext, Variant
from tide_core.contracts.states import JobState, Phase


class Shown(BaseModel):
    """Base of response objects: field docstrings become descriptions in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class RepeatableSpec(JobSpec):
    """A resolved spec without the variant's name, which a request does not have beside its terms."""

    pipeline: Literal["cross_tokenizer", "shared_tokenizer"]
    objective: Annotated[tuple[ObjectiveTerm, ...], Field(min_length=1)]
    teacher_context: TeacherContext


class JobError(Shown):
    """Why a job failed."""

    code: str
    message: str


class JobProgress(Shown):
    """How far the present phase is."""

    phase: Phase
    stage: str
    """What is being done, in a word or two."""
    completed: float
    total: float | None = None
    unit: str = "steps"
    eta_seconds: float | None = None
    updated_at: datetime


class JobModel(Shown):
    """The student that a job handed over."""

    id: str
    location: str
    """Folder in the Hugging Face layout."""
    step: int
    bytes: int


class Job(Shown):
    """A distillation job."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: JobState
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    pipeline: Pipeline
    variant: Variant | None
    """The named variant that was asked for, if one was."""
    attempt: int
    """Number of the present attempt, from 1."""
    progress: JobProgress | None
    error: JobError | None
    """Set when `status` is `failed`."""
    teacher: str
    """Id of the teacher pool that the job uses (see `/v1/teachers`)."""
    teacher_fingerprint: str | None
    dataset: str | None
    """Content hash of the prepared data set, once prepared (see `/v1/datasets`)."""
    model: JobModel | None
    """The exported student, once there is one."""
    result: dict[str, Any] | None
    """Report of the evaluation, once done."""
    posted_by: str | None
    """Name of the token that the job was posted with; null while authentication is off."""
    metadata: dict[str, str]
    spec: RepeatableSpec
    """The job spec with every default written out: posting it again repeats the job."""


class Checkpoint(Shown):
    """A training state in storage."""

    id: str
    object: Literal["job.checkpoint"] = "job.checkpoint"
    job_id: str
    attempt: int
    step: int
    location: str
    bytes: int
    is_export: bool
    """True for the final model in the Hugging Face layout."""
    created_at: datetime


class MetricSeries(Shown):
    """One figure over the steps of a job."""

    object: Literal["job.metric_series"] = "job.metric_series"
    name: str
    count: int
    """Points that were stored (in the asked range), before thinning for a plot."""
    steps: list[int]
    values: list[float]


class MetricSeriesList(Shown):
    """The series of a job."""

    object: Literal["list"] = "list"
    job_id: str
    data: list[MetricSeries]
