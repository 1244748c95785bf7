"""The objects of the REST interface, for both ends: the control plane fills them in, clients read them.

In: nothing but pydantic and the other contracts. Out: one model for each object that `/v1` answers with, the
page of a list, and the error envelope. Field docstrings are the descriptions in `docs/openapi.json`.

These models ignore unknown fields, since a newer server may send some. The contracts inside them refuse
unknown fields unless they are read with ``extra="ignore"``, as `tide` does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tide_core.contracts.job import JobSpec, TeacherSpec
from tide_core.contracts.objective import ObjectiveTerm, Pipeline, TeacherContext, Variant
from tide_core.contracts.reporting import Coverage
from tide_core.contracts.states import JobState, Phase
from tide_core.contracts.teacher import PoolState

Item = TypeVar("Item", bound=BaseModel)
CheckName = Literal["database", "reconciler", "ray"]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    """Whether a further page follows: ask for it with `after` = `last_id`."""
    first_id: str | int | None = None
    last_id: str | int | None = None


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    """One or two sentences for a person: what is wrong and what to do about it."""
    type: str
    """Kind of the failure: `invalid_request_error`, `authentication_error`, `permission_error`,
    `conflict_error`, `not_found_error` or `server_error`."""
    param: str | None = None
    """Dotted path of the field at fault, if there is one."""
    code: str
    """Stable identifier for programs."""


class ErrorEnvelope(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: ErrorBody


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


class Lease(BaseModel):
    """A job's claim on a pool."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    job_id: str
    replicas: int
    """How many replicas the job asks for; the pool has at least the maximum over its leases."""
    max_replicas: int | None
    """How many the pool may grow to for this job; null: no more than `replicas`."""
    weight: float
    """The job's share in the pool's fair queue."""
    created_at: datetime


class Teacher(BaseModel):
    """A pool of replicas of one teacher, shared by jobs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """Name of the Ray Serve application."""
    object: Literal["teacher"] = "teacher"
    status: PoolState
    message: str | None
    """What Ray Serve says of it, when it is not ready."""
    teacher: TeacherSpec
    fingerprint: str | None
    """Hash over weights, dtype and code that the pool attested last."""
    replicas: int
    """How many replicas are wanted at least."""
    max_replicas: int
    """How many there may be while requests wait too long."""
    ready_replicas: int
    gpus_per_replica: float
    cpus_per_replica: float
    leases: list[Lease]
    created_at: datetime
    last_used_at: datetime


class Dataset(BaseModel):
    """Prepared shards, shared by all jobs that prepare the same thing."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    object: Literal["dataset"] = "dataset"
    content_hash: str
    """Hash of everything that went in: data, tokenizers, templates, lengths."""
    location: str
    rows: int
    held_out_rows: int
    rejected: dict[str, int]
    """Rows left out, by reason."""
    coverage: Coverage
    """How much of the training split's text can be compared."""
    created_at: datetime
    last_used_at: datetime


class Model(BaseModel):
    """A student that a job handed over, in the Hugging Face layout."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    id: str
    object: Literal["model"] = "model"
    job_id: str
    location: str
    step: int
    bytes: int
    created_at: datetime


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing that the control plane needs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: CheckName
    is_ready: bool
    message: str | None = None
    """What is wrong, when it is not ready."""


class Readiness(BaseModel):
    """Whether jobs can be taken and run; the status is 503 unless every check is ready."""

    status: Literal["ready", "not_ready"]
    checks: list[Check]
