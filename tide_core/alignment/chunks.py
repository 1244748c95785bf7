"""Chunks: the smallest groups of whole tokens that begin and end at the same bytes in two tokenisations.

In: the byte lengths of the tokens of two tokenisations of the same texts. Out: chunks, each a range of tokens
on both sides.

Source: TIDE (arXiv 2604.26951), after approximate likelihood matching (ALM, arXiv 2503.20083).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, Int32, Int64

from tide_core.contracts.errors import AlignmentError, ShapeError


@dataclass(frozen=True)
class TokenRuns:
    """Runs of consecutive tokens, one run a content, by the byte offsets of their borders.

    Attributes:
        borders: int64 ``[border]``, for each run the offset of its first token's first byte and then the end
            of each token, non-decreasing inside a run; runs follow each other.
        border_counts: int64 ``[content]``, borders of each run: its tokens plus one, or 0 for an empty run.
        first_tokens: int64 ``[content]``, index of each run's first token in the caller's own numbering.
    """

    borders: Int64[np.ndarray, " border"]
    border_counts: Int64[np.ndarray, " content"]
    first_tokens: Int64[np.ndarray, " content"]


def align_chunks(
    byte_lengths_a: Sequence[int] | Int[np.ndarray, " seq_a"],
    byte_lengths_b: Sequence[int] | Int[np.ndarray, " seq_b"],
) -> Int64[np.ndarray, "chunk 4"]:
    """Cut one content, tokenised twice, into its chunks.

    Args:
        byte_lengths_a: bytes of each token of the first tokenisation, all of the content in order.
        byte_lengths_b: the same for the second.

    Returns:
        int64 ``[chunk, 4]``: (a_start, a_end, b_start, b_end), half-open token ranges. Chunks follow each
        other and cover every token that has bytes; a token of no bytes between two belongs to neither.

    Raises:
        AlignmentError: the two sides do not cover the same number of bytes.
        ShapeError: a negative length.
    """
    counts_a, counts_b = np.array([len(byte_lengths_a)]), np.array([len(byte_lengths_b)])
    chunks, _ = align_chunks_batch(
        np.asarray(byte_lengths_a, dtype=np.int64),
        counts_a,
        np.asarray(byte_lengths_b, dtype=np.int64),
        counts_b,
    )
    return chunks


def align_chunks_batch(
    byte_lengths_a: Int[np.ndarray, " tokens_a"],
    counts_a: Int[np.ndarray, " content_a"],
    byte_lengths_b: Int[np.ndarray, " tokens_b"],
    counts_b: Int[np.ndarray, " content_b"],
) -> tuple[Int64[np.ndarray, "chunk 4"], Int64[np.ndarray, " chunk"]]:
    """Cut many contents at once: as ``align_chunks`` on each, over concatenated tokens.

    Args:
        byte_lengths_a: bytes of the tokens of all contents, one after the other.
        counts_a: tokens of each content.
        byte_lengths_b: the same for the second tokenisation.
        counts_b: tokens of each content there.

    Returns:
        The chunks with token indices into the concatenations, and each chunk's content.

    Raises:
        AlignmentError: a content whose sides do not cover the same bytes (named by its place).
        ShapeError: a negative length, or counts that do not add up.
    """
    totals_a = _content_bytes(byte_lengths_a, counts_a, "byte_lengths_a")
    totals_b = _content_bytes(byte_lengths_b, counts_b, "byte_lengths_b")
    if len(counts_a) != len(counts_b):
        raise ShapeError(f"{len(counts_a)} contents against {len(counts_b)}", param="counts_b")
    differs = np.flatnonzero(totals_a != totals_b)
    if len(differs):
        first = int(differs[0])
        raise AlignmentError(
            f"content {first} covers {totals_a[first]} bytes in the first tokenisation and "
            f"{totals_b[first]} in the second: both must tokenise the same text",
            param="byte_lengths_b",
        )
    return _cut(_whole(byte_lengths_a, counts_a), _whole(byte_lengths_b, counts_b))


def align_runs(
    a: TokenRuns, b: TokenRuns
) -> tuple[Int64[np.ndarray, "chunk 4"], Int64[np.ndarray, " chunk"]]:
    """Cut runs of tokens that need not cover the same bytes: chunks lie where both do.

    The runs of one content are compared by their offsets, which must count from the same origin. This is the
    general form: a token cut off by truncation, or one that straddles an edge, is simply not in its run.

    Returns:
        int64 ``[chunk, 4]`` in the numbering of ``first_tokens``, and each chunk's content.
    """
    shift_a, shift_b = _shifts(a, b)
    return _cut(replace(a, borders=a.borders + shift_a), replace(b, borders=b.borders + shift_b))


def _cut(a: TokenRuns, b: TokenRuns) -> tuple[np.ndarray, np.ndarray]:
    """``align_runs`` for borders that count on: each content has a range of offsets of its own."""
    common_a, common_b = _common(a.borders, b.borders)
    if not len(common_a.starts):
        return np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64)
    content = _contents(common_a.starts, a)
    is_chunk = np.flatnonzero(content[:-1] == content[1:])
    chunks = np.empty((len(is_chunk), 4), dtype=np.int64)
    of_chunk = content[is_chunk]
    for column, runs, common in ((0, a, common_a), (2, b, common_b)):
        # From a border's number to its token's: each earlier run has one border more than it has tokens.
        offset = (runs.first_tokens - np.cumsum(runs.border_counts) + runs.border_counts)[of_chunk]
        # A chunk begins after the last border at its first offset and ends at the first border of its last.
        chunks[:, column] = common.ends[is_chunk] + offset
        chunks[:, column + 1] = common.starts[is_chunk + 1] + offset
    return chunks, of_chunk


def chunk_ids_per_token(ranges: Int[np.ndarray, "chunk 2"], token_count: int) -> Int32[np.ndarray, " seq"]:
    """The number of each token's chunk, -1 where it has none.

    Args:
        ranges: half-open token ranges of the chunks, in order and disjoint.
        token_count: length of the sequence.
    """
    chunks = len(ranges)
    # The sequence from left to right: the gap before each chunk, the chunk, and what is left.
    values = np.full(2 * chunks + 1, -1, dtype=np.int32)
    values[1::2] = np.arange(chunks, dtype=np.int32)
    edges = np.zeros(2 * chunks + 2, dtype=np.int64)
    edges[1:-1] = ranges.ravel()
    edges[-1] = token_count
    return np.repeat(values, np.diff(edges))


@dataclass(frozen=True)
class _Borders:
    """First and last index of each distinct common offset (tokens of no bytes repeat an offset)."""

    starts: Int64[np.ndarray, " common"]
    ends: Int64[np.ndarray, " common"]


def _common(key_a: np.ndarray, key_b: np.ndarray) -> tuple[_Borders, _Borders]:
    """The borders of each side that are borders of the other; a table over all offsets is the fastest way."""
    size = 1 + max(int(key_a[-1]) if len(key_a) else 0, int(key_b[-1]) if len(key_b) else 0)
    is_border_a, is_border_b = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    is_border_a[key_a] = True
    is_border_b[key_b] = True
    return _distinct(np.take(is_border_b, key_a), key_a), _distinct(np.take(is_border_a, key_b), key_b)


def _distinct(is_common: np.ndarray, key: np.ndarray) -> _Borders:
    index = np.flatnonzero(is_common)
    offsets = key[index]
    changes = offsets[1:] != offsets[:-1]
    if changes.all():
        return _Borders(index, index)
    edge = np.ones(1, dtype=np.bool_)
    return _Borders(index[np.concatenate([edge, changes])], index[np.concatenate([changes, edge])])


def _contents(borders: np.ndarray, runs: TokenRuns) -> np.ndarray:
    """The content that each border belongs to."""
    return np.searchsorted(np.cumsum(runs.border_counts), borders, side="right")


def _shifts(a: TokenRuns, b: TokenRuns) -> tuple[np.ndarray, np.ndarray]:
    """For each border what to add to its offset, so that every content has a range of its own."""
    low_a, high_a = _extents(a)
    low_b, high_b = _extents(b)
    is_empty_a, is_empty_b = a.border_counts == 0, b.border_counts == 0
    low = np.where(is_empty_a, low_b, np.where(is_empty_b, low_a, np.minimum(low_a, low_b)))
    high = np.where(is_empty_a, high_b, np.where(is_empty_b, high_a, np.maximum(high_a, high_b)))
    width = high - low + 1
    shift = np.cumsum(width) - width - low
    return np.repeat(shift, a.border_counts), np.repeat(shift, b.border_counts)


def _extents(runs: TokenRuns) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest offset of each run; (0, -1) for an empty one."""
    ends = np.cumsum(runs.border_counts)
    is_empty = runs.border_counts == 0
    # One more border keeps the index of an empty last run inside the array.
    borders = np.concatenate([runs.borders, np.zeros(1, dtype=np.int64)])
    low = np.where(is_empty, 0, borders[ends - runs.border_counts])
    high = np.where(is_empty, -1, borders[ends - 1])
    return low, high


def _whole(byte_lengths: np.ndarray, counts: np.ndarray) -> TokenRuns:
    """Runs of whole contents; the bytes of one follow those of the one before, a step between them."""
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(byte_lengths, dtype=np.int64)])
    content = np.repeat(np.arange(len(counts)), counts + 1)
    borders = np.take(ends, np.arange(len(content)) - content)
    borders += content
    return TokenRuns(borders, counts + 1, np.cumsum(counts) - counts)


def _content_bytes(byte_lengths: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
    if int(counts.sum()) != len(byte_lengths):
        raise ShapeError(
            f"counts add up to {counts.sum()} tokens, {name} has {len(byte_lengths)}", param=name
        )
    if len(byte_lengths) and int(byte_lengths.min()) < 0:
        raise ShapeError(f"{name} holds a negative length", param=name)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(byte_lengths, dtype=np.int64)])
    last = np.cumsum(counts)
    totals: np.ndarray = ends[last] - ends[last - counts]
    return totals
