"""The forward process: which tokens of a sample are masked, for the student and for its teacher.

NumPy only. TIDE (arXiv 2604.26951), corruption and chunk-consistent masking; MDLM (arXiv 2406.07524). One
timestep a sequence, uniform in [min_t, 1); every maskable token (label other than -100) is masked
independently with probability ``1 - alpha(t)``. All draws come from the sample's own counter streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.contracts.labels import IGNORED_LABEL, NO_CHUNK
from tide_core.contracts.scores import FIRST_VIEW, SECOND_VIEW
from tide_core.masks.compdemo import complementary_split
from tide_core.masks.streams import SampleKey, uniforms
from tide_core.schedules.noise import NoiseSchedule

TIMESTEP_STREAM = "timestep"
MASK_STREAM = "mask"


@dataclass(frozen=True)
class Corruption:
    """One sample's noise.

    Attributes:
        key: where the draws came from; the CompDemo split uses it again.
        t: diffusion timestep in [min_t, 1).
        is_masked: bool ``[student_seq]``, tokens replaced by the mask token.
        is_active_chunk: bool ``[chunk]``, masked chunks without a label of -100 (empty without chunks).
        maskable_tokens: number of tokens whose label is not -100.
        token_mask_rate: masked / maskable tokens; above ``1 - alpha(t)`` with chunk-consistent masking, and
            0 when nothing is maskable.
    """

    key: SampleKey
    t: float
    is_masked: NDArray[np.bool_]
    is_active_chunk: NDArray[np.bool_]
    maskable_tokens: int
    token_mask_rate: float

    @property
    def masked_tokens(self) -> int:
        """Number of masked positions, ``|M|``."""
        return int(self.is_masked.sum())

    @property
    def active_chunks(self) -> int:
        """Number of active chunks."""
        return int(self.is_active_chunk.sum())


def corrupt(
    labels: NDArray[np.integer],
    chunk_ids: NDArray[np.integer] | None = None,
    *,
    key: SampleKey,
    noise: NoiseSchedule,
    min_t: float = 1e-3,
) -> Corruption:
    """Draw the timestep and the mask of one sample.

    With ``chunk_ids``, masking is chunk-consistent: a chunk with one masked token is masked whole. A chunk
    that touches a label of -100 can never be masked whole, so it is never active and forces nothing.

    Args:
        labels: integers ``[student_seq]``; -100 marks tokens that are not trained and never masked.
        chunk_ids: integers ``[student_seq]``, the chunk of each token, -1 for none.
        key: names the sample; the same key gives the same corruption everywhere.
        noise: the noise schedule.
        min_t: smallest timestep, in (0, 1).

    Raises:
        InvalidInputError: when ``min_t`` is outside (0, 1).
        ShapeError: when ``labels`` is not one-dimensional or ``chunk_ids`` has another shape or ids below -1.
    """
    if not 0.0 < min_t < 1.0:
        raise InvalidInputError(f"min_t must lie in (0, 1), got {min_t}", param="min_t")
    if labels.ndim != 1:
        raise ShapeError(f"labels must be one sequence, got shape {labels.shape}", param="labels")
    t = float(min_t + (1.0 - min_t) * uniforms(*key, TIMESTEP_STREAM, 1)[0])
    is_maskable = labels != IGNORED_LABEL
    draws = uniforms(*key, MASK_STREAM, labels.size)
    is_masked = is_maskable & (draws < 1.0 - noise.alpha(t))
    is_active = np.zeros(0, dtype=np.bool_)
    if chunk_ids is not None:
        _require_chunk_ids("chunk_ids", chunk_ids, labels.size)
        is_active = _active_chunks(is_masked, is_maskable, chunk_ids)
        is_masked |= _of_chunks(is_active, chunk_ids)
    maskable = int(is_maskable.sum())
    rate = int(is_masked.sum()) / maskable if maskable else 0.0
    return Corruption(key, t, is_masked, is_active, maskable, rate)


def teacher_groups(
    corruption: Corruption,
    *,
    student_chunk_ids: NDArray[np.integer],
    teacher_chunk_ids: NDArray[np.integer],
    split: float | None,
) -> NDArray[np.uint8]:
    """Which teacher tokens are masked, and in which view (pipeline A).

    The teacher tokens of every active chunk are masked, and no others. With CompDemo whole chunks are split.

    Args:
        corruption: the student's, drawn with the same ``student_chunk_ids``.
        student_chunk_ids: integers ``[student_seq]``, -1 for none.
        teacher_chunk_ids: integers ``[teacher_seq]``, -1 for none.
        split: CompDemo's ratio ``rho``, or None for a single view.

    Returns:
        uint8 ``[teacher_seq]``: 0 visible in both views, 1 masked in the first, 2 masked in the second.

    Raises:
        ShapeError: when the chunk ids do not belong to this corruption.
    """
    _require_chunk_ids("student_chunk_ids", student_chunk_ids, corruption.is_masked.size)
    _require_chunk_ids("teacher_chunk_ids", teacher_chunk_ids, teacher_chunk_ids.size)
    chunk_count = corruption.is_active_chunk.size
    if int(student_chunk_ids.max(initial=NO_CHUNK)) + 1 != chunk_count:
        raise ShapeError(
            "student_chunk_ids are not those that the corruption was drawn with", param="student_chunk_ids"
        )
    if int(teacher_chunk_ids.max(initial=NO_CHUNK)) >= chunk_count:
        raise ShapeError("teacher_chunk_ids name a chunk that the student lacks", param="teacher_chunk_ids")
    chunk_groups = _groups(corruption.is_active_chunk, corruption.key, split)
    return _gather(chunk_groups, teacher_chunk_ids)


def teacher_groups_shared(
    corruption: Corruption,
    teacher_positions: NDArray[np.integer],
    teacher_len: int,
    split: float | None,
) -> NDArray[np.uint8]:
    """Which teacher tokens are masked, and in which view (pipeline B, position by position).

    Args:
        corruption: the student's.
        teacher_positions: integers ``[student_seq]``: where each student token lies in the teacher's
            sequence, -1 for tokens that the teacher does not see.
        teacher_len: length of the teacher's sequence.
        split: CompDemo's ratio ``rho``, or None for a single view.

    Returns:
        uint8 ``[teacher_len]``: 0 visible in both views, 1 masked in the first, 2 masked in the second.

    Raises:
        ShapeError: when positions have the wrong shape, lie outside the sequence or occur twice.
    """
    if teacher_positions.shape != corruption.is_masked.shape:
        raise ShapeError(
            f"teacher_positions has shape {teacher_positions.shape}, the sample {corruption.is_masked.shape}",
            param="teacher_positions",
        )
    aligned = teacher_positions[teacher_positions >= 0]
    if aligned.size and (int(aligned.max()) >= teacher_len or np.unique(aligned).size != aligned.size):
        raise ShapeError(
            f"teacher_positions must be distinct and below the teacher's length {teacher_len}",
            param="teacher_positions",
        )
    student_groups = _groups(corruption.is_masked, corruption.key, split)
    groups = np.zeros(teacher_len, dtype=np.uint8)
    # Unaligned tokens are left out before the scatter: writing them to a padded index 0 would change the
    # mask of the teacher's first token.
    has_teacher = teacher_positions >= 0
    groups[teacher_positions[has_teacher]] = student_groups[has_teacher]
    return groups


def _active_chunks(
    is_masked: NDArray[np.bool_], is_maskable: NDArray[np.bool_], chunk_ids: NDArray[np.integer]
) -> NDArray[np.bool_]:
    in_chunk = chunk_ids >= 0
    count = int(chunk_ids.max(initial=NO_CHUNK)) + 1
    has_masked = np.zeros(count, dtype=np.bool_)
    has_masked[chunk_ids[in_chunk & is_masked]] = True
    has_ignored = np.zeros(count, dtype=np.bool_)
    has_ignored[chunk_ids[in_chunk & ~is_maskable]] = True
    return has_masked & ~has_ignored


def _groups(is_masked: NDArray[np.bool_], key: SampleKey, split: float | None) -> NDArray[np.uint8]:
    """1 for what the first view masks, 2 for the second; the first view reveals A and masks B."""
    if split is None:
        return is_masked.astype(np.uint8) * np.uint8(FIRST_VIEW)
    in_a, in_b = complementary_split(is_masked, split, key)
    return in_b.astype(np.uint8) * np.uint8(FIRST_VIEW) + in_a.astype(np.uint8) * np.uint8(SECOND_VIEW)


def _of_chunks(is_active: NDArray[np.bool_], chunk_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    return _gather(is_active.astype(np.uint8), chunk_ids).astype(np.bool_)


def _gather(per_chunk: NDArray[np.uint8], chunk_ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The chunk's value at each of its tokens, 0 at tokens without a chunk."""
    # One entry more than there are chunks: id -1 reads it.
    padded: NDArray[np.uint8] = np.append(per_chunk, np.uint8(0))
    values: NDArray[np.uint8] = padded[chunk_ids]
    return values


def _require_chunk_ids(name: str, chunk_ids: NDArray[np.integer], length: int) -> None:
    if chunk_ids.shape != (length,):
        raise ShapeError(f"{name} has shape {chunk_ids.shape}, expected ({length},)", param=name)
    if chunk_ids.size and int(chunk_ids.min()) < NO_CHUNK:
        raise ShapeError(f"{name} holds ids below -1", param=name)
