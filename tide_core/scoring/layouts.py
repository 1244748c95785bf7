"""From sequences with masks to one forward of the teacher: what it sees, and where the answers are read.

TIDE (arXiv 2604.26951): in the cross-tokenizer pipeline the teacher sees one noised sequence a view, in the
shared-tokenizer pipeline a clean copy beside the noisy ones. CompDemo asks for two views. For the
single-sequence layouts the views are two rows of the batch; for the staircase they are two noisy copies
beside one clean copy in the same row, which is exact, since no copy attends to a noisy copy other than
itself. What nothing depends on is left out: unasked views, blocks after the last masked one in the
block-causal layout, and the compact layout of the staircase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tide_core.contracts.scores import (
    FIRST_VIEW,
    SECOND_VIEW,
    STAIRCASES,
    Layout,
    ScoreRequest,
    TopKQuestion,
    Want,
)
from tide_core.masks.block_attention import block_causal_mask, compact_layout_two_views
from tide_core.models.reading import ReadPlaces, read_places
from tide_core.models.transfer import to_device

VIEWS = (FIRST_VIEW, SECOND_VIEW)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of a request.

    Attributes:
        token_ids: int32 [seq], clean ids.
        groups: uint8 [seq], the view that masks each token, 0 for none.
        layout: attention pattern.
        block_size: tokens in a block.
        want: what is read at the masked tokens.
        top_k: what TOP_K asks for.
        is_held: its values are held on the teacher's device, not brought to the host.
    """

    token_ids: npt.NDArray[np.int32]
    groups: npt.NDArray[np.uint8]
    layout: Layout
    block_size: int
    want: Want
    top_k: TopKQuestion | None = None
    is_held: bool = False

    @property
    def masked(self) -> int:
        """How many values the answer holds for this sequence."""
        return int(np.count_nonzero(self.groups))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a sample takes of a forward: ``rows`` rows of ``length`` tokens."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class ForwardInput:
    """One forward of the teacher over several samples of the same layout.

    Attributes:
        input_ids: int64 [batch, seq], noised, padded.
        position_ids: int64 [batch, seq].
        attention_mask: bool [batch, seq] (keys that are not padding) or [batch, 1, seq, seq], or the latter
            as FlexAttention's block mask; None when every token sees every other, which lets the device take
            its fastest attention.
        places: of the masked tokens in the flattened [batch * seq], sample after sample, in the order of
            each sample's tokens.
    """

    input_ids: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"] | Bool[Tensor, "batch 1 seq seq"] | BlockMask | None
    places: ReadPlaces


def samples_of(request: ScoreRequest, *, is_held: bool = False) -> list[Sample]:
    """The sequences of a request, as views into its arrays."""
    bounds = request.offsets.tolist()
    return [
        Sample(
            token_ids=request.token_ids[start:end],
            groups=request.groups[start:end],
            layout=request.layout,
            block_size=request.block_size,
            want=request.want,
            top_k=request.top_k,
            is_held=is_held,
        )
        for start, end in pairwise(bounds)
    ]


def footprint(sample: Sample) -> Footprint:
    """What the sample takes of a forward; no rows when it asks for nothing."""
    if not sample.masked:
        return Footprint(0, 0)
    if sample.layout in STAIRCASES:
        return Footprint(1, _staircase_length(sample))
    views = [view for view in VIEWS if (sample.groups == view).any()]
    return Footprint(len(views), max(_needed_length(sample, view) for view in views))


def forward_input(samples: Sequence[Sample], mask_token_id: int, device: torch.device) -> ForwardInput:
    """The teacher's input for samples that share layout and block size; each must ask for something.

    Args:
        samples: at least one, none without a masked token.
        mask_token_id: the teacher's own mask token.
        device: where the input is wanted; masks, the largest part of it, are made there.
    """
    assert samples
    assert all(sample.masked for sample in samples)
    layout, block_size = samples[0].layout, samples[0].block_size
    assert all((sample.layout, sample.block_size) == (layout, block_size) for sample in samples)
    if layout in STAIRCASES:
        return _staircase_input(samples, mask_token_id, device)
    return _noised_input(samples, mask_token_id, device)


def _needed_length(sample: Sample, view: int) -> int:
    """Tokens that the masked tokens of a view depend on."""
    length = sample.token_ids.size
    if sample.layout is Layout.BIDIRECTIONAL:
        return length
    last_masked = int(np.flatnonzero(sample.groups == view)[-1])
    return min(length, (last_masked // sample.block_size + 1) * sample.block_size)


def _staircase_length(sample: Sample) -> int:
    """Kept tokens of the compact layout: noisy blocks with a mask, clean blocks before the last of them."""
    length, block = sample.token_ids.size, sample.block_size
    kept = last = 0
    for view in VIEWS:
        blocks = np.unique(np.flatnonzero(sample.groups == view) // block)
        if blocks.size:
            kept += int(np.minimum(block, length - blocks * block).sum())
            last = max(last, int(blocks[-1]))
    return kept + last * block


def _noised_input(samples: Sequence[Sample], mask_token_id: int, device: torch.device) -> ForwardInput:
    """One row a sequence and view, noised, without a clean copy."""
    rows = [
        (number, view, _needed_length(sample, view))
        for number, sample in enumerate(samples)
        for view in VIEWS
        if (sample.groups == view).any()
    ]
    seq_len = max(length for _, _, length in rows)
    input_ids = np.zeros((len(rows), seq_len), np.int64)
    row_of: dict[tuple[int, int], int] = {}
    for row, (number, view, length) in enumerate(rows):
        ids, groups = samples[number].token_ids[:length], samples[number].groups[:length]
        input_ids[row, :length] = np.where(groups == view, mask_token_id, ids)
        row_of[number, view] = row
    lengths = [length for _, _, length in rows]
    # Laid out on the host: on a device, the number of reads would have to be waited for.
    index = torch.from_numpy(_noised_places(samples, row_of, seq_len))
    return ForwardInput(
        input_ids=to_device(torch.from_numpy(input_ids), device),
        position_ids=torch.arange(seq_len, device=device).expand(len(rows), seq_len),
        attention_mask=_noised_mask(samples[0], lengths, device),
        places=read_places(index, *input_ids.shape).to(device),
    )


def _noised_mask(sample: Sample, lengths: list[int], device: torch.device) -> Tensor | None:
    seq_len = max(lengths)
    ends = to_device(torch.tensor(lengths), device)
    if sample.layout is Layout.BLOCK_CAUSAL:
        return block_causal_mask(ends, seq_len, sample.block_size)
    if min(lengths) == seq_len:
        return None
    # Padding rows see the real tokens: their outputs are never read, and no row is without a key.
    return torch.arange(seq_len, device=device) < ends[:, None]


def _noised_places(
    samples: Sequence[Sample], row_of: dict[tuple[int, int], int], seq_len: int
) -> npt.NDArray[np.int64]:
    places = []
    for number, sample in enumerate(samples):
        columns = np.flatnonzero(sample.groups)
        first, second = row_of.get((number, FIRST_VIEW), -1), row_of.get((number, SECOND_VIEW), -1)
        rows = np.where(sample.groups[columns] == FIRST_VIEW, first, second)
        places.append(rows * seq_len + columns)
    return np.concatenate(places).astype(np.int64)


def _staircase_input(samples: Sequence[Sample], mask_token_id: int, device: torch.device) -> ForwardInput:
    """One row a sequence: the compact ``[x_tA | x_tB | x_0]``."""
    lengths = torch.tensor([sample.token_ids.size for sample in samples])
    seq_len = int(lengths.max())
    clean = np.zeros((len(samples), seq_len), np.int64)
    groups = np.zeros((len(samples), seq_len), np.uint8)
    for row, sample in enumerate(samples):
        clean[row, : sample.token_ids.size] = sample.token_ids
        groups[row, : sample.groups.size] = sample.groups
    layout = compact_layout_two_views(
        to_device(torch.from_numpy(groups), device),
        to_device(lengths, device),
        samples[0].block_size,
        is_causal=samples[0].layout is Layout.CAUSAL,
    )
    return ForwardInput(
        input_ids=layout.input_ids(to_device(torch.from_numpy(clean), device), mask_token_id),
        position_ids=layout.position_ids,
        attention_mask=layout.attention_pattern,
        places=read_places(layout.masked_index, *layout.block.shape),
    )
