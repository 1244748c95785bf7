"""Which split a text belongs to: a pure function of the text, so that no teacher ever sees a held-out row."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_BUCKETS = 20


def split_of(text: str) -> Split:
    """The split of a row, known by its identifying text alone.

    One twentieth of all texts is validation, another twentieth test. Since nothing but the text decides,
    the split of a row is the same on every machine and Python version, in pretraining and in the demo.

    Args:
        text: what identifies the row: the qualified name of a function, or the question of a task.

    Returns:
        The name of the split.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"tide-demo").digest()
    bucket = int.from_bytes(digest, "big") % _BUCKETS
    if bucket == 0:
        return "test"
    return "validation" if bucket == 1 else "train"
