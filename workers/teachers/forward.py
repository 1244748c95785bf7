"""One forward of the teacher: from samples to their values at the masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor

from tide_core.contracts.errors import ScoreError
from tide_core.contracts.scores import TopKQuestion, Values, Want
from tide_core.models.teachers.adapter import TeacherModel
from workers.teachers.layouts import Sample, forward_input
from workers.teachers.readout import Slices, hidden_bits, target_log_probs, top_k_bytes


@torch.inference_mode()
def score_samples(
    model: TeacherModel,
    samples: Sequence[Sample],
    slices: Slices,
    begins_pretoken: Bool[np.ndarray, " vocab"] | None = None,
) -> list[Values]:
    """Values at the masked tokens of each sample, in the order of its tokens.

    Args:
        model: the teacher.
        samples: of one layout and block size, each with a masked token; what they want may differ.
        slices: bound of the LM head's memory.
        begins_pretoken: which ids do; for samples that want boundaries.

    Raises:
        ScoreError: the teacher gave a NaN or an infinity.
    """
    inputs = forward_input(samples, model.mask_token_id, model.lm_head.weight.device)
    read = model.hidden_at(inputs.input_ids, inputs.read_index, inputs.attention_mask, inputs.position_ids)
    rows = torch.split(read, [sample.masked for sample in samples])
    _require_finite(samples, rows)
    groups: dict[tuple[Want, TopKQuestion | None], list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault((sample.want, sample.top_k), []).append(number)
    values: dict[int, Values] = {}
    for numbers in groups.values():
        # One pass of the head for all samples that want the same.
        answer: Any = _read(
            model,
            [samples[n] for n in numbers],
            torch.cat([rows[n] for n in numbers]),
            slices,
            begins_pretoken,
        )
        ends = np.cumsum([samples[n].masked for n in numbers])[:-1]
        values |= zip(numbers, np.split(answer, ends), strict=True)
    return [values[number] for number in range(len(samples))]


def joined_values(parts: Sequence[Values]) -> Values:
    """The values of several sequences, one after the other; all of one kind."""
    return np.concatenate(parts)  # type: ignore[return-value]


def _read(
    model: TeacherModel,
    samples: Sequence[Sample],
    rows: Tensor,
    slices: Slices,
    begins_pretoken: Bool[np.ndarray, " vocab"] | None,
) -> Values:
    """What these samples, which all want the same, have at their masked tokens."""
    head = model.lm_head.weight
    boundary = None
    match samples[0].want:
        case Want.HIDDEN:
            return hidden_bits(rows)
        case Want.TOP_K:
            question = samples[0].top_k
            assert question is not None
            return top_k_bytes(rows, head, question, slices=slices)
        case Want.TARGET_AND_BOUNDARY:
            assert begins_pretoken is not None
            boundary = torch.from_numpy(begins_pretoken).to(head.device)
        case Want.TARGET_LOG_PROB:
            pass
    targets = np.concatenate([sample.token_ids[sample.groups > 0] for sample in samples])
    target_ids = torch.from_numpy(targets.astype(np.int64)).to(head.device)
    answer = target_log_probs(rows, head, target_ids, slices=slices, boundary=boundary)
    values: npt.NDArray[np.float32] = answer.cpu().numpy()
    return values


def _require_finite(samples: Sequence[Sample], rows: Sequence[Tensor]) -> None:
    """A NaN would train the student towards nothing."""
    is_finite = torch.stack([torch.isfinite(part).all() for part in rows]).tolist()
    if not all(is_finite):
        length = samples[is_finite.index(False)].token_ids.size
        raise ScoreError(
            f"The teacher's hidden states hold a NaN or an infinity for a sequence of {length} tokens: "
            "a wider dtype may help (teacher.dtype).",
            code="teacher_not_finite",
        )
