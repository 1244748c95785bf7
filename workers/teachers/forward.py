"""One forward of the teacher: from samples to their values at the masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tide_core.contracts.errors import ScoreError
from tide_core.contracts.scores import Want
from tide_core.models.teachers.adapter import TeacherModel
from workers.teachers.layouts import Sample, forward_input
from workers.teachers.readout import hidden_bits, target_log_probs

Values = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
"""Values of a :class:`~tide_core.contracts.scores.ScoreResponse`."""


@dataclass(frozen=True, slots=True)
class Slices:
    """How much of the LM head's output exists at a time.

    Attributes:
        rows: masked tokens.
        vocab: vocabulary entries.
    """

    rows: int
    vocab: int


@torch.inference_mode()
def score_samples(model: TeacherModel, samples: Sequence[Sample], slices: Slices) -> list[Values]:
    """Values at the masked tokens of each sample, in the order of its tokens.

    Args:
        model: the teacher.
        samples: of one layout and block size, each with a masked token; what they want may differ.
        slices: bound of the LM head's memory.

    Raises:
        ScoreError: the teacher gave a NaN or an infinity.
    """
    inputs = forward_input(samples, model.mask_token_id, model.lm_head.weight.device)
    hidden = model.hidden(inputs.input_ids, inputs.attention_mask, inputs.position_ids)
    read = hidden.flatten(0, 1).index_select(0, inputs.read_index)
    rows = torch.split(read, [sample.masked for sample in samples])
    _require_finite(samples, rows)
    log_probs = _log_probs(model, samples, rows, slices)
    return [
        hidden_bits(part) if sample.want is Want.HIDDEN else log_probs[number]
        for number, (sample, part) in enumerate(zip(samples, rows, strict=True))
    ]


def no_values(want: Want, hidden_size: int) -> Values:
    """What a sequence without a masked token gives."""
    if want is Want.HIDDEN:
        return np.zeros((0, hidden_size), np.uint16)
    return np.zeros(0, np.float32)


def joined_values(parts: Sequence[Values]) -> Values:
    """The values of several sequences, one after the other; all of one kind."""
    return np.concatenate(parts)  # type: ignore[return-value]


def _log_probs(
    model: TeacherModel, samples: Sequence[Sample], rows: Sequence[Tensor], slices: Slices
) -> dict[int, npt.NDArray[np.float32]]:
    """One pass of the head for all samples that want log-probabilities, by their number."""
    wanted = [number for number, sample in enumerate(samples) if sample.want is Want.TARGET_LOG_PROB]
    if not wanted:
        return {}
    targets = np.concatenate([samples[n].token_ids[samples[n].groups > 0] for n in wanted])
    log_probs = target_log_probs(
        torch.cat([rows[number] for number in wanted]),
        model.lm_head.weight,
        torch.from_numpy(targets.astype(np.int64)).to(model.lm_head.weight.device),
        row_slice=slices.rows,
        vocab_slice=slices.vocab,
    )
    parts = torch.split(log_probs.cpu(), [rows[number].shape[0] for number in wanted])
    return {number: part.numpy() for number, part in zip(wanted, parts, strict=True)}


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
