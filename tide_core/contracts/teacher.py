"""A teacher as the control plane, the pool and the trainers refer to it."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal

from pydantic import Field

from tide_core.contracts.base import Contract
from tide_core.contracts.job import Quantisation, ResolvedJobSpec, TeacherSpec
from tide_core.contracts.objective import Pipeline, filters_chunks, needs_teacher
from tide_core.contracts.scores import Want
from tide_core.contracts.states import Phase

TEACHER_DEPLOYMENT = "teacher"
"""Name of the Serve deployment inside a teacher's application."""
TEACHER_PREFIX = "teacher-"
"""How the name of a teacher's application begins."""
QUANTISATION_BITS = {"int8": 8, "int4": 4}
"""Bits that a quantised weight takes, without the scale of its group."""
QUANTISATION_GROUP = 32
"""Weights that share a scale of 16 bits."""


def bits_per_weight(quantisation: Quantisation) -> float:
    """Bits that a weight takes together with its share of a scale; `none` has no number of its own.

    Raises:
        KeyError: `none`.
    """
    return QUANTISATION_BITS[quantisation] + 16 / QUANTISATION_GROUP


class PoolState(StrEnum):
    """Where a teacher's pool stands."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    STOPPED = "stopped"


class TeacherPool(Contract):
    """One Serve application: a teacher with everything that decides its answers and its placement.

    Jobs whose pools have the same ``application`` share it.
    """

    teacher: TeacherSpec
    replicas: int = Field(ge=1)
    gpus_per_replica: float = Field(ge=0)
    cpus_per_replica: float = Field(gt=0)

    @property
    def application(self) -> str:
        """Name of the Serve application, a function of the teacher alone (not of its size)."""
        # Without defaults: a field that a later version adds must not rename the pools that run.
        fields = self.teacher.model_dump_json(exclude_defaults=True)
        digest = hashlib.blake2b(fields.encode(), digest_size=6).hexdigest()
        return f"{TEACHER_PREFIX}{digest}"


def pool_for(spec: ResolvedJobSpec) -> TeacherPool:
    """The pool that a job's teacher belongs to.

    The attention pattern and the number of ids travel with each request, so they do not split pools.
    """
    teacher = spec.teacher.model_copy(update={"attention": "auto", "top_k": None})
    return TeacherPool(
        teacher=teacher,
        replicas=spec.resources.teacher_replicas,
        gpus_per_replica=spec.resources.gpus_per_teacher,
        cpus_per_replica=spec.resources.cpus_per_teacher,
    )


class TeacherLease(Contract):
    """What a trainer holds while it may ask a pool: where it is and what it must answer as."""

    application: str
    deployment: str = TEACHER_DEPLOYMENT
    job_weight: float = Field(default=1.0, gt=0)
    replicas: int = Field(default=1, ge=1)
    """How many the job asked for; with several, a question that is late is put to a second one too."""
    fingerprint: str | None = None
    """Fingerprint the pool attested; answers with another one are refused. None until attested."""


class TeacherDescription(Contract):
    """What a replica says of itself once its weights are loaded and attested."""

    fingerprint: str
    """Hash over weights, dtype, quantisation and code version."""
    tokenizer_fingerprint: str
    architecture: str
    vocab_size: int
    hidden_size: int
    mask_token_id: int
    parameters: int
    dtype: Literal["float32", "bfloat16", "float16"]
    quantisation: Quantisation = "none"
    device: str
    weight_bytes: int


def phase_needs_teacher(spec: ResolvedJobSpec, phase: Phase) -> bool:
    """Whether a phase of this job asks the teacher for scores, and therefore holds a lease."""
    match phase:
        case Phase.PREPARE:
            return False
        case Phase.TRAIN:
            return needs_teacher(spec.objective)
        case Phase.EVALUATE:
            return spec.evaluation.enabled and (spec.evaluation.teacher_kl or spec.evaluation.baselines)


def want_of(spec: ResolvedJobSpec) -> Want | None:
    """What a job's trainers ask of the teacher; None: nothing."""
    if not needs_teacher(spec.objective):
        return None
    if Pipeline(spec.pipeline) is Pipeline.CROSS_TOKENIZER:
        return Want.TARGET_AND_BOUNDARY if filters_chunks(spec.objective) else Want.TARGET_LOG_PROB
    return Want.HIDDEN if spec.teacher.top_k is None else Want.TOP_K
