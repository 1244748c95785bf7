"""The batch of the naive arm: padded copies of whole sequences, and attention masks made anew each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tide_core.contracts.scores import FIRST_VIEW, SECOND_VIEW
from tide_core.masks.block_attention import block_attention_mask
from tide_core.training.drawing import DrawnSample


@dataclass(frozen=True)
class NaiveBatch:
    """Drawn samples, padded.

    Attributes:
        x_0, x_t: int64 [batch, student_seq], clean and noisy ids.
        is_masked: bool [batch, student_seq].
        lengths: int64 [batch].
        t: float32 [batch].
        maskable: tokens that may be masked, over the batch.
        active_chunks: over the batch.
        teacher_ids: int64 [batch, teacher_seq].
        teacher_groups: uint8 [batch, teacher_seq], the view that masks each token, 0 for none.
        teacher_lengths: int64 [batch].
        student_chunks, teacher_chunks: int64, active chunk of each masked token within its row, -1 for none
            (pipeline A).
        chunk_counts: active chunks of each row.
        positions: int64 [batch, student_seq], place in the teacher's sequence, -1 for none (pipeline B).
    """

    x_0: Tensor
    x_t: Tensor
    is_masked: Tensor
    lengths: Tensor
    t: Tensor
    maskable: int
    active_chunks: int
    teacher_ids: Tensor
    teacher_groups: Tensor
    teacher_lengths: Tensor
    student_chunks: Tensor
    teacher_chunks: Tensor
    chunk_counts: tuple[int, ...]
    positions: Tensor

    def to(self, device: torch.device) -> NaiveBatch:
        """The same on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **moved)


def naive_batch(drawn: Sequence[DrawnSample], mask_id: int) -> NaiveBatch:
    """Put drawn samples beside each other."""
    clean = _pad([item.sample.student_ids for item in drawn])
    is_masked = _pad([item.corruption.is_masked for item in drawn]).bool()
    student_chunks, teacher_chunks = _active_chunks(drawn)
    return NaiveBatch(
        x_0=clean,
        x_t=clean.masked_fill(is_masked, mask_id),
        is_masked=is_masked,
        lengths=torch.tensor([item.sample.student_ids.size for item in drawn]),
        t=torch.tensor([item.corruption.t for item in drawn], dtype=torch.float32),
        maskable=sum(item.corruption.maskable_tokens for item in drawn),
        active_chunks=sum(item.corruption.active_chunks for item in drawn),
        teacher_ids=_pad([item.sample.teacher_ids for item in drawn]),
        teacher_groups=_pad([item.groups for item in drawn]),
        teacher_lengths=torch.tensor([item.sample.teacher_ids.size for item in drawn]),
        student_chunks=student_chunks,
        teacher_chunks=teacher_chunks,
        chunk_counts=tuple(item.corruption.active_chunks for item in drawn),
        positions=_pad([_positions(item) for item in drawn], -1),
    )


def staircase_mask(lengths: Tensor, seq_len: int, block: int, *, x0_first: bool) -> Tensor:
    """bool [batch, 1, 2 seq, 2 seq]: the block pattern over both copies; padding sees itself alone."""
    pattern = block_attention_mask(seq_len, block, x0_first=x0_first).to(lengths.device)
    is_token = torch.arange(seq_len, device=lengths.device).repeat(2) < lengths[:, None]
    both = is_token[:, None, :] & is_token[:, :, None]
    is_self = torch.eye(2 * seq_len, dtype=torch.bool, device=lengths.device)
    return ((pattern & both) | is_self)[:, None]


def mask_view(ids: Tensor, groups: Tensor, view: int, mask_id: int) -> Tensor:
    """The teacher's input of one view: its own group masked, the other one revealed."""
    return ids.masked_fill(groups == view, mask_id)


def views(groups: Tensor) -> list[int]:
    """The passes that a batch needs: one, or two with complementary masks."""
    return [view for view in (FIRST_VIEW, SECOND_VIEW) if bool((groups == view).any())]


def _pad(rows: Sequence[np.ndarray], filling: int = 0) -> Tensor:
    padded = np.full((len(rows), max(row.size for row in rows)), filling, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : row.size] = row
    return torch.from_numpy(padded)


def _positions(item: DrawnSample) -> np.ndarray:
    positions = item.sample.teacher_positions
    return np.full(item.sample.student_ids.size, -1) if positions is None else positions


def _active_chunks(drawn: Sequence[DrawnSample]) -> tuple[Tensor, Tensor]:
    """Numbers of the active chunks at both sides' tokens, counted anew in each row."""
    ours, theirs = [], []
    for item in drawn:
        sample, is_active = item.sample, item.corruption.is_active_chunk
        number = np.full(is_active.size + 1, -1)
        number[:-1][is_active] = np.arange(int(is_active.sum()))
        none = np.full(sample.teacher_ids.size, -1)
        ours.append(number[_fill_missing(sample.student_chunk_ids, sample.student_ids.size)])
        theirs.append(none if sample.teacher_chunk_ids is None else number[sample.teacher_chunk_ids])
    return _pad(ours, -1), _pad(theirs, -1)


def _fill_missing(chunks: np.ndarray | None, size: int) -> np.ndarray:
    return np.full(size, -1) if chunks is None else chunks
