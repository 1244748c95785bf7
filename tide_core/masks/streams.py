"""Counter-based randomness: the only source of random numbers in Tide.

Every draw is a pure function of (job seed, epoch, sample index, stream name), so a mask is the same on one
worker or sixteen, after a restart, and in every job of a study. Nothing here keeps state between calls.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.errors import InvalidInputError


class SampleKey(NamedTuple):
    """Names one sample in one epoch of one job; with a stream name it fixes a sequence of random numbers."""

    seed: int
    epoch: int
    sample_index: int


def uniforms(seed: int, epoch: int, sample_index: int, stream: str, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on nothing but the arguments.

    The first ``n`` numbers do not depend on ``count``, so a sequence may be padded without changing
    its draws. Streams with different names are independent.

    Args:
        seed: the job's seed, any integer.
        epoch: pass over the data, from 0.
        sample_index: index of the sample in the prepared data set.
        stream: what the numbers are for, such as ``"timestep"``.
        count: how many numbers.

    Returns:
        float64 array of shape ``[count]`` with 53 random bits in each number.

    Raises:
        InvalidInputError: when ``count`` is negative.
    """
    # The top 53 bits by hand: NumPy promises a stable bit stream for Philox, not for Generator.random.
    return (raw_words(seed, epoch, sample_index, stream, count) >> np.uint64(11)).astype(
        np.float64
    ) * 2.0**-53


def raw_words(seed: int, epoch: int, sample_index: int, stream: str, count: int) -> NDArray[np.uint64]:
    """Random 64-bit words of the same stream that :func:`uniforms` reads, as uint64 ``[count]``."""
    if count < 0:
        raise InvalidInputError(f"cannot draw {count} numbers; give a count of 0 or more", param="count")
    words = np.random.Philox(key=_stream_key(seed, epoch, sample_index, stream)).random_raw(count)
    return np.asarray(words, dtype=np.uint64).reshape(count)


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order in which an epoch visits its ``count`` samples, the same on every worker.

    Returns:
        int64 array ``[count]`` holding each of 0 .. count - 1 once.

    Raises:
        InvalidInputError: when ``count`` is negative.
    """
    words = raw_words(seed, epoch, 0, "data-order", count)
    return np.argsort(words, kind="stable").astype(np.int64)


def _stream_key(seed: int, epoch: int, sample_index: int, stream: str) -> int:
    """128-bit Philox key. The integers are written out in decimal, so any size and sign is distinct."""
    name = f"{int(seed)}/{int(epoch)}/{int(sample_index)}/{stream}".encode()
    return int.from_bytes(blake2b(name, digest_size=16, person=b"tide-stream-1").digest(), "little")
