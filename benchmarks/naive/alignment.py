"""Chunk alignment token by token in Python.

``align_as_collator`` works as the released collator does: each token's string is turned into bytes character
by character, two pointers walk over both tokenisations, and every token is entered into a dense matrix
``[tokens, chunks]``. ``align_tightly`` is as good as such a loop gets: byte lengths known beforehand, lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tide_core.alignment.bytes import BYTE_ALPHABET


def align_as_collator(
    ids_a: Sequence[int], ids_b: Sequence[int], strings_a: Sequence[str], strings_b: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The number of each token's chunk on both sides.

    Args:
        ids_a: tokens of a content in the first tokenisation.
        ids_b: the same content in the second.
        strings_a: every token of the first vocabulary as a byte-level tokenizer writes it.
        strings_b: of the second.
    """
    pieces_a = [bytes(BYTE_ALPHABET[letter] for letter in strings_a[token]) for token in ids_a]
    pieces_b = [bytes(BYTE_ALPHABET[letter] for letter in strings_b[token]) for token in ids_b]
    width = min(len(ids_a), len(ids_b))
    matrix_a = np.zeros((len(ids_a), width), dtype=np.bool_)
    matrix_b = np.zeros((len(ids_b), width), dtype=np.bool_)
    lengths_a, lengths_b = [len(piece) for piece in pieces_a], [len(piece) for piece in pieces_b]
    for number, (a, b) in enumerate(zip(*align_tightly(lengths_a, lengths_b), strict=True)):
        for token in range(*a):
            matrix_a[token, number] = True
        for token in range(*b):
            matrix_b[token, number] = True
    return matrix_a.argmax(1).tolist(), matrix_b.argmax(1).tolist()


def align_tightly(
    lengths_a: Sequence[int], lengths_b: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The token range of each chunk on both sides, from the tokens' byte lengths (each at least 1)."""
    ranges_a, ranges_b = [], []
    place_a = place_b = start_a = start_b = bytes_a = bytes_b = 0
    while place_a < len(lengths_a) or place_b < len(lengths_b):
        if bytes_a <= bytes_b and place_a < len(lengths_a):
            bytes_a += lengths_a[place_a]
            place_a += 1
        else:
            bytes_b += lengths_b[place_b]
            place_b += 1
        if bytes_a == bytes_b and place_a > start_a and place_b > start_b:
            ranges_a.append((start_a, place_a))
            ranges_b.append((start_b, place_b))
            start_a, start_b = place_a, place_b
    return ranges_a, ranges_b
