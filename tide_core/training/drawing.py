"""What decides a micro-batch, and the noise of one sample.

Everything is a pure function of (seed, epoch, sample), so one worker or sixteen, before or after a restart,
see the same noise. TIDE (arXiv 2604.26951): corruption, chunk-consistent masking, CompDemo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from tide_core.contracts.errors import AlignmentError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import CompDemoContext, Pipeline, temperatures
from tide_core.contracts.scores import Layout, TopKQuestion, Want
from tide_core.contracts.teacher import TeacherLease, want_of
from tide_core.data.samples import PreparedSample
from tide_core.masks.corruption import Corruption, corrupt, teacher_groups, teacher_groups_shared
from tide_core.masks.streams import SampleKey
from tide_core.schedules.noise import NoiseSchedule, noise_schedule


@dataclass(frozen=True)
class BatchRecipe:
    """Everything beside the samples that decides a micro-batch.

    Attributes:
        seed: the job's.
        noise: schedule of the forward process.
        min_timestep: smallest timestep drawn.
        pipeline: how student and teacher correspond.
        split: CompDemo's ratio, None for a single view.
        block_size: tokens in a block.
        layout: what the teacher may see.
        want: what is asked of the teacher; None: nothing.
        shared_vocab: ids that mean the same to student and teacher (pipeline B).
        top_k: how many ids are asked for, with the want TOP_K.
        begins_pretoken: which of the student's ids do, with the want TARGET_AND_BOUNDARY.
        job_id, weight, fingerprint: go into each request.
    """

    seed: int
    noise: NoiseSchedule
    min_timestep: float
    pipeline: Pipeline
    split: float | None
    block_size: int
    layout: Layout
    want: Want | None
    shared_vocab: int = 0
    top_k: TopKQuestion | None = None
    begins_pretoken: Bool[np.ndarray, " vocab"] | None = None
    job_id: str = ""
    weight: float = 1.0
    fingerprint: str | None = None


def recipe_for(
    spec: ResolvedJobSpec,
    *,
    job_id: str,
    lease: TeacherLease | None,
    shared_vocab: int = 0,
    begins_pretoken: Bool[np.ndarray, " vocab"] | None = None,
) -> BatchRecipe:
    """The recipe of a job; without a teacher term, nothing is asked and the masks are the same."""
    context = spec.teacher_context
    want = want_of(spec)
    return BatchRecipe(
        seed=spec.seed,
        noise=noise_schedule(spec.noise.schedule),
        min_timestep=spec.noise.min_timestep,
        pipeline=Pipeline(spec.pipeline),
        split=context.ratio if isinstance(context, CompDemoContext) else None,
        block_size=spec.student.block_size,
        layout=Layout(spec.teacher.attention),
        want=want,
        shared_vocab=shared_vocab,
        top_k=_top_k_question(spec, shared_vocab) if want is Want.TOP_K else None,
        begins_pretoken=begins_pretoken if want is Want.TARGET_AND_BOUNDARY else None,
        job_id=job_id,
        weight=lease.job_weight if lease else 1.0,
        fingerprint=lease.fingerprint if lease else None,
    )


def _top_k_question(spec: ResolvedJobSpec, shared_vocab: int) -> TopKQuestion:
    assert spec.teacher.top_k is not None
    return TopKQuestion(min(spec.teacher.top_k, shared_vocab), shared_vocab, temperatures(spec.objective))


@dataclass(frozen=True)
class DrawnSample:
    """A sample with its noise; `groups` is the teacher's side (uint8 [teacher_seq])."""

    sample: PreparedSample
    corruption: Corruption
    groups: UInt8[np.ndarray, " teacher_seq"]


def draw(sample: PreparedSample, epoch: int, recipe: BatchRecipe) -> DrawnSample:
    """Draw timestep, masks and views of one sample in one epoch."""
    key = SampleKey(recipe.seed, epoch, sample.sample_index)
    corruption = corrupt(
        sample.labels,
        sample.student_chunk_ids,
        key=key,
        noise=recipe.noise,
        min_t=recipe.min_timestep,
    )
    if sample.student_chunk_ids is not None and sample.teacher_chunk_ids is not None:
        groups = teacher_groups(
            corruption,
            student_chunk_ids=sample.student_chunk_ids,
            teacher_chunk_ids=sample.teacher_chunk_ids,
            split=recipe.split,
        )
    elif sample.teacher_positions is not None:
        groups = teacher_groups_shared(
            corruption, sample.teacher_positions, sample.teacher_ids.size, recipe.split
        )
    else:
        raise AlignmentError(
            f"Sample {sample.sample_index} is aligned neither by chunks nor by positions: prepare the data "
            "again.",
            param="teacher_positions",
        )
    return DrawnSample(sample, corruption, groups)
