"""How a teacher's answer maps onto the student's masked tokens: by chunks, or position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Float32, Int32, Int64, UInt8
from torch import Tensor

from tide_core.contracts.errors import AlignmentError
from tide_core.contracts.scores import (
    ScoreResponse,
    TensorValues,
    TopKQuestion,
    ValueFormat,
    Values,
    Want,
    value_format,
)
from tide_core.objective.inputs import ChunkBoundaries, ChunkScores, HiddenScores, TopKScores
from tide_core.training.drawing import DrawnSample

VISIBLE_NON_BOUNDARY = math.log(1e-7)
"""Log-probability of a boundary where the next token is seen to begin no pre-token: tiny, but finite."""


@dataclass(frozen=True)
class BoundaryMatch:
    """What follows each active chunk, for ALM's debiasing.

    Attributes:
        student_next: int64 [chunk], which masked student position follows, -1 where none does.
        answer_next: int64 [chunk], row of the teacher's answer for the token that follows, -1 where the
            chunk's view shows it.
        visible_log_probs: float32 [chunk], the log-probability of a boundary where the next token is seen.
        begins_pretoken: bool [vocab], of the student.
    """

    student_next: Int64[np.ndarray, " chunk"]
    answer_next: Int64[np.ndarray, " chunk"]
    visible_log_probs: Float32[np.ndarray, " chunk"]
    begins_pretoken: Bool[np.ndarray, " vocab"]

    def boundaries(self, answered: Float32[np.ndarray, " answers"], device: torch.device) -> ChunkBoundaries:
        """Both sides' boundaries, the teacher's from its answer's second column."""
        teacher = self.visible_log_probs.copy()
        is_asked = self.answer_next >= 0
        teacher[is_asked] = answered[self.answer_next[is_asked]]
        return ChunkBoundaries(
            teacher_log_probs=torch.from_numpy(teacher).to(device),
            student_next=torch.from_numpy(self.student_next).to(device),
            visible_log_probs=torch.from_numpy(self.visible_log_probs).to(device),
            begins_pretoken=torch.from_numpy(self.begins_pretoken).to(device),
        )


@dataclass(frozen=True)
class ChunkMatch:
    """Pipeline A: which chunk each masked student token and each answered teacher token belongs to.

    Attributes:
        masked_chunk: int64 [masked], chunk number within the micro-batch, -1 for none.
        chunk_row: int64 [chunk], batch row of each active chunk.
        answer_chunk: int64 [answers], chunk of each value in the teacher's answer.
        boundary: what follows each chunk, where a term filters chunks.
    """

    masked_chunk: Int64[Tensor, " masked"]
    chunk_row: Int64[Tensor, " chunk"]
    answer_chunk: Int64[np.ndarray, " answers"]
    boundary: BoundaryMatch | None = None

    def scores(self, response: ScoreResponse | None) -> ChunkScores:
        """Sums of the teacher's token log-probabilities over each chunk (float64 sums of float32 values).

        No response stands for the answer to no question: nothing was masked.

        Raises:
            AlignmentError: the answer has another number of values than the question had masked tokens.
        """
        row = () if self.boundary is None else (2,)
        values = _array(response, ValueFormat(np.dtype(np.float32), row), self.answer_chunk.size)
        columns = values if values.ndim == 2 else values[:, None]
        sums = np.bincount(self.answer_chunk, weights=columns[:, 0], minlength=len(self.chunk_row))
        device = self.chunk_row.device
        boundaries = None if self.boundary is None else self.boundary.boundaries(columns[:, 1], device)
        return ChunkScores(
            log_probs=torch.from_numpy(sums).to(device, torch.float32),
            masked_chunk=self.masked_chunk,
            chunk_row=self.chunk_row,
            boundaries=boundaries,
        )


@dataclass(frozen=True)
class PositionMatch:
    """Pipeline B: which masked student token each answered teacher token stands for.

    Attributes:
        aligned_masked_index: int64 [aligned], places among the masked tokens.
        answer_row: int64 [aligned], rows of the teacher's answer in that order.
        shared_vocab: ids that mean the same on both sides.
        top_k: what was asked instead of hidden states, if it was.
    """

    aligned_masked_index: Int64[Tensor, " aligned"]
    answer_row: Int64[np.ndarray, " aligned"]
    shared_vocab: int
    top_k: TopKQuestion | None = None

    def scores(self, response: ScoreResponse | None, head: Tensor | None) -> HiddenScores | TopKScores:
        """The teacher's likeliest ids, or its hidden states beside the frozen head that makes logits of them.

        No response stands for the answer to no question: nothing was masked.

        Raises:
            AlignmentError: the answer has another number of rows than the question had masked tokens.
        """
        if self.top_k is not None:
            return self._top_k_scores(response, self.top_k)
        assert head is not None, "hidden states were asked for without the teacher's head"
        row_format = value_format(Want.HIDDEN, None, head.shape[1])
        values = _values(response, row_format, self.answer_row.size)
        hidden = bfloat16_rows(values, self.answer_row).to(self.aligned_masked_index.device)
        return HiddenScores(
            hidden=hidden.to(head.dtype),
            head=head,
            aligned_masked_index=self.aligned_masked_index,
            shared_vocab=self.shared_vocab,
        )

    def _top_k_scores(self, response: ScoreResponse | None, question: TopKQuestion) -> TopKScores:
        values = _array(response, value_format(Want.TOP_K, question, 0), self.answer_row.size)
        device = self.aligned_masked_index.device
        ids, logits, log_tails = (part.to(device) for part in unpack_top_k(values[self.answer_row], question))
        return TopKScores(
            ids, logits, log_tails, question.temperatures, self.aligned_masked_index, self.shared_vocab
        )


def unpack_top_k(
    values: UInt8[np.ndarray, "answers bytes"], question: TopKQuestion
) -> tuple[Tensor, Tensor, Tensor]:
    """A TOP_K answer: ids (int64), logits and log tails (float32), tensors of their own memory."""
    table = np.ascontiguousarray(values).view(question.row_format)[:, 0]
    return (
        torch.from_numpy(table["ids"].astype(np.int64)),
        torch.from_numpy(table["logits"].astype(np.float32)),
        torch.from_numpy(table["log_tails"].astype(np.float32)),
    )


def bfloat16_rows(
    values: Values | TensorValues, rows: Int64[np.ndarray, " rows"]
) -> BFloat16[Tensor, "rows teacher_hidden"]:
    """Rows of a HIDDEN answer as a bfloat16 tensor [rows, teacher_hidden] of its own memory.

    Where the answer is a tensor, the rows stay on its device.
    """
    if isinstance(values, Tensor):
        return values[torch.from_numpy(rows).to(values.device)]
    assert isinstance(values, np.ndarray)
    # Fancy indexing copies: answers are read-only views into shared memory.
    return torch.from_numpy(values[rows].view(np.int16)).view(torch.bfloat16)


def match_chunks(
    drawn: Sequence[DrawnSample], begins_pretoken: Bool[np.ndarray, " vocab"] | None = None
) -> ChunkMatch:
    """How the answers about a batch's masked chunks map onto its masked student tokens.

    Args:
        drawn: the batch.
        begins_pretoken: of the student's ids; when given, what follows each chunk is matched too.

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
        torch.from_numpy(np.concatenate(masked_chunk)),
        torch.from_numpy(np.concatenate(chunk_row)),
        answered,
        None if begins_pretoken is None else _match_boundaries(drawn, begins_pretoken),
    )


def _match_boundaries(
    drawn: Sequence[DrawnSample], begins_pretoken: Bool[np.ndarray, " vocab"]
) -> BoundaryMatch:
    student_next, answer_next, visible = [], [], []
    masked_before = answers_before = 0
    for item in drawn:
        sample, is_masked, groups = item.sample, item.corruption.is_masked, item.groups
        assert sample.student_chunk_ids is not None
        assert sample.teacher_chunk_ids is not None
        active = np.flatnonzero(item.corruption.is_active_chunk)
        after, is_inside = _following(sample.student_chunk_ids, active)
        rank = np.cumsum(is_masked) - 1
        student_next.append(np.where(is_inside & is_masked[after], masked_before + rank[after], -1))
        # Student and teacher read the same bytes there, so the student's token says it for both.
        is_boundary = ~is_inside | begins_pretoken[sample.student_ids[after]]
        visible.append(np.where(is_boundary, 0.0, VISIBLE_NON_BOUNDARY))
        after, is_inside = _following(sample.teacher_chunk_ids, active)
        # In the view that masks the chunk; a token that only the other view masks is revealed in this one.
        is_asked = is_inside & (groups[after] > 0) & (groups[after] == groups[after - 1])
        rank = np.cumsum(groups > 0) - 1
        answer_next.append(np.where(is_asked, answers_before + rank[after], -1))
        masked_before += int(is_masked.sum())
        answers_before += int((groups > 0).sum())
    return BoundaryMatch(
        np.concatenate(student_next).astype(np.int64),
        np.concatenate(answer_next).astype(np.int64),
        np.concatenate(visible).astype(np.float32),
        begins_pretoken,
    )


def _following(
    chunk_ids: Int32[np.ndarray, " seq"], chunks: Int64[np.ndarray, " chunk"]
) -> tuple[Int64[np.ndarray, " chunk"], Bool[np.ndarray, " chunk"]]:
    """The place after each chunk's last token, and whether the sequence reaches it (else its last place)."""
    places = np.flatnonzero(chunk_ids >= 0)
    last = np.zeros(int(chunk_ids.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(last, chunk_ids[places], places)
    after = last[chunks] + 1
    return np.minimum(after, chunk_ids.size - 1), after < chunk_ids.size


def match_positions(
    drawn: Sequence[DrawnSample], shared_vocab: int, top_k: TopKQuestion | None = None
) -> PositionMatch:
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
        top_k,
    )


def _array(response: ScoreResponse | None, row_format: ValueFormat, expected: int) -> Values:
    values = _values(response, row_format, expected)
    assert isinstance(values, np.ndarray), "only hidden states come as tensors"
    return values


def _values(response: ScoreResponse | None, row_format: ValueFormat, expected: int) -> Values | TensorValues:
    if response is None and expected == 0:
        return row_format.empty()
    shape = (expected, *row_format.row)
    if response is None or response.values.shape != shape:
        found = None if response is None else response.values.shape
        raise AlignmentError(
            f"The teacher answered values of shape {found}, expected {shape}.",
            code="answer_mismatch",
            param="values",
        )
    return response.values
