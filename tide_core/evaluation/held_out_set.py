"""What the held-out figures are measured on: sequences, their content, and their noise.

In: a resolved spec and prepared held-out samples. Out: a `HeldOutSet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from tide_core.alignment.bytes import token_byte_lengths
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.labels import IGNORED_LABEL
from tide_core.contracts.objective import Pipeline
from tide_core.data.samples import PreparedSample
from tide_core.evaluation.noise import EvaluationNoise
from tide_core.schedules.noise import noise_schedule


@dataclass(frozen=True)
class HeldOutSet:
    """What is measured on.

    Attributes:
        samples: the held-out sequences.
        content_bytes: float64 [sequence], bytes of the content that both sides see.
        pipeline: how student and teacher correspond.
        block_size: tokens in a block.
        mask_token_id: of the students.
        noise: timesteps and masks.
    """

    samples: Sequence[PreparedSample]
    content_bytes: Float64[np.ndarray, " sequence"]
    pipeline: Pipeline
    block_size: int
    mask_token_id: int
    noise: EvaluationNoise


def held_out_set(
    spec: ResolvedJobSpec, samples: Sequence[PreparedSample], tokenizer_folder: Path, mask_token_id: int
) -> HeldOutSet:
    """The held-out sequences of a job with their noise; the bytes are those of the content.

    Raises:
        InvalidInputError: there is no held-out sequence.
    """
    if not samples:
        raise InvalidInputError(
            "There is no held-out sequence to evaluate on: raise data.held_out.fraction, name "
            "data.held_out.sources, or disable the evaluation.",
            code="no_held_out_data",
            param="data.held_out",
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    content = [token_byte_lengths(tokenizer, s.student_ids[is_content(s)]).sum() for s in samples]
    return HeldOutSet(
        samples=samples,
        content_bytes=np.array(content, dtype=np.float64),
        pipeline=Pipeline(spec.pipeline),
        block_size=spec.student.block_size,
        mask_token_id=mask_token_id,
        noise=EvaluationNoise(
            noise_schedule(spec.noise.schedule), spec.noise.min_timestep, spec.evaluation.timesteps
        ),
    )


def is_content(sample: PreparedSample) -> NDArray[np.bool_]:
    """bool [student_seq]: tokens that the teacher sees too, in chunks or at aligned positions."""
    marks = sample.student_chunk_ids if sample.teacher_positions is None else sample.teacher_positions
    assert marks is not None
    content: NDArray[np.bool_] = np.asarray((marks >= 0) & (sample.labels != IGNORED_LABEL))
    return content


def is_teacher_content(sample: PreparedSample) -> NDArray[np.bool_]:
    """bool [teacher_seq]: the teacher's tokens of the content."""
    if sample.teacher_chunk_ids is not None:
        chunked: NDArray[np.bool_] = np.asarray(sample.teacher_chunk_ids >= 0)
        return chunked
    assert sample.teacher_positions is not None
    found = np.zeros(sample.teacher_ids.size, dtype=np.bool_)
    found[sample.teacher_positions[is_content(sample)]] = True
    return found
