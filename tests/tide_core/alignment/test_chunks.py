"""Chunks against an oracle that walks byte by byte, and the speed that vectorising buys."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_core.alignment.chunks import (
    TokenRuns,
    align_chunks,
    align_chunks_batch,
    align_runs,
    chunk_ids_per_token,
)
from tide_core.contracts.errors import AlignmentError, ShapeError


def chunks_byte_by_byte(lengths_a: list[int], lengths_b: list[int]) -> list[tuple[int, int, int, int]]:
    """From the definition: tokens of a byte are joined until both sides end at the same byte."""
    owners_a = [token for token, length in enumerate(lengths_a) for _ in range(length)]
    owners_b = [token for token, length in enumerate(lengths_b) for _ in range(length)]
    assert len(owners_a) == len(owners_b)
    chunks = []
    first = 0
    for byte in range(len(owners_a)):
        is_last = byte + 1 == len(owners_a)
        if is_last or (owners_a[byte] != owners_a[byte + 1] and owners_b[byte] != owners_b[byte + 1]):
            chunks.append((owners_a[first], owners_a[byte] + 1, owners_b[first], owners_b[byte] + 1))
            first = byte + 1
    return chunks


@st.composite
def two_tokenisations(draw: st.DrawFn, smallest: int = 0) -> tuple[list[int], list[int]]:
    total = draw(st.integers(0, 60))

    def cut() -> list[int]:
        cuts = sorted(draw(st.lists(st.integers(0, total), max_size=40, unique=smallest > 0)))
        edges = [0, *cuts, total]
        lengths = [end - start for start, end in pairwise(edges)]
        return [length for length in lengths if length >= smallest]

    return cut(), cut()


@given(two_tokenisations(smallest=1))
def test_chunks_equal_the_oracle(pair: tuple[list[int], list[int]]) -> None:
    a, b = pair
    assert [tuple(row) for row in align_chunks(a, b).tolist()] == chunks_byte_by_byte(a, b)


@given(two_tokenisations())
def test_tokens_without_bytes_join_no_chunk_at_its_edge(pair: tuple[list[int], list[int]]) -> None:
    a, b = pair
    assert [tuple(row) for row in align_chunks(a, b).tolist()] == chunks_byte_by_byte(a, b)


@given(st.lists(two_tokenisations(), max_size=8))
def test_a_batch_is_its_contents_one_by_one(pairs: list[tuple[list[int], list[int]]]) -> None:
    counts = [np.array([len(pair[side]) for pair in pairs], dtype=np.int64) for side in (0, 1)]
    flat = [np.array([n for pair in pairs for n in pair[side]], dtype=np.int64) for side in (0, 1)]
    chunks, content = align_chunks_batch(flat[0], counts[0], flat[1], counts[1])
    expected, owners = [], []
    before_a = before_b = 0
    for number, (a, b) in enumerate(pairs):
        for row in chunks_byte_by_byte(a, b):
            expected.append([row[0] + before_a, row[1] + before_a, row[2] + before_b, row[3] + before_b])
            owners.append(number)
        before_a, before_b = before_a + len(a), before_b + len(b)
    assert chunks.tolist() == expected
    assert content.tolist() == owners


def test_an_example_by_hand() -> None:
    # "don't stop" as don|'t| stop against d|on'|t |sto|p: they meet after "don't" never, so only at the end.
    assert align_chunks([3, 2, 5], [1, 3, 2, 3, 1]).tolist() == [[0, 3, 0, 5]]
    assert align_chunks([3, 2, 5], [1, 2, 2, 5]).tolist() == [[0, 1, 0, 2], [1, 2, 2, 3], [2, 3, 3, 4]]
    assert align_chunks([], []).shape == (0, 4)


def test_sides_that_cover_different_bytes_are_refused() -> None:
    with pytest.raises(AlignmentError, match="content 0 covers 5 bytes"):
        align_chunks([3, 2], [3, 3])
    one = np.array([1])
    with pytest.raises(AlignmentError, match="content 1"):
        align_chunks_batch(np.array([2, 2]), np.array([1, 1]), np.array([2, 3]), np.array([1, 1]))
    with pytest.raises(ShapeError, match="negative"):
        align_chunks([3, -1], [2])
    with pytest.raises(ShapeError, match="add up"):
        align_chunks_batch(np.array([2, 2]), one, np.array([4]), one)
    with pytest.raises(ShapeError, match="contents against"):
        align_chunks_batch(np.array([2, 2]), np.array([1, 1]), np.array([4]), one)


def runs(*pieces: tuple[int, list[int]]) -> TokenRuns:
    """Runs given as (first token, borders)."""
    return TokenRuns(
        np.array([border for _, borders in pieces for border in borders], dtype=np.int64),
        np.array([len(borders) for _, borders in pieces], dtype=np.int64),
        np.array([first for first, _ in pieces], dtype=np.int64),
    )


def test_runs_that_begin_and_end_elsewhere_meet_where_both_are() -> None:
    # The first side lost what stands before byte 4 and the second what follows byte 9.
    a = runs((10, [4, 6, 9, 12]))
    b = runs((20, [0, 2, 6, 8, 9]))
    chunks, content = align_runs(a, b)
    assert chunks.tolist() == [[11, 12, 22, 24]]
    assert content.tolist() == [0]


def test_runs_without_tokens_have_no_chunks_and_disturb_no_others() -> None:
    empty: tuple[int, list[int]] = (0, [])
    for other in (empty, (5, [100, 103])):
        a = runs(other, (7, [-2, 1, 3]), empty, other)
        b = runs(empty, (9, [-2, 1, 3]), other, empty)
        chunks, content = align_runs(a, b)
        assert chunks.tolist() == [[7, 8, 9, 10], [8, 9, 10, 11]]
        assert content.tolist() == [1, 1]
    assert align_runs(runs(empty), runs(empty))[0].shape == (0, 4)
    assert align_runs(runs(), runs())[0].shape == (0, 4)


def test_runs_of_one_content_never_meet_those_of_another() -> None:
    a = runs((0, [0, 5]), (1, [5, 10]))
    b = runs((0, [0, 5]), (1, [5, 10]))
    chunks, content = align_runs(a, b)
    assert chunks.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]]
    assert content.tolist() == [0, 1]


def test_chunk_ids_mark_the_tokens_of_each_chunk() -> None:
    ids = chunk_ids_per_token(np.array([[1, 3], [3, 4], [6, 8]]), 9)
    assert ids.tolist() == [-1, 0, 0, 1, -1, -1, 2, 2, -1]
    assert ids.dtype == np.int32
    assert chunk_ids_per_token(np.zeros((0, 2), dtype=np.int64), 3).tolist() == [-1, -1, -1]


def test_batched_alignment_does_five_million_tokens_a_second() -> None:
    contents = 2000
    draw = np.random.Generator(np.random.Philox(7))
    lengths_a = draw.integers(1, 8, size=(contents, 150))
    lengths_b = []
    for total in lengths_a.sum(axis=1).tolist():
        cuts = np.unique(draw.integers(1, total, size=140))
        lengths_b.append(np.diff(np.concatenate([[0], cuts, [total]])))
    sides = (
        lengths_a.ravel(),
        np.full(contents, 150),
        np.concatenate(lengths_b),
        np.array([*map(len, lengths_b)]),
    )
    times = []
    for _ in range(5):
        start = time.process_time()
        chunks, _ = align_chunks_batch(*sides)
        times.append(time.process_time() - start)
    assert len(chunks) > contents
    assert (len(sides[0]) + len(sides[2])) / min(times) > 5e6
