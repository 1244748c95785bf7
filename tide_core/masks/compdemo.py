"""CompDemo: show the teacher half of what it is asked about (TIDE, arXiv 2604.26951, CompDemo section).

The masked set M is split into complementary M_A and M_B. The first pass reveals A, masks B and is read at B;
the second the reverse. In a score request the first view's masked tokens carry group 1, the second's group 2,
so B has group 1 and A has group 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.masks.streams import SampleKey, uniforms

if TYPE_CHECKING:
    from torch import Tensor

SPLIT_STREAM = "compdemo"


@overload
def complementary_split(
    is_masked: NDArray[np.bool_], ratio: float, key: SampleKey | tuple[int, int, int] | int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]: ...
@overload
def complementary_split(
    is_masked: Tensor, ratio: float, key: SampleKey | tuple[int, int, int] | int
) -> tuple[Tensor, Tensor]: ...
def complementary_split(is_masked, ratio, key):  # type: ignore[no-untyped-def]
    """Split a masked set in two; every masked element goes to A with probability ``ratio``, else to B.

    The draw of an element depends on its place, not on what else is masked.

    Args:
        is_masked: bool array or tensor of any shape: masked positions (pipeline B) or chunks (pipeline A).
        ratio: ``rho`` in [0, 1].
        key: the sample's key; a bare integer is a seed (epoch 0, sample 0).

    Returns:
        ``(in_a, in_b)`` of the same shape, kind and device: disjoint, together equal to ``is_masked``.

    Raises:
        InvalidInputError: when ``ratio`` is outside [0, 1].
        ShapeError: when ``is_masked`` is not boolean.
    """
    if not 0.0 <= ratio <= 1.0:
        raise InvalidInputError(f"the CompDemo ratio must lie in [0, 1], got {ratio}", param="ratio")
    if str(is_masked.dtype).removeprefix("torch.") != "bool":
        raise ShapeError(f"is_masked must be boolean, got {is_masked.dtype}", param="is_masked")
    seed, epoch, sample_index = (key, 0, 0) if isinstance(key, int) else key
    count = int(np.prod(is_masked.shape, dtype=np.int64))
    draws = uniforms(seed, epoch, sample_index, SPLIT_STREAM, count).reshape(is_masked.shape) < ratio
    if not isinstance(is_masked, np.ndarray):
        import torch

        draws = torch.from_numpy(draws).to(is_masked.device)
    return is_masked & draws, is_masked & ~draws
