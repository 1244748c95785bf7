"""From drawn samples to micro-batches: the compact layout (BD3LM, arXiv 2503.09573), and what is asked.

In: samples with their noise. Out: micro-batches as tensors on the host, and the score request that each
needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from torch import Tensor

from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import Layout, ScoreRequest, TopKQuestion, Want
from tide_core.masks.block_attention import CompactLayout, compact_layout
from tide_core.models.reading import ReadPlaces, read_places
from tide_core.models.transfer import to_device
from tide_core.objective.inputs import Normalisers
from tide_core.training.drawing import BatchRecipe, DrawnSample
from tide_core.training.matching import ChunkMatch, PositionMatch, match_chunks, match_positions


@dataclass(frozen=True)
class MicroBatch:
    """What one forward needs, and the question that goes with it.

    Attributes:
        layout: compact layout of the batch.
        input_ids: int64 [batch, kept].
        target_ids: int64 [masked], clean ids at the masked positions.
        masked_row: int64 [masked], batch row of each.
        places: of the masked positions in ``hidden.flatten(0, 1)``.
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
    places: ReadPlaces
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
        moved = _move(self, device)
        return replace(
            moved,
            layout=_move(self.layout, device),
            places=self.places.to(device),
            match=_move(self.match, device),
        )


Part = TypeVar("Part", "MicroBatch", "NoisyInputs", CompactLayout, ChunkMatch | PositionMatch)


def _move(part: Part, device: torch.device) -> Part:
    tensors: dict[str, Any] = {
        n: to_device(v, device) for n, v in vars(part).items() if isinstance(v, Tensor)
    }
    return replace(part, **tensors)


def collate(drawn: Sequence[DrawnSample], recipe: BatchRecipe, *, mask_token_id: int) -> MicroBatch:
    """Put drawn samples into one forward."""
    inputs = noisy_inputs(
        [item.sample.student_ids for item in drawn],
        [item.corruption.is_masked for item in drawn],
        block_size=recipe.block_size,
        mask_token_id=mask_token_id,
    )
    match: ChunkMatch | PositionMatch
    if recipe.pipeline is Pipeline.CROSS_TOKENIZER:
        match = match_chunks(drawn, recipe.begins_pretoken)
    else:
        match = match_positions(drawn, recipe.shared_vocab, recipe.top_k)
    return MicroBatch(
        layout=inputs.layout,
        input_ids=inputs.input_ids,
        target_ids=inputs.target_ids,
        masked_row=inputs.layout.masked_row,
        places=inputs.places,
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
    places: ReadPlaces
    input_ids: Int64[Tensor, "batch kept"]
    target_ids: Int64[Tensor, " masked"]

    def to(self, device: torch.device) -> NoisyInputs:
        """The same on a device."""
        return replace(_move(self, device), layout=_move(self.layout, device), places=self.places.to(device))


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
        layout=layout,
        # Here, on the host: on a device, the number of places would have to be waited for.
        places=read_places(layout.masked_index, *layout.block.shape),
        input_ids=layout.input_ids(clean_ids, mask_token_id),
        target_ids=clean_ids[layout.masked_row, source],
    )


def padding_ratio(batches: Sequence[MicroBatch]) -> float:
    """Share of the student's positions in these forwards that are padding."""
    padding = sum(int(batch.layout.is_padding.sum()) for batch in batches)
    return padding / sum(batch.layout.is_padding.numel() for batch in batches)


def _counts(drawn: Sequence[DrawnSample]) -> Normalisers:
    return Normalisers(
        maskable_tokens=sum(item.corruption.maskable_tokens for item in drawn),
        masked_positions=sum(item.corruption.masked_tokens for item in drawn),
        active_chunks=sum(item.corruption.active_chunks for item in drawn),
        sequences=len(drawn),
    )


def _request(drawn: Sequence[DrawnSample], recipe: BatchRecipe) -> ScoreRequest | None:
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
        top_k=recipe.top_k,
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
    top_k: TopKQuestion | None = None,
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
        top_k=top_k,
    )
