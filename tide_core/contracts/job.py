"""The job spec: what a user posts, and what it becomes once every default is resolved.

In: the JSON of `POST /v1/jobs`. Out: a validated `JobSpec`, and by `resolve` a `ResolvedJobSpec`.

``JobSpec`` is the request. ``resolve`` fills in what depends on other fields (variant -> terms, pipeline,
automatic architectures), giving a ``ResolvedJobSpec`` that is stored with the job and reproduces it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tide_core.contracts.base import Contract
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.families import AttentionName, find_family, teacher_types
from tide_core.contracts.objective import (
    CompDemoContext,
    FullContext,
    ObjectiveTerm,
    Pipeline,
    TeacherContext,
    Variant,
    check_terms,
    expand_variant,
    needs_teacher,
)

Location = Annotated[str, StringConstraints(min_length=1, max_length=1024, strip_whitespace=True)]
"""A folder, a URL that fsspec understands, or a Hugging Face name."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantisation = Literal["none", "int8", "int4"]
if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = Literal["auto", *teacher_types()]


class TeacherSpec(Contract):
    """The frozen model that is asked for scores."""

    model: Location
    """Folder, URL or hub name of a checkpoint in the Hugging Face layout (safetensors only)."""
    revision: str | None = None
    """Hub revision; must be given for hub names in production, so that a job can be repeated."""
    architecture: Architecture = "auto"
    """Which adapter loads it; `auto` reads `model_type` in its config.json."""
    dtype: Dtype = "auto"
    """Precision of the served weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    quantisation: Quantisation = "none"
    """Hold the weights of linear layers and experts in 8 or 4 bits (8.5 or 4.5 with their scales), to fit a
    smaller device. Answers change: it is another teacher; docs/quantised-teachers.md says by how much."""
    compile: bool = False
    """Compile the teacher's layers (`torch.compile`): a replica takes minutes longer to start and answers
    faster, most of all on a GPU; on a CPU it needs a C++ compiler."""
    attention: Literal["auto", AttentionName] = "auto"
    """What it may see; `auto`: `bidirectional` across tokenizers, `block_staircase` in a shared one, and for
    a family that knows neither its own (docs/model-families.md)."""
    top_k: int | None = Field(default=None, ge=1, le=65536)
    """Ask for the k likeliest tokens and the mass of all others instead of hidden states: some 6 k bytes a
    token, and the trainer needs no copy of the teacher's LM head. An approximation of the terms of the
    shared-tokenizer pipeline; docs/sparse-scores.md says how good."""


class StudentSpec(Contract):
    """The block-diffusion model to train: from a checkpoint, or fresh from a config."""

    model: Location | None = None
    """Checkpoint to start from: a block-diffusion student or a causal Qwen3 / Qwen2 / Llama model."""
    revision: str | None = None
    config: dict[str, Any] | None = None
    """A model config (the fields of config.json) to initialise a fresh student; excludes `model`."""
    tokenizer: Location | None = None
    """Tokenizer folder; needed with `config`, else the model's own."""
    add_mask_token: bool = False
    """Add a mask token (and an embedding row) where the tokenizer has none."""
    block_size: int = Field(default=32, ge=1, le=1024)
    """Tokens per diffusion block."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either 'model' (a checkpoint) or 'config' (a fresh student), not both")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a fresh student ('config') needs 'tokenizer', the folder of its tokenizer")
        return self


class TemplateOptions(Contract):
    """Options handed to the chat templates of both sides."""

    enable_thinking: bool = False
    """Qwen3's switch; false renders an empty think block."""
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further variables for the template."""


class DataSource(Contract):
    """One weighted source of rows."""

    location: Location
    """Path or glob of JSONL / JSON / Parquet, any fsspec URL, or a Hugging Face data set name."""
    format: Literal["auto", "jsonl", "json", "parquet", "hub"] = "auto"
    split: str = "train"
    """Split of a hub data set, or the stem of the file in a folder that holds one file a split."""
    name: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    rows: Literal["auto", "messages", "prompt_response", "text"] = "auto"
    """How a row is read: chat messages, a prompt and a response, or plain text."""
    messages_field: str = "messages"
    prompt_field: str = "prompt"
    response_field: str = "response"
    text_field: str = "text"
    weight: float = Field(default=1.0, gt=0)
    """Share relative to the other sources: 0.5 keeps every second row, 2 visits every row twice an epoch."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many rows."""


class HeldOut(Contract):
    """What is never trained on and is used to measure."""

    sources: tuple[DataSource, ...] = ()
    """Held-out sources of their own; empty: a share of the training rows is set aside."""
    fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the rows (by hash of their content) set aside when `sources` is empty."""
    limit: int = Field(default=512, ge=0)
    """At most so many sequences are evaluated."""


class DataSpec(Contract):
    """Where the conversations come from and how they are cut."""

    sources: tuple[DataSource, ...] = Field(min_length=1)
    held_out: HeldOut = HeldOut()
    template: TemplateOptions = TemplateOptions()
    student_length: int = Field(default=512, ge=2, le=131072)
    """Longest student sequence in tokens, a multiple of the block size."""
    teacher_length: int | None = Field(default=None, ge=2, le=131072)
    """Longest teacher sequence in tokens; default 1024 across tokenizers, 768 in a shared one."""


class NoiseSpec(Contract):
    """The forward process: how timesteps and masks are drawn (MDLM, BD3LM)."""

    schedule: Literal["linear", "cosine"] = "linear"
    min_timestep: float = Field(default=1e-3, gt=0, lt=0.5)
    """Smallest timestep drawn (eps)."""


DEFAULT_EPOCHS = 10.0
"""Passes over the data where a job names neither these nor its steps; the paper's."""


class Hyperparameters(Contract):
    """The optimiser and the length of the run; defaults are the paper's."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; default 10 when `max_steps` is not given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; excludes `epochs`."""
    global_batch_size: int = Field(default=64, ge=1)
    """Sequences per optimiser step, over all workers and micro-batches."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Sequences per forward on one worker, at most. A worker's part of a step is sorted by length first, so
    that the sequences of a forward need little padding; the loss of a step does not depend on it."""
    micro_batch_tokens: int | None = Field(default=None, ge=2)
    """Positions per forward on one worker, padding and the clean copy included, at most; at least twice
    `data.student_length`. Bounds memory by what a forward really holds, so that `micro_batch_size` may be
    large: many short sequences share a forward, few long ones do."""
    learning_rate: float = Field(default=5e-5, gt=0)
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    gradient_clip_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast of the student; `auto` is bfloat16 where the device computes in it, float32 elsewhere."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the student's layers (`torch.compile`); the first step takes minutes, later ones less."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either 'epochs' or 'max_steps', not both")
        return self

    def count_steps(self, rows_per_epoch: int) -> int:
        """Optimiser steps of the whole run, over this many sequences in one pass."""
        if self.max_steps is not None:
            return self.max_steps
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * rows_per_epoch / self.global_batch_size - 1e-9))


class Resources(Contract):
    """What the job may take of the cluster."""

    student_workers: int = Field(default=1, ge=1, le=4096)
    """Data-parallel trainers."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    cpus_per_worker: float = Field(default=1, gt=0)
    threads_per_worker: int | None = Field(default=None, ge=1)
    """Intra-op threads of a trainer; default: its CPUs, at least one."""
    teacher_replicas: int = Field(default=1, ge=1, le=1024)
    """Replicas of the teacher while the job uses it; of several jobs on a pool the largest number counts."""
    teacher_replicas_max: int | None = Field(default=None, ge=1, le=1024)
    """The pool grows up to so many while score requests wait too long, and shrinks again when they do not;
    none: it keeps to `teacher_replicas`."""
    gpus_per_teacher: float = Field(default=0, ge=0)
    cpus_per_teacher: float = Field(default=1, gt=0)
    teacher_share: float = Field(default=1.0, gt=0, le=1000)
    """Weight of this job in the pool's fair queue, relative to the other jobs on the same teacher."""
    sharding: Literal["none", "fsdp"] = "none"
    """How the student lies on the trainers: whole on each, or in parts (FSDP2) where weights, gradients and
    moments, 16 bytes a parameter, do not fit one GPU. States and exports are the same files either way."""
    prefetch_steps: int = Field(default=2, ge=0, le=64)
    """Steps of score requests kept in flight ahead of the trainer."""
    score_cache: bool = True
    """Keep the teacher's answers on the trainer's disk, so that another job with the same teacher, data, seed
    and masks (another objective over the same data, say) does not ask again. `TIDE_SCORE_CACHE_BYTES` in the
    workers' environment bounds it (default 8 GiB; 0 turns it off)."""
    tensor_transport: Literal["object_store", "nixl"] = Field(
        default="object_store",
        # Workers of running jobs may be of the version before, which refuses fields that it does not know.
        exclude_if=lambda transport: transport == "object_store",
    )
    """How a teacher's hidden states reach the trainers: through Ray's object store in the memory of the
    hosts, or with `nixl` straight from the teacher's device to the trainer's (Ray Direct Transport). `nixl`
    needs the extra `nixl` on all workers and `score_cache: false`, and serves the shared-tokenizer pipeline
    without `teacher.top_k`, where answers are large. docs/teacher-pools.md says when it helps."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Tries that the job's own failures may use up; the platform's failures do not count."""

    @model_validator(mode="after")
    def _parts_have_places(self) -> Self:
        if self.sharding == "fsdp" and self.student_workers < 2:
            raise ValueError(
                "sharding 'fsdp' splits the student over trainers: raise student_workers to 2 or more, or "
                "use sharding 'none'"
            )
        if self.sharding == "fsdp" and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                "sharding 'fsdp' needs a whole GPU a trainer (gpus_per_worker 1), or none at all (0)"
            )
        return self

    @model_validator(mode="after")
    def _tensors_are_not_cached(self) -> Self:
        if self.tensor_transport == "nixl" and self.score_cache:
            raise ValueError(
                "tensor_transport 'nixl' keeps the teacher's answers off the trainers' hosts, score_cache "
                "writes them to the hosts' disks: set score_cache to false, or use tensor_transport "
                "'object_store'"
            )
        return self

    @model_validator(mode="after")
    def _room_to_grow(self) -> Self:
        most = self.teacher_replicas_max
        if most is not None and most < self.teacher_replicas:
            raise ValueError(
                f"teacher_replicas_max ({most}) is below teacher_replicas ({self.teacher_replicas}): "
                "raise it, or leave it out"
            )
        return self


class CheckpointPolicy(Contract):
    """When the trainer saves, and what is kept."""

    every_steps: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1, le=100)
    """Newest checkpoints kept besides the export."""


class ExactMatchTask(Contract):
    """Held-out prompts whose sampled answer must equal the reference."""

    source: DataSource
    limit: int = Field(default=128, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    group_field: str | None = None
    """Column that names the task of a row, to report one figure a task."""


class EvaluationSpec(Contract):
    """What is measured on the held-out split, during training and at the end."""

    enabled: bool = True
    every_steps: int | None = Field(default=None, ge=1)
    """Held-out NELBO during training; none: only at the end."""
    timesteps: int = Field(default=8, ge=1, le=256)
    """Timesteps a sequence in the NELBO's stratified estimate."""
    teacher_kl: bool = True
    """Measure the divergence from the teacher too (takes the teacher's pool for the evaluation)."""
    baselines: bool = True
    """Measure the start and the teacher beside the student."""
    exact_match: ExactMatchTask | None = None


class JobSpec(Contract):
    """A distillation job as a user asks for it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    teacher: TeacherSpec
    student: StudentSpec
    pipeline: Literal["auto", "cross_tokenizer", "shared_tokenizer"] = "auto"
    """`auto` compares the tokenizers: shared when the student's content ids mean the same to the teacher."""
    objective: Variant | Annotated[tuple[ObjectiveTerm, ...], Field(min_length=1)]
    """A named variant, or a list of terms that are summed."""
    teacher_context: TeacherContext | None = None
    """What the teacher sees; default: the variant's, else `full`."""
    noise: NoiseSpec = NoiseSpec()
    data: DataSpec
    hyperparameters: Hyperparameters = Hyperparameters()
    resources: Resources = Resources()
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every timestep, mask and split of the job is a function of this and of counters."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Up to 16 labels of the user's own."""
    allow_unsupported: bool = False
    """Run combinations that the method does not define, as an experiment."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.data.student_length % self.student.block_size:
            raise ValueError(
                f"data.student_length ({self.data.student_length}) must be a multiple of "
                f"student.block_size ({self.student.block_size})"
            )
        return self

    @model_validator(mode="after")
    def _any_sequence_fits_a_micro_batch(self) -> Self:
        tokens, longest = self.hyperparameters.micro_batch_tokens, 2 * self.data.student_length
        if tokens is not None and tokens < longest:
            raise ValueError(
                f"hyperparameters.micro_batch_tokens ({tokens}) must be at least {longest}: a sequence of "
                f"data.student_length ({self.data.student_length}) takes a noisy and a clean copy"
            )
        return self


class ResolvedJobSpec(JobSpec):
    """A job spec with nothing left to decide: what runs, and what a manifest needs to repeat it."""

    pipeline: Literal["cross_tokenizer", "shared_tokenizer"]
    objective: Annotated[tuple[ObjectiveTerm, ...], Field(min_length=1)]
    teacher_context: TeacherContext
    variant: Variant | None = None
    """The named variant that was asked for, if one was."""


def resolve(spec: JobSpec, *, pipeline: Pipeline, teacher_architecture: str | None = None) -> ResolvedJobSpec:
    """Fill in every default that depends on other fields.

    Args:
        spec: the request.
        pipeline: what the two tokenizers allow, or what the user asked for.
        teacher_architecture: `model_type` found in the teacher's config, for `architecture: auto`.

    Raises:
        InvalidInputError: the objective does not fit the pipeline (see `check_terms`),
            ``top_k_pipeline_mismatch`` or ``tensor_transport_mismatch``.
    """
    variant = spec.objective if isinstance(spec.objective, Variant) else None
    if isinstance(spec.objective, Variant):
        terms, context = expand_variant(spec.objective, pipeline)
    else:
        terms, context = spec.objective, FullContext()
    check_terms(terms, pipeline, allow_unsupported=spec.allow_unsupported)
    _check_top_k(spec.teacher, pipeline)
    _check_tensor_transport(spec, pipeline, asks_teacher=needs_teacher(terms))
    cross = pipeline is Pipeline.CROSS_TOKENIZER
    architecture = teacher_architecture or spec.teacher.architecture
    attention = _resolve_attention(spec.teacher, architecture, is_cross=cross)
    teacher = spec.teacher.model_copy(update={"architecture": architecture, "attention": attention})
    _check_attention(teacher)
    data = spec.data.model_copy(
        update={"teacher_length": spec.data.teacher_length or (1024 if cross else 768)}
    )
    hyper = spec.hyperparameters
    if hyper.epochs is None and hyper.max_steps is None:
        hyper = hyper.model_copy(update={"epochs": DEFAULT_EPOCHS})
    values = dict(spec) | {
        "pipeline": pipeline.value,
        "objective": terms,
        "teacher_context": spec.teacher_context or context,
        "variant": variant,
        "teacher": teacher,
        "data": data,
        "hyperparameters": hyper,
    }
    return ResolvedJobSpec(**values)


def _check_attention(teacher: TeacherSpec) -> None:
    family = find_family(teacher.architecture)
    if family is not None and teacher.attention not in family.attention:
        raise InvalidInputError(
            f"Teachers of the family {family.title} do not support the attention {teacher.attention!r}; they "
            f"support {', '.join(family.attention)}.",
            code="attention_not_supported",
            param="teacher.attention",
        )


def _check_top_k(teacher: TeacherSpec, pipeline: Pipeline) -> None:
    if teacher.top_k is not None and pipeline is Pipeline.CROSS_TOKENIZER:
        raise InvalidInputError(
            "teacher.top_k approximates distributions over a shared vocabulary; across tokenizers the "
            "teacher sends one exact number a token. Leave it out.",
            code="top_k_pipeline_mismatch",
            param="teacher.top_k",
        )


def _check_tensor_transport(spec: JobSpec, pipeline: Pipeline, *, asks_teacher: bool) -> None:
    if spec.resources.tensor_transport == "object_store":
        return
    if pipeline is Pipeline.CROSS_TOKENIZER:
        answer = "across tokenizers the teacher sends one number a token"
    elif spec.teacher.top_k is not None:
        answer = "with teacher.top_k the teacher sends the likeliest ids"
    elif not asks_teacher:
        answer = "no term of this objective asks the teacher"
    else:
        return
    raise InvalidInputError(
        f"resources.tensor_transport '{spec.resources.tensor_transport}' carries hidden states, but "
        f"{answer}. Leave it out.",
        code="tensor_transport_mismatch",
        param="resources.tensor_transport",
    )


def _resolve_attention(teacher: TeacherSpec, architecture: str, *, is_cross: bool) -> str:
    if teacher.attention != "auto":
        return teacher.attention
    usual: AttentionName = "bidirectional" if is_cross else "block_staircase"
    family = find_family(architecture)
    return usual if family is None or usual in family.attention else family.attention[0]


def views(context: FullContext | CompDemoContext) -> int:
    """How many noised views of a sequence the teacher answers for: 2 with CompDemo, else 1."""
    return 2 if isinstance(context, CompDemoContext) else 1
