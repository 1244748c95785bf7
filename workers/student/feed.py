"""From prepared samples to micro-batches: draws, compact layout and the question to the teacher.

A micro-batch is a pure function of (seed, epoch, samples), so one worker or sixteen, before or after a
restart, see the same noise. TIDE (arXiv 2604.26951): corruption, chunk-consistent masking, CompDemo; BD3LM
(arXiv 2503.09573): the block layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt16
from torch import Tensor

from tide_core.contracts.errors import AlignmentError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import CompDemoContext, Pipeline, needs_teacher
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherLease
from tide_core.data.samples import PreparedSample
from tide_core.masks.block_attention import CompactLayout, compact_layout
from tide_core.masks.corruption import Corruption, corrupt, teacher_groups, teacher_groups_shared
from tide_core.masks.streams import SampleKey
from tide_core.objective import ChunkScores, HiddenScores, Normalisers
from tide_core.schedules.noise import CosineNoise, LinearNoise, NoiseSchedule


@dataclass(frozen=True)
class Recipe:
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
    job_id: str = ""
    weight: float = 1.0
    fingerprint: str | None = None


def recipe_for(spec: ResolvedJobSpec, *, job_id: str, lease: TeacherLease | None) -> Recipe:
    """The recipe of a job; without a teacher term, nothing is asked and the masks are the same."""
    pipeline = Pipeline(spec.pipeline)
    context = spec.teacher_context
    want = Want.TARGET_LOG_PROB if pipeline is Pipeline.CROSS_TOKENIZER else Want.HIDDEN
    return Recipe(
        seed=spec.seed,
        noise=noise_schedule(spec),
        min_timestep=spec.noise.min_timestep,
        pipeline=pipeline,
        split=context.ratio if isinstance(context, CompDemoContext) else None,
        block_size=spec.student.block_size,
        layout=Layout(spec.teacher.attention),
        want=want if needs_teacher(spec.objective) else None,
        job_id=job_id,
        weight=lease.job_weight if lease else 1.0,
        fingerprint=lease.fingerprint if lease else None,
    )


def noise_schedule(spec: ResolvedJobSpec) -> NoiseSchedule:
    """The schedule that the spec names."""
    return LinearNoise() if spec.noise.schedule == "linear" else CosineNoise()


@dataclass(frozen=True)
class DrawnSample:
    """A sample with its noise; `groups` is the teacher's side (uint8 [teacher_seq])."""

    sample: PreparedSample
    corruption: Corruption
    groups: UInt8[np.ndarray, " teacher_seq"]


def draw(sample: PreparedSample, epoch: int, recipe: Recipe) -> DrawnSample:
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


@dataclass(frozen=True)
class ChunkMatch:
    """Pipeline A: which chunk each masked student token and each answered teacher token belongs to.

    Attributes:
        masked_chunk: int64 [masked], chunk number within the micro-batch, -1 for none.
        chunk_row: int64 [chunk], batch row of each active chunk.
        answer_chunk: int64 [answers], chunk of each value in the teacher's answer.
    """

    masked_chunk: Int64[Tensor, " masked"]
    chunk_row: Int64[Tensor, " chunk"]
    answer_chunk: Int64[np.ndarray, " answers"]

    def scores(self, response: ScoreResponse | None) -> ChunkScores:
        """Sums of the teacher's token log-probabilities over each chunk (float64 sums of float32 values).

        No response stands for the answer to no question: nothing was masked.

        Raises:
            AlignmentError: the answer has another number of values than the question had masked tokens.
        """
        values = _values(response, self.answer_chunk.size)
        sums = np.bincount(self.answer_chunk, weights=values, minlength=len(self.chunk_row))
        return ChunkScores(
            log_probs=torch.from_numpy(sums).to(self.chunk_row.device, torch.float32),
            masked_chunk=self.masked_chunk,
            chunk_row=self.chunk_row,
        )


@dataclass(frozen=True)
class PositionMatch:
    """Pipeline B: which masked student token each answered teacher token stands for.

    Attributes:
        aligned_masked_index: int64 [aligned], places among the masked tokens.
        answer_row: int64 [aligned], rows of the teacher's answer in that order.
        shared_vocab: ids that mean the same on both sides.
    """

    aligned_masked_index: Int64[Tensor, " aligned"]
    answer_row: Int64[np.ndarray, " aligned"]
    shared_vocab: int

    def scores(self, response: ScoreResponse | None, head: Tensor) -> HiddenScores:
        """The teacher's hidden states beside the frozen head that turns them into logits.

        No response stands for the answer to no question: nothing was masked.

        Raises:
            AlignmentError: the answer has another number of rows than the question had masked tokens.
        """
        values = _values(response, self.answer_row.size, head.shape[1])
        hidden = bfloat16_rows(values, self.answer_row).to(self.aligned_masked_index.device)
        return HiddenScores(
            hidden=hidden.to(head.dtype),
            head=head,
            aligned_masked_index=self.aligned_masked_index,
            shared_vocab=self.shared_vocab,
        )


def bfloat16_rows(
    values: UInt16[np.ndarray, "answers teacher_hidden"], rows: Int64[np.ndarray, " rows"]
) -> Tensor:
    """Rows of a HIDDEN answer as a bfloat16 tensor [rows, teacher_hidden] of its own memory."""
    # Fancy indexing copies: answers are read-only views into shared memory.
    return torch.from_numpy(values[rows].view(np.int16)).view(torch.bfloat16)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward needs, and the question that goes with it.

    Attributes:
        layout: compact layout of the batch.
        input_ids: int64 [batch, kept].
        target_ids: int64 [masked], clean ids at the masked positions.
        masked_row: int64 [masked], batch row of each.
        masked_index: int64 [masked], places in ``hidden.flatten(0, 1)``.
        t: float32 [batch].
        row_maskable: int64 [batch], tokens of each row that may be masked.
        counts: this micro-batch's part of the step's normalisers.
        match: how the teacher's answer maps onto the masked tokens.
        request: None when nothing is asked (no teacher term, or nothing masked).
        tokens: real (not padding) student tokens of the batch, for the throughput.
    """

    layout: CompactLayout
    input_ids: Int64[Tensor, "batch kept"]
    target_ids: Int64[Tensor, " masked"]
    masked_row: Int64[Tensor, " masked"]
    masked_index: Int64[Tensor, " masked"]
    t: Float32[Tensor, " batch"]
    row_maskable: Int64[Tensor, " batch"]
    counts: Normalisers
    match: ChunkMatch | PositionMatch
    request: ScoreRequest | None
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch with its tensors on a device."""
        if device == self.input_ids.device:
            return self
        moved = _moved(self, device)
        return replace(moved, layout=_moved(self.layout, device), match=_moved(self.match, device))


Part = TypeVar("Part", "MicroBatch", "NoisyInputs", CompactLayout, ChunkMatch | PositionMatch)


def _moved(part: Part, device: torch.device) -> Part:
    tensors: dict[str, Any] = {n: v.to(device) for n, v in vars(part).items() if isinstance(v, Tensor)}
    return replace(part, **tensors)


def collate(
    drawn: Sequence[DrawnSample], recipe: Recipe, *, mask_token_id: int, shared_vocab: int
) -> MicroBatch:
    """Put drawn samples into one forward."""
    inputs = noisy_inputs(
        [item.sample.student_ids for item in drawn],
        [item.corruption.is_masked for item in drawn],
        block_size=recipe.block_size,
        mask_token_id=mask_token_id,
    )
    match: ChunkMatch | PositionMatch
    if recipe.pipeline is Pipeline.CROSS_TOKENIZER:
        match = match_chunks(drawn)
    else:
        match = match_positions(drawn, shared_vocab)
    return MicroBatch(
        layout=inputs.layout,
        input_ids=inputs.input_ids,
        target_ids=inputs.target_ids,
        masked_row=inputs.layout.masked_row,
        masked_index=inputs.layout.masked_index,
        t=torch.tensor([item.corruption.t for item in drawn], dtype=torch.float32),
        row_maskable=torch.tensor([item.corruption.maskable_tokens for item in drawn]),
        counts=_counts(drawn),
        match=match,
        request=_request(drawn, recipe) if recipe.want is not None else None,
        tokens=sum(item.sample.student_ids.size for item in drawn),
    )


@dataclass(frozen=True)
class NoisyInputs:
    """Sequences in the compact layout: what the student reads, and the clean tokens at the masked places."""

    layout: CompactLayout
    input_ids: Int64[Tensor, "batch kept"]
    target_ids: Int64[Tensor, " masked"]

    def to(self, device: torch.device) -> NoisyInputs:
        """The same on a device."""
        return replace(_moved(self, device), layout=_moved(self.layout, device))


def noisy_inputs(
    ids: Sequence[Int32[np.ndarray, "..."]],
    masks: Sequence[Bool[np.ndarray, "..."]],
    *,
    block_size: int,
    mask_token_id: int,
) -> NoisyInputs:
    """Lay out sequences of any lengths with their masks."""
    lengths = [row.size for row in ids]
    clean = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    is_masked = np.zeros(clean.shape, dtype=np.bool_)
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        clean[number, : lengths[number]] = row
        is_masked[number, : lengths[number]] = mask
    clean_ids = torch.from_numpy(clean)
    layout = compact_layout(torch.from_numpy(is_masked), torch.tensor(lengths), block_size)
    source = layout.source_position[layout.masked_row, layout.masked_column]
    return NoisyInputs(
        layout, layout.input_ids(clean_ids, mask_token_id), clean_ids[layout.masked_row, source]
    )


def _counts(drawn: Sequence[DrawnSample]) -> Normalisers:
    return Normalisers(
        maskable_tokens=sum(item.corruption.maskable_tokens for item in drawn),
        masked_positions=sum(item.corruption.masked_tokens for item in drawn),
        active_chunks=sum(item.corruption.active_chunks for item in drawn),
        sequences=len(drawn),
    )


def match_chunks(drawn: Sequence[DrawnSample]) -> ChunkMatch:
    """How the answers about a batch's masked chunks map onto its masked student tokens.

    Raises:
        AlignmentError: a masked chunk without a teacher token.
    """
    masked_chunk, chunk_row, answer_chunk = [], [], []
    first = 0
    for row, item in enumerate(drawn):
        sample, noise = item.sample, item.corruption
        assert sample.student_chunk_ids is not None
        assert sample.teacher_chunk_ids is not None
        # One entry more than there are chunks: id -1 reads it.
        number = np.full(noise.is_active_chunk.size + 1, -1, dtype=np.int64)
        number[:-1][noise.is_active_chunk] = first + np.arange(noise.active_chunks)
        masked_chunk.append(number[sample.student_chunk_ids[noise.is_masked]])
        answer_chunk.append(number[sample.teacher_chunk_ids[item.groups > 0]])
        chunk_row.append(np.full(noise.active_chunks, row, dtype=np.int64))
        first += noise.active_chunks
    answered = np.concatenate(answer_chunk)
    if np.unique(answered).size != first:
        raise AlignmentError(
            "A masked chunk has no teacher token: its likelihood does not exist. Prepare the data again.",
            param="teacher_chunk_ids",
        )
    return ChunkMatch(
        torch.from_numpy(np.concatenate(masked_chunk)), torch.from_numpy(np.concatenate(chunk_row)), answered
    )


def match_positions(drawn: Sequence[DrawnSample], shared_vocab: int) -> PositionMatch:
    """How the answers about a batch's masked teacher tokens map onto its masked student tokens."""
    masked_index, answer_row = [], []
    masked_before = answers_before = 0
    for item in drawn:
        assert item.sample.teacher_positions is not None
        at_teacher = item.sample.teacher_positions[item.corruption.is_masked]
        has_teacher = at_teacher >= 0
        rank = np.cumsum(item.groups > 0) - 1
        masked_index.append(masked_before + np.flatnonzero(has_teacher))
        answer_row.append(answers_before + rank[at_teacher[has_teacher]])
        masked_before += at_teacher.size
        answers_before += int((item.groups > 0).sum())
    return PositionMatch(
        torch.from_numpy(np.concatenate(masked_index)),
        np.concatenate(answer_row).astype(np.int64),
        shared_vocab,
    )


def _request(drawn: Sequence[DrawnSample], recipe: Recipe) -> ScoreRequest | None:
    if recipe.want is None:
        return None
    return score_request(
        [(item.sample.teacher_ids, item.groups) for item in drawn],
        layout=recipe.layout,
        want=recipe.want,
        block_size=recipe.block_size,
        job_id=recipe.job_id,
        weight=recipe.weight,
        fingerprint=recipe.fingerprint,
    )


def score_request(
    sequences: Sequence[tuple[Int32[np.ndarray, "..."], UInt8[np.ndarray, "..."]]],
    *,
    layout: Layout,
    want: Want,
    block_size: int,
    job_id: str = "",
    weight: float = 1.0,
    fingerprint: str | None = None,
) -> ScoreRequest | None:
    """One question about pairs of (ids, groups), or None when nothing is masked in any of them."""
    # A sequence without a masked token would cost a forward and answer nothing.
    asked = [(ids, groups) for ids, groups in sequences if groups.any()]
    if not asked:
        return None
    return ScoreRequest(
        token_ids=np.concatenate([ids for ids, _ in asked]).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([groups.size for _, groups in asked])]).astype(np.int64),
        groups=np.concatenate([groups for _, groups in asked]),
        layout=layout,
        want=want,
        block_size=block_size,
        job_id=job_id,
        weight=weight,
        fingerprint=fingerprint,
    )


def _values(response: ScoreResponse | None, expected: int, width: int | None = None) -> np.ndarray:
    shape = (expected,) if width is None else (expected, width)
    if response is None and expected == 0:
        return np.zeros(shape, dtype=np.float32 if width is None else np.uint16)
    if response is None or response.values.shape != shape:
        found = None if response is None else response.values.shape
        raise AlignmentError(
            f"The teacher answered values of shape {found}, expected {shape}.",
            code="answer_mismatch",
            param="values",
        )
    return response.values
