"""The capacity plan: what a client says of its cluster and data, and what a job would take of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tide_core.contracts.base import Contract
from tide_core.contracts.job import JobSpec
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import Want
from tide_core.contracts.working_sizes import WorkingSizes, working_sizes

KindName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Rate = Annotated[float, Field(gt=0, le=1e21)]
Share = Annotated[float, Field(gt=0, le=1)]


class DeviceKind(Contract):
    """A device as the planner knows it: one GPU, or the CPU cores and the memory of one process."""

    name: KindName
    memory_bytes: int = Field(ge=2**20, le=2**60)
    float32_flops: Rate
    """Peak of a matrix product in float32, floating-point operations a second."""
    bfloat16_flops: Rate
    """The same in bfloat16 or float16, with float32 sums."""
    memory_bandwidth: Rate
    """Bytes a second between the device and its own memory."""
    link_bandwidth: Rate
    """Bytes a second that a process on the device can send to, or take from, processes on other devices."""
    matrix_efficiency: Share = 0.5
    """Share of the peak that the matrix products of a decoder reach."""
    bandwidth_efficiency: Share = 0.8
    """Share of the memory bandwidth that element-wise kernels reach."""
    tile_bandwidth: Rate | None = None
    """Bytes a second through tiles of logits that stay in a CPU's cache; none: as through the memory."""
    dispatch_seconds: float = Field(default=5e-6, ge=0, le=1)
    """Time to start one kernel."""
    is_accelerator: bool = True
    """A GPU: kernels are started ahead, bfloat16 is the default, large batches."""

    @property
    def working_sizes(self) -> WorkingSizes:
        """How much the engine and the loss work on at a time."""
        return working_sizes(is_accelerator=self.is_accelerator)


class DeviceGroup(Contract):
    """A number of devices of one kind."""

    kind: KindName | DeviceKind
    """Name of a kind that the planner knows, or a description of another one."""
    count: int = Field(ge=1, le=65536)


class Cluster(Contract):
    """The devices that a job may use."""

    devices: tuple[DeviceGroup, ...] = Field(min_length=1, max_length=16)


class DataExpectations(Contract):
    """What the data will look like once prepared; the defaults fill every sequence."""

    rows: int | None = Field(default=None, ge=1, le=10**12)
    """Sequences that one epoch visits; without it (and without `max_steps`) the length of the run is unknown.
    """
    student_tokens: int | None = Field(default=None, ge=2, le=131072)
    """Tokens of a student's sequence; default: `data.student_length`."""
    prompt_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of a sequence that is prompt, which is never masked."""
    teacher_tokens_per_token: float = Field(default=1.0, gt=0, le=16)
    """Tokens of the teacher's sequence for each of the student's."""
    tokens_per_chunk: float = Field(default=1.05, ge=1, le=64)
    """Student tokens of an aligned chunk, which are masked together (cross-tokenizer)."""


class PlanRequest(Contract):
    """A job that is not posted yet, and where it would run."""

    spec: JobSpec
    cluster: Cluster
    data: DataExpectations = DataExpectations()
    teacher_config: dict[str, Any] | None = None
    """The teacher's config.json, where its model is neither a folder on the server nor well known."""
    student_config: dict[str, Any] | None = None
    """The student's config.json, under the same condition; a fresh student's is in the spec."""
    simulate: bool = True
    """Also simulate the score path event by event, which finds waiting that averages hide."""

    @model_validator(mode="after")
    def _one_student(self) -> Self:
        if self.student_config is not None and self.spec.student.config is not None:
            raise ValueError("'student_config' and 'spec.student.config' both describe the student: give one")
        return self


class MemoryPart(Contract):
    """One reason why a process needs memory."""

    name: str
    bytes: int


class ProcessMemory(Contract):
    """Memory of one process at its peak."""

    device: tuple[MemoryPart, ...]
    """On the device; on a CPU all of it."""
    host: tuple[MemoryPart, ...]
    """On the host of a GPU; empty on a CPU."""
    device_bytes: int
    host_bytes: int
    available_bytes: int
    """Of the device."""


class ModelFacts(Contract):
    """A model as its config describes it."""

    model_type: str
    source: Literal["folder", "request", "published"]
    """Where the config came from: the folder on the server, the request, or the planner's own table."""
    parameters: int
    active_parameters: int
    """Of those, the ones that multiply each token: without the embedding's table and idle experts."""


class NoiseExpectations(Contract):
    """What the noise leaves to compute, on average over timesteps and masks."""

    student_kept_tokens: float
    """Tokens of a sequence in the compact layout of noisy and clean blocks."""
    student_padded_tokens: float
    """The same with the padding to the longest of the micro-batch."""
    student_masked_tokens: float
    teacher_tokens: float
    """Tokens of a sequence in the teacher's forward, all views, padding included."""
    teacher_masked_tokens: float


class StepCost(Contract):
    """What one optimiser step asks of a role, summed over its processes."""

    flops: float
    """Floating-point operations of matrix products."""
    memory_traffic_bytes: float
    process_seconds: float
    """Seconds a step of one process, when it waits for no answer."""
    limited_by: Literal["compute", "memory_bandwidth", "dispatch", "gradient_exchange"]
    """What takes the largest part of those seconds."""


class Simulated(Contract):
    """The score path, simulated event by event."""

    steps: int
    seconds_per_step: float
    teacher_wait_ratio: float
    """Share of the step in which a trainer waits for the teacher."""
    teacher_busy_ratio: float
    """Share of the time in which a replica computes."""


class Placement(Contract):
    """A number of trainers and of teacher replicas, and how fast they would be."""

    trainers: int
    trainer_kind: str
    teacher_replicas: int
    teacher_kind: str | None
    shares_devices: bool
    """Trainer and replica take turns on the same device."""
    devices: int
    student: StepCost
    teacher: StepCost | None
    wire_bytes_per_step: float
    wire_seconds: float
    """Seconds a step in which the busiest link carries answers and questions."""
    seconds_per_step: float
    teacher_wait_ratio: float
    """Share of the step in which a trainer waits for the teacher, on average."""
    limited_by: Literal["trainer", "teacher", "wire", "latency"]
    tokens_per_second: float
    """Student tokens, all trainers."""
    hours: float | None
    device_hours: float | None
    trainer_memory: ProcessMemory
    teacher_memory: ProcessMemory | None
    simulated: Simulated | None


class Plan(Contract):
    """What a job would take, before anything is spent."""

    object: Literal["job.plan"] = "job.plan"
    pipeline: Pipeline
    want: Want | None
    """What is asked of the teacher at each masked token; none: nothing."""
    wire_bytes_per_masked_token: int
    student: ModelFacts
    teacher: ModelFacts
    noise: NoiseExpectations
    steps: int | None
    asked: Placement | None
    """With the numbers of trainers and replicas in the spec's `resources`; none: they do not fit."""
    best: Placement
    """The fastest that the cluster allows."""
    balanced_replicas_per_trainer: float | None
    """Teacher replicas a trainer at which neither waits for the other, on the devices of `best`."""
    notes: tuple[str, ...]
    """What was assumed, and what stands in the way."""
