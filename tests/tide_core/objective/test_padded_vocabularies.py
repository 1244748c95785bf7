"""One vocabulary, padded to different sizes on both sides: the losses are those of the trimmed pair.

Published families do so: Qwen's tokens lie in 151,936 rows of one model and in 152,064 of another.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tide_core.objective.test_objective import SHARED, Step
from tide_core.contracts.objective import ForwardKLTerm, ObjectiveTerm, ReverseKLTerm, TidalTerm
from tide_core.losses.sparse import top_k_of_logits
from tide_core.objective.inputs import HiddenScores, ObjectiveInputs, TopKScores
from tide_core.objective.objective import Objective
from tide_core.schedules.noise import LinearNoise

TERMS: list[ObjectiveTerm] = [
    ForwardKLTerm(temperature=2.0),
    ReverseKLTerm(temperature=2.0),
    TidalTerm(temperature=2.0),
]


def pad(head: torch.Tensor, rows: int) -> torch.Tensor:
    """More rows, of tokens that neither side knows; large, so that reading them would show."""
    generator = torch.Generator().manual_seed(rows)
    extra = 9 * torch.randn(rows, head.shape[1], generator=generator, dtype=head.dtype)
    return torch.cat([head.detach(), extra])


def inputs(step: Step, kind: str, student_rows: int, teacher_rows: int) -> ObjectiveInputs:
    trimmed = step.teacher_head[:SHARED]
    scores: Any = HiddenScores(step.teacher_hidden, pad(trimmed, teacher_rows), step.aligned, SHARED)
    if kind == "top_k":
        # The teacher's answer: over the shared ids of whatever head it has, all but a few of them in the
        # tail.
        logits = (step.teacher_hidden @ scores.head.T)[:, :SHARED]
        top = top_k_of_logits(logits, 5, temperature=2.0)
        scores = TopKScores(top.ids, top.log_probs * 2.0, top.log_tail[:, None], (2.0,), step.aligned, SHARED)
    student = pad(step.head[:SHARED], student_rows).requires_grad_()
    return replace(
        step.inputs(), student_head=student, teacher=scores, target_ids=step.targets.clamp_max(SHARED - 1)
    )


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.type)
@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(0, 7), (7, 0), (3, 11), (11, 3)])
def test_padding_changes_neither_loss_nor_gradient(
    term: ObjectiveTerm, kind: str, student_rows: int, teacher_rows: int
) -> None:
    found = []
    for rows in ((0, 0), (student_rows, teacher_rows)):
        step = Step()
        output = Objective([term], LinearNoise(), slice_size=30).loss(inputs(step, kind, *rows))
        output.total.backward()
        assert step.hidden.grad is not None
        found.append((output.total.detach(), step.hidden.grad))
    for trimmed, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, trimmed, atol=1e-12, rtol=1e-9)
