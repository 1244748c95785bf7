"""Who may attend to whom in block diffusion, and the compact layout, which leaves out what no position needs.

BD3LM (arXiv 2503.09573). The training input is a noisy copy and a clean copy of the same sequence,
``[x_t | x_0]``. A query may attend to a key when

- M_BD: both lie in the same block of the same copy;
- M_OBC: the query is noisy, the key clean, and the key's block strictly earlier;
- M_BC: both are clean and the key's block is not later.

CompDemo in pipeline B puts two noisy copies beside one clean copy, ``[x_tA | x_tB | x_0]``: no copy attends
to a noisy copy other than itself, so one forward gives what two separate forwards would.

**Compact layout** (exact). A noisy block without a masked token contributes nothing and no position attends
to it; a clean block is needed only when some kept noisy block comes later. All else is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tide_core.contracts.errors import InvalidInputError, ShapeError

CLEAN = 0
"""Copy number of the clean copy; noisy copies are 1 and, with two views, 2."""
BLOCK_MASK_FROM = 2048
"""Tokens of a row from which FlexAttention takes over on a GPU. A staircase leaves out half of the tiles at
best; below that the kernel that reads a dense mask has little to lose, and never recompiles for a length."""


def may_attend(
    query_block: Int[Tensor, "..."],
    query_copy: Int[Tensor, "..."],
    key_block: Int[Tensor, "..."],
    key_copy: Int[Tensor, "..."],
) -> Bool[Tensor, "..."]:
    """``M_BD | M_OBC | M_BC`` on broadcastable block and copy numbers (copy 0 is clean, others noisy)."""
    is_block_diagonal = (query_block == key_block) & (query_copy == key_copy)
    is_offset_block_causal = (query_copy != CLEAN) & (key_copy == CLEAN) & (key_block < query_block)
    is_block_causal = (query_copy == CLEAN) & (key_copy == CLEAN) & (key_block <= query_block)
    return is_block_diagonal | is_offset_block_causal | is_block_causal


def block_attention_mask(
    seq_len: int, block_size: int, *, x0_first: bool = False
) -> Bool[Tensor, "two_seq two_seq"]:
    """The full mask of one sequence, True where the row (query) may attend to the column (key).

    Args:
        seq_len: length L of the sequence; the input is 2L long.
        block_size: tokens in a block, counted from token 0; the last block may be shorter.
        x0_first: the input is ``[x_0 | x_t]`` instead of ``[x_t | x_0]``.

    Returns:
        bool ``[2 * seq, 2 * seq]``.

    Raises:
        InvalidInputError: when a size is not positive.
    """
    _require_positive("seq_len", seq_len)
    _require_positive("block_size", block_size)
    blocks = torch.arange(seq_len).div(block_size, rounding_mode="floor").repeat(2)
    copies = torch.tensor([0, 1] if x0_first else [1, 0]).repeat_interleave(seq_len)
    return may_attend(blocks[:, None], copies[:, None], blocks[None, :], copies[None, :])


def bidirectional_mask(lengths: Int[Tensor, " batch"], seq_len: int) -> Bool[Tensor, "batch 1 seq seq"]:
    """Every token attends to every token that is not padding; a padding row attends to itself as well.

    Raises:
        ShapeError: when a length is outside 0 .. ``seq_len``.
    """
    _require_lengths(lengths, seq_len)
    positions = torch.arange(seq_len, device=lengths.device)
    is_key = positions[None, :] < lengths[:, None]
    is_self = torch.eye(seq_len, dtype=torch.bool, device=lengths.device)
    return (is_key[:, None, :] | is_self)[:, None]


def block_causal_mask(
    lengths: Int[Tensor, " batch"], seq_len: int, block_size: int
) -> Bool[Tensor, "batch 1 seq seq"]:
    """M_BC on a single copy: a token attends to its own block and to earlier ones, never to padding.

    Padding rows attend to themselves, so that no row is without a key.

    Raises:
        InvalidInputError: when ``block_size`` is not positive.
        ShapeError: when a length is outside 0 .. ``seq_len``.
    """
    _require_positive("block_size", block_size)
    blocks = torch.arange(seq_len, device=lengths.device).div(block_size, rounding_mode="floor")
    is_self = torch.eye(seq_len, dtype=torch.bool, device=lengths.device)
    return bidirectional_mask(lengths, seq_len) & ((blocks[None, :] <= blocks[:, None]) | is_self)


@dataclass(frozen=True)
class CompactLayout:
    """A batch as the model sees it; the axis ``kept`` holds noisy rows, then clean rows, then padding.

    Attributes:
        source_position: int64 ``[batch, kept]``, position in the source sequence; also the position id.
        copy: int64 ``[batch, kept]``, 0 clean, 1 first noisy view, 2 second noisy view.
        block: int64 ``[batch, kept]``, block number of the source position.
        is_padding: bool ``[batch, kept]``; padding rows attend to themselves only; no row attends to them.
        is_mask_token: bool ``[batch, kept]``, rows that hold the mask token.
        attention_mask: bool ``[batch, 1, kept, kept]``, True where a query may attend to a key.
        masked_row: int64 ``[masked]``, batch row of each masked position, in row-major source order.
        masked_column: int64 ``[masked]``, its place on the axis ``kept``.
        causal_block_size: block size where the copies are in causal order (see :func:`_causal_codes`).
    """

    source_position: Int[Tensor, "batch kept"]
    copy: Int[Tensor, "batch kept"]
    block: Int[Tensor, "batch kept"]
    is_padding: Bool[Tensor, "batch kept"]
    is_mask_token: Bool[Tensor, "batch kept"]
    attention_mask: Bool[Tensor, "batch 1 kept kept"]
    masked_row: Int[Tensor, " masked"]
    masked_column: Int[Tensor, " masked"]
    causal_block_size: int | None = None

    @property
    def position_ids(self) -> Int[Tensor, "batch kept"]:
        """Position ids: both copies of a token carry its position in the sequence."""
        return self.source_position

    @property
    def attention_pattern(self) -> Bool[Tensor, "batch 1 kept kept"] | BlockMask:
        """What a model on this device takes: FlexAttention's block mask for long rows on a GPU, else the
        dense mask.
        """
        if uses_block_mask(self.block.device, self.block.shape[1]):
            return self.block_mask()
        return self.attention_mask

    def may_see(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """``attention_mask`` as a FlexAttention ``mask_mod(batch, head, query, key)``: its value at one place
        from three numbers a token, instead of from a stored matrix.
        """
        order, limit, code, rank = self._codes()

        if rank is None:
            return lambda row, _head, query, key: (
                (order[row, key] < limit[row, query]) | (code[row, key] == code[row, query])
            )
        return lambda row, _head, query, key: (
            (order[row, key] < limit[row, query])
            | ((code[row, key] == code[row, query]) & (rank[row, key] <= rank[row, query]))
        )

    def _codes(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if self.causal_block_size is None:
            return (*_codes(self.block, self.copy, self.is_padding), None)
        numbers = (self.source_position, self.block, self.copy, self.is_padding, self.is_mask_token)
        return _causal_codes(*numbers, block_size=self.causal_block_size)

    def block_mask(self) -> BlockMask:
        """``attention_mask`` as a FlexAttention block mask, which skips the tiles without attention."""
        batch, kept = self.block.shape
        return create_block_mask(
            self.may_see(), B=batch, H=None, Q_LEN=kept, KV_LEN=kept, device=self.block.device
        )

    @property
    def masked_index(self) -> Int[Tensor, " masked"]:
        """Places of the masked positions in ``hidden.flatten(0, 1)`` (row-major over batch and kept)."""
        return self.masked_row * self.source_position.shape[1] + self.masked_column

    def input_ids(
        self, clean_ids: Int[Tensor, "batch student_seq"], mask_token_id: int
    ) -> Int[Tensor, "batch kept"]:
        """Token ids of the layout: the clean ids, with the mask token where the noise put one."""
        return clean_ids.gather(1, self.source_position).masked_fill(self.is_mask_token, mask_token_id)


def compact_layout(
    is_masked: Bool[Tensor, "batch student_seq"],
    lengths: Int[Tensor, " batch"],
    block_size: int,
    *,
    pad_multiple: int = 1,
) -> CompactLayout:
    """The compact form of ``[x_t | x_0]``: the same values at masked positions, fewer tokens.

    Args:
        is_masked: masked positions, none beyond a sequence's length.
        lengths: tokens of each sequence that are not padding.
        block_size: tokens in a block, counted from each sequence's token 0.
        pad_multiple: round ``kept`` up to a multiple of this (fewer distinct shapes for compiled kernels).

    Returns:
        The layout on the device of ``is_masked``; ``kept`` is at least 1 even when nothing is masked.

    Raises:
        InvalidInputError: when a size is not positive.
        ShapeError: when a length is outside the sequence or a masked position lies beyond one.
    """
    return _layout([is_masked], lengths, block_size, pad_multiple, is_compact=True)


def compact_layout_two_views(
    groups: UInt8[Tensor, "batch seq"],
    lengths: Int[Tensor, " batch"],
    block_size: int,
    *,
    pad_multiple: int = 1,
    is_causal: bool = False,
) -> CompactLayout:
    """The compact form of CompDemo's ``[x_tA | x_tB | x_0]`` in the shared-tokenizer pipeline.

    The first noisy copy masks group 1 and reveals group 2, the second the reverse; each masked position is
    read in the copy that masks it. ``masked_row`` and ``masked_column`` list both groups together in source
    order.

    Args:
        groups: 0 visible, 1 masked in the first view, 2 masked in the second.
        lengths, block_size, pad_multiple: as in :func:`compact_layout`.
        is_causal: the copies are in WeDLM's causal order (arXiv 2512.22737): the clean copy is causal, and
            within a noisy block a token sees those before it, where visible tokens come before masked ones.

    Raises:
        InvalidInputError: when a size is not positive.
        ShapeError: when a group is above 2, or as in :func:`compact_layout`.
    """
    if groups.numel() and int(groups.max()) > 2:
        raise ShapeError("groups may hold 0, 1 and 2 only", param="groups")
    views = [groups == 1, groups == 2]
    return _layout(views, lengths, block_size, pad_multiple, is_compact=True, is_causal=is_causal)


def compact_length(is_masked: Bool[np.ndarray, " student_seq"], block_size: int) -> int:
    """Positions that one sequence takes in :func:`compact_layout`, before padding to the longest of a batch.

    Raises:
        InvalidInputError: when the block size is not positive.
    """
    _require_positive("block_size", block_size)
    kept = np.unique(np.flatnonzero(is_masked) // block_size)
    if not kept.size:
        return 0
    noisy = np.minimum(is_masked.size - kept * block_size, block_size).sum()
    return int(noisy + kept[-1] * block_size)


def full_layout(
    is_masked: Bool[Tensor, "batch student_seq"], lengths: Int[Tensor, " batch"], block_size: int
) -> CompactLayout:
    """``[x_t | x_0]`` with nothing left out but padding: the reference that the compact layout must equal.

    Raises:
        InvalidInputError, ShapeError: as in :func:`compact_layout`.
    """
    return _layout([is_masked], lengths, block_size, 1, is_compact=False)


def _layout(
    views: list[Tensor],
    lengths: Tensor,
    block_size: int,
    pad_multiple: int,
    *,
    is_compact: bool,
    is_causal: bool = False,
) -> CompactLayout:
    _require_positive("block_size", block_size)
    _require_positive("pad_multiple", pad_multiple)
    _require_masked_inside(views, lengths)
    batch, seq_len = views[0].shape
    positions = torch.arange(seq_len, device=views[0].device)
    blocks = positions.div(block_size, rounding_mode="floor").expand(batch, -1)
    is_token = positions < lengths[:, None]
    keep = _kept_tokens(views, blocks, is_token) if is_compact else [is_token] * (len(views) + 1)
    order, is_padding = _gather_order(torch.cat(keep, dim=1), pad_multiple)
    source = order % seq_len
    # Parts lie noisy views first; the clean copy, last, has copy number 0.
    copy = (order.div(seq_len, rounding_mode="floor") + 1) % (len(views) + 1)
    block = blocks.gather(1, source)
    is_mask_token = torch.cat([*views, torch.zeros_like(is_token)], dim=1).gather(1, order) & ~is_padding
    masked_row, masked_column = _masked_places(source, is_mask_token)
    attention = (
        _causal_attention(source, block, copy, is_padding, is_mask_token, block_size=block_size)
        if is_causal
        else mark_attention(block, copy, is_padding)
    )
    return CompactLayout(
        source_position=source,
        copy=copy,
        block=block,
        is_padding=is_padding,
        is_mask_token=is_mask_token,
        attention_mask=attention,
        masked_row=masked_row,
        masked_column=masked_column,
        causal_block_size=block_size if is_causal else None,
    )


def _kept_tokens(views: list[Tensor], blocks: Tensor, is_token: Tensor) -> list[Tensor]:
    """Per part of the input, the tokens that something depends on."""
    block_count = int(blocks[0, -1]) + 1
    kept = []
    last_kept = torch.full((blocks.shape[0], 1), -1, dtype=torch.int64, device=blocks.device)
    for is_masked in views:
        masked_in_block = torch.zeros(blocks.shape[0], block_count, dtype=torch.int64, device=blocks.device)
        masked_in_block.scatter_add_(1, blocks, is_masked.long())
        is_kept_block = masked_in_block > 0
        numbers = torch.arange(block_count, device=blocks.device).expand_as(is_kept_block)
        last = numbers.masked_fill(~is_kept_block, -1).amax(dim=1, keepdim=True)
        last_kept = torch.maximum(last_kept, last)
        kept.append(is_kept_block.gather(1, blocks) & is_token)
    return [*kept, (blocks < last_kept) & is_token]


def _gather_order(keep: Tensor, pad_multiple: int) -> tuple[Tensor, Tensor]:
    """Indices of the kept entries of each row in order, padded with index 0, and which are padding."""
    counts = keep.sum(dim=1)
    longest = max(1, int(counts.max()))
    width = -(-longest // pad_multiple) * pad_multiple
    order = torch.argsort(~keep, dim=1, stable=True)
    if width > order.shape[1]:
        order = torch.nn.functional.pad(order, (0, width - order.shape[1]))
    order = order[:, :width]
    is_padding = torch.arange(width, device=keep.device) >= counts[:, None]
    return order.masked_fill(is_padding, 0), is_padding


def _masked_places(source: Tensor, is_mask_token: Tensor) -> tuple[Tensor, Tensor]:
    row, column = is_mask_token.nonzero(as_tuple=True)
    # Within a row the entries are ordered by view first; the masked positions are wanted in source order.
    by_source = torch.argsort(row * (int(source.max()) + 1) + source[row, column], stable=True)
    return row[by_source], column[by_source]


def uses_block_mask(device: torch.device, kept: int) -> bool:
    """Whether rows of this length on this device go through FlexAttention."""
    return device.type == "cuda" and kept >= BLOCK_MASK_FROM


def mark_attention(block: Tensor, copy: Tensor, is_padding: Tensor) -> Tensor:
    """:func:`may_attend` over a batch in two comparisons instead of nine operations on ``[kept, kept]``."""
    order, limit, code = _codes(block, copy, is_padding)
    allowed = order[:, None, :] < limit[:, :, None]
    allowed |= code[:, None, :] == code[:, :, None]
    return allowed[:, None]


def _causal_attention(
    position: Tensor,
    block: Tensor,
    copy: Tensor,
    is_padding: Tensor,
    is_mask_token: Tensor,
    *,
    block_size: int,
) -> Tensor:
    order, limit, code, rank = _causal_codes(
        position, block, copy, is_padding, is_mask_token, block_size=block_size
    )
    allowed = code[:, None, :] == code[:, :, None]
    allowed &= rank[:, None, :] <= rank[:, :, None]
    allowed |= order[:, None, :] < limit[:, :, None]
    return allowed[:, None]


def _causal_codes(
    position: Tensor,
    block: Tensor,
    copy: Tensor,
    is_padding: Tensor,
    is_mask_token: Tensor,
    *,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``order``, ``limit``, ``code`` as in :func:`_codes`, by positions; and a ``rank``: of keys of its own
    code a query sees those of no higher rank.

    A clean query sees the clean keys up to itself, a noisy one those before its block. In a noisy block the
    visible tokens rank first, then the masked ones, each in the order of the sequence.
    """
    is_clean = copy == CLEAN
    beyond = torch.iinfo(torch.int64).max
    order = position.masked_fill(~is_clean | is_padding, beyond)
    limit = torch.where(is_clean, position + 1, block * block_size).masked_fill(is_padding, 0)
    own_place = -1 - torch.arange(block.shape[1], device=block.device)
    code = torch.where(is_padding | is_clean, own_place, block * 4 + copy)
    rank = position + is_mask_token * (int(position.max()) + 1)
    return order, limit, code, rank


def _codes(block: Tensor, copy: Tensor, is_padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``order``, ``limit``, ``code``: a query sees a key of lower order than its limit, or of its own code.

    Clean keys are seen below a limit that depends on the query; keys of the query's own block and copy carry
    the same code. Padding has a code of its own at each place: a row attends to itself alone, since a softmax
    over no key at all is NaN, and NaN times zero stays NaN.
    """
    number = block.int()
    is_clean = copy == CLEAN
    beyond = torch.iinfo(torch.int32).max
    order = number.masked_fill(~is_clean | is_padding, beyond)
    limit = (number + is_clean.int()).masked_fill(is_padding, 0)
    own_place = -1 - torch.arange(block.shape[1], dtype=torch.int32, device=block.device)
    return order, limit, torch.where(is_padding, own_place, number * 4 + copy.int())


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InvalidInputError(f"{name} must be at least 1, got {value}", param=name)


def _require_lengths(lengths: Tensor, seq_len: int) -> None:
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > seq_len):
        raise ShapeError(f"every length must lie in 0 .. {seq_len}", param="lengths")


def _require_masked_inside(views: list[Tensor], lengths: Tensor) -> None:
    batch, seq_len = views[0].shape
    if lengths.shape != (batch,) or batch < 1 or seq_len < 1:
        raise ShapeError(
            f"lengths has shape {tuple(lengths.shape)} for a batch of {batch} x {seq_len}", param="lengths"
        )
    _require_lengths(lengths, seq_len)
    is_beyond = torch.arange(seq_len, device=views[0].device) >= lengths[:, None]
    if any(bool((view & is_beyond).any()) for view in views):
        raise ShapeError("a position beyond its sequence's length is masked", param="is_masked")
