"""One forward of the teacher: from samples to their values at the masked tokens.

Nothing here waits for the device (but for a mixture's experts where they run one after the other): what a
forward leaves is brought to the host by the engine, while the next forward runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tide_core.contracts.errors import ScoreError
from tide_core.contracts.scores import TopKQuestion, Values, Want
from tide_core.models.teachers.adapter import TeacherModel
from tide_core.models.transfer import to_device
from tide_core.scoring.answers import Slices, as_values, target_log_probs, top_k_bytes
from tide_core.scoring.layouts import ForwardInput, Sample


@dataclass(frozen=True)
class Scored:
    """What a forward left on its device.

    Attributes:
        samples: that were asked about.
        is_finite: bool [samples], whether all hidden states that were read are numbers.
        groups: samples that want the same, by their numbers.
        values: of each group, [masked, ...] in the order of its samples; see `answers`.
    """

    samples: Sequence[Sample]
    is_finite: Bool[Tensor, " samples"]
    groups: list[list[int]]
    values: list[Tensor]

    def on_host(self) -> list[Tensor]:
        """What is wanted on the host: the flags, and the values of the groups that are not held."""
        return [
            self.is_finite,
            *(
                values
                for values, numbers in zip(self.values, self.groups, strict=True)
                if not self._is_held(numbers)
            ),
        ]

    def parts(self, landed: Sequence[Tensor]) -> list[Values | Tensor | ScoreError]:
        """Each sample's values, out of what became of :meth:`on_host`; an error where they are not finite."""
        is_finite, *rest = landed
        arrived = iter(rest)
        parts: dict[int, Values | Tensor | ScoreError] = {}
        for numbers, values in zip(self.groups, self.values, strict=True):
            counts = [self.samples[number].masked for number in numbers]
            if self._is_held(numbers):
                parts |= zip(numbers, torch.split(values, counts), strict=True)
            else:
                host = as_values(next(arrived))
                cut: Any = np.split(host, np.cumsum(counts)[:-1])
                parts |= zip(numbers, cut, strict=True)
        for number, sample in enumerate(self.samples):
            if not is_finite[number]:
                # A NaN would train the student towards nothing.
                parts[number] = _not_finite(sample)
        return [parts[number] for number in range(len(self.samples))]

    def _is_held(self, numbers: list[int]) -> bool:
        return self.samples[numbers[0]].is_held


@torch.inference_mode()
def score_samples(
    model: TeacherModel,
    samples: Sequence[Sample],
    inputs: ForwardInput,
    slices: Slices,
    begins_pretoken: Bool[np.ndarray, " vocab"] | None = None,
) -> Scored:
    """Values at the masked tokens of each sample, in the order of its tokens.

    Args:
        model: the teacher.
        samples: of one layout and block size, each with a masked token; what they want may differ.
        inputs: of these samples.
        slices: bound of the LM head's memory.
        begins_pretoken: which ids do; for samples that want boundaries.
    """
    read = model.hidden_at(inputs.input_ids, inputs.places, inputs.attention_mask, inputs.position_ids)
    rows = torch.split(read, [sample.masked for sample in samples])
    groups: dict[tuple[Want, TopKQuestion | None, bool], list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault((sample.want, sample.top_k, sample.is_held), []).append(number)
    # One pass of the head for all samples that want the same.
    values = [
        _read(
            model,
            [samples[n] for n in numbers],
            torch.cat([rows[n] for n in numbers]),
            slices,
            begins_pretoken,
        )
        for numbers in groups.values()
    ]
    is_finite = torch.stack([torch.isfinite(part).all() for part in rows])
    return Scored(samples, is_finite, list(groups.values()), values)


def _read(
    model: TeacherModel,
    samples: Sequence[Sample],
    rows: Tensor,
    slices: Slices,
    begins_pretoken: Bool[np.ndarray, " vocab"] | None,
) -> Tensor:
    """What these samples, which all want the same, have at their masked tokens."""
    head = model.lm_head.weight
    boundary = None
    match samples[0].want:
        case Want.HIDDEN:
            return rows.to(torch.bfloat16)
        case Want.TOP_K:
            question = samples[0].top_k
            assert question is not None
            return top_k_bytes(rows, head, question, slices=slices)
        case Want.TARGET_AND_BOUNDARY:
            assert begins_pretoken is not None
            boundary = to_device(torch.from_numpy(begins_pretoken), head.device)
        case Want.TARGET_LOG_PROB:
            pass
    targets = np.concatenate([sample.token_ids[sample.groups > 0] for sample in samples])
    target_ids = to_device(torch.from_numpy(targets.astype(np.int64)), head.device)
    return target_log_probs(rows, head, target_ids, slices=slices, boundary=boundary)


def _not_finite(sample: Sample) -> ScoreError:
    return ScoreError(
        "The teacher's hidden states hold a NaN or an infinity for a sequence of "
        f"{sample.token_ids.size} tokens: a wider dtype may help (teacher.dtype).",
        code="teacher_not_finite",
    )
