"""Chunk alignment: the vectorised form against loops over tokens, on the same drawn contents.

``chunking`` cuts into chunks from byte lengths, ``whole`` begins at token ids and ends at a chunk number for
every token, as training needs it. Each has its loop: a tight one over byte lengths, and the collator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measuring import alternate
from benchmarks.naive.alignment import align_as_collator, align_tightly
from tide_core.alignment.chunks import align_chunks_batch, chunk_ids_per_token

VOCABULARY = 32_000
LONGEST_TOKEN = 8
BYTES_PER_TOKEN = 4.5


@dataclass(frozen=True)
class Side:
    """One tokenisation of all contents: ids, tokens of each content, every id's string and its bytes."""

    ids: np.ndarray
    counts: np.ndarray
    strings: list[str]
    lengths: np.ndarray

    def contents(self) -> list[list[int]]:
        """Ids of each content."""
        ends = np.cumsum(self.counts)[:-1]
        return [part.tolist() for part in np.split(self.ids, ends)]


def draw_sides(contents: int, tokens: int, seed: int = 3) -> tuple[Side, Side]:
    """Two tokenisations of the same contents, about ``tokens`` tokens of 1 to 8 bytes each."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(1, LONGEST_TOKEN + 1, VOCABULARY)
    strings = ["x" * int(size) for size in lengths]
    of_length = [np.flatnonzero(lengths == size) for size in range(LONGEST_TOKEN + 1)]
    total = int(tokens * BYTES_PER_TOKEN)

    def draw_side() -> Side:
        parts = []
        for _ in range(contents):
            sizes = draws.integers(1, LONGEST_TOKEN + 1, total)
            sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), total)) + 1]
            sizes[-1] -= int(sizes.sum()) - total
            parts.append(np.array([draws.choice(of_length[size]) for size in sizes]))
        return Side(np.concatenate(parts), np.array([len(part) for part in parts]), strings, lengths)

    return draw_side(), draw_side()


def whole(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Chunk numbers of all tokens, counted through over all contents."""
    chunks = align_sides(a, b)
    return chunk_ids_per_token(chunks[:, :2], len(a.ids)), chunk_ids_per_token(chunks[:, 2:], len(b.ids))


def align_sides(a: Side, b: Side) -> np.ndarray:
    """Token ranges of all chunks."""
    lengths = np.take(a.lengths, a.ids), np.take(b.lengths, b.ids)
    return align_chunks_batch(lengths[0], a.counts, lengths[1], b.counts)[0]


def collator_loop(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`whole`, content by content and token by token."""
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    first = 0
    for ids_a, ids_b in zip(a.contents(), b.contents(), strict=True):
        chunks_a, chunks_b = align_as_collator(ids_a, ids_b, a.strings, b.strings)
        ours.append(np.array(chunks_a) + first)
        theirs.append(np.array(chunks_b) + first)
        first += chunks_a[-1] + 1
    return np.concatenate(ours), np.concatenate(theirs)


def tight_loop(lengths_a: list[list[int]], lengths_b: list[list[int]]) -> None:
    """As :func:`chunking`, content by content and token by token."""
    for a, b in zip(lengths_a, lengths_b, strict=True):
        align_tightly(a, b)


def measure(*, repeats: int, contents: int = 256, tokens: int = 256) -> dict[str, Any]:
    """Tokens a second (of both sides, on one core) of each way, and the ratios to the loops."""
    a, b = draw_sides(contents, tokens)
    for ours, theirs in zip(whole(a, b), collator_loop(a, b), strict=True):
        assert np.array_equal(ours, theirs), "the loop and the vectorised alignment cut different chunks"
    lengths_a, lengths_b = ([side.lengths[ids].tolist() for ids in side.contents()] for side in (a, b))
    taken = alternate(
        {
            "collator": lambda: collator_loop(a, b),
            "whole": lambda: whole(a, b),
            "tight loop": lambda: tight_loop(lengths_a, lengths_b),
            "chunking": lambda: align_sides(a, b),
        },
        repeats=repeats,
    )
    total = len(a.ids) + len(b.ids)
    return {
        "contents": contents,
        "tokens": total,
        "tokens_per_second": {name: total / spent for name, spent in taken.items()},
        "ratio_to_collator": taken["collator"] / taken["whole"],
        "ratio_to_tight_loop": taken["tight loop"] / taken["chunking"],
    }
