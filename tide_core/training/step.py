"""One optimiser step: micro-batches, global normalisers, gradients summed over trainers.

In: micro-batches with the teacher's answers. Out: one optimiser step of the student, and its figures.

Every micro-batch's loss is its share of the step's loss: it is divided by counts over all trainers and
micro-batches, which the corruption fixes before any forward. Shares are therefore summed, never averaged, and
step k does not depend on how its sequences are dealt out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.contracts.figures import LOSS
from tide_core.contracts.scores import ScoreResponse
from tide_core.models.student import BlockDiffusionStudent
from tide_core.objective.inputs import (
    ChunkScores,
    HiddenScores,
    Normalisers,
    ObjectiveInputs,
    TopKScores,
)
from tide_core.objective.objective import Objective, ObjectiveOutput
from tide_core.schedules.tidal import TrainingProgress
from tide_core.training.collating import MicroBatch
from tide_core.training.collective import Collective
from tide_core.training.matching import ChunkMatch
from tide_core.training.sharding import gather_whole, is_sharded

TOTAL = LOSS.whole
"""Name of the sum of all terms among the losses."""


@dataclass(frozen=True)
class ScoredBatch:
    """A micro-batch on its device, with what the teacher said about it."""

    batch: MicroBatch
    scores: ChunkScores | HiddenScores | TopKScores | None


@dataclass(frozen=True)
class StepResult:
    """Figures of one step, summed over all trainers.

    Attributes:
        total: the step's loss, weights of the terms included.
        parts: value of each term by name.
        gradient_norm: before clipping.
        counts: the step's normalisers.
        tokens: student tokens of all sequences.
    """

    total: float
    parts: dict[str, float]
    gradient_norm: float
    counts: Normalisers
    tokens: int


class ShareOfLoss(nn.Module):
    """Student and objective as one module, so that DistributedDataParallel sees a plain forward.

    Args:
        student: trained.
        objective: of its hidden states at the masked places.
        autocast: dtype of the student's forward; None for the weights' own.
        head_dtype: in which hidden states meet the LM head on CUDA; by default the forward's. On a CPU they
            meet it as the last norm gives them: there, a product in bfloat16 rounds its logits.
    """

    def __init__(
        self,
        student: BlockDiffusionStudent,
        objective: Objective,
        autocast: torch.dtype | None,
        head_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._head_dtype = head_dtype or autocast
        self.student = student
        self.objective = objective
        self._autocast = autocast

    def forward(
        self, scored: ScoredBatch, normalisers: Normalisers, progress: TrainingProgress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss (with gradient) and of each term (without)."""
        batch = scored.batch
        with self._precision():
            hidden = self.student.forward_at(
                batch.input_ids, batch.places, batch.layout.attention_pattern, batch.layout.position_ids
            )
        if self._head_dtype is not None and hidden.is_cuda:
            # The last norm answers in float32, in which the largest product would take many times longer.
            hidden = hidden.to(self._head_dtype)
        output: ObjectiveOutput = self.objective.loss(
            ObjectiveInputs(
                student_hidden=hidden,
                student_head=self.student.lm_head.weight,
                target_ids=batch.target_ids,
                masked_row=batch.masked_row,
                t=batch.t,
                progress=progress,
                normalisers=normalisers,
                teacher=scored.scores,
                row_maskable=batch.row_maskable,
            )
        )
        return output.total, output.parts

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.student.device.type, dtype=self._autocast)


class Stepper:
    """Holds what an optimiser step works on; `step` is the whole of it."""

    def __init__(
        self,
        module: ShareOfLoss,
        optimizer: torch.optim.Optimizer,
        collective: Collective,
        *,
        clip_norm: float | None,
        asks_teacher: bool,
        teacher_head: Tensor | None,
    ) -> None:
        self._student = module.student
        self._shared: nn.Module = module
        self._is_sharded = is_sharded(module.student)
        if collective.size > 1 and not self._is_sharded:
            self._shared = DistributedDataParallel(module)
        self._optimizer = optimizer
        self._collective = collective
        self._part_names = module.objective.part_names
        self._clip_norm = clip_norm
        self._asks_teacher = asks_teacher
        self._teacher_head = teacher_head

    def step(
        self,
        batches: Sequence[MicroBatch],
        answers: Sequence[ScoreResponse | None],
        counts: Normalisers,
        *,
        progress: TrainingProgress,
        learning_rate: float,
        number: int,
        forwards: int,
    ) -> StepResult:
        """Forward, backward and update over this trainer's micro-batches.

        Args:
            batches: this trainer's share of the step.
            answers: the teacher's answer to each, None where nothing was asked.
            counts: the step's normalisers over all trainers.
            progress: training progress for TIDAL.
            learning_rate: of this step.
            number: the step, for messages.
            forwards: the most micro-batches that any trainer has in this step.

        Raises:
            NonFiniteError: ``non_finite_loss``, before the weights are touched.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        sums = self.accumulate(batches, answers, counts, progress=progress, number=number, forwards=forwards)
        return self._update(sums, sum(batch.tokens for batch in batches), counts, number)

    def accumulate(
        self,
        batches: Sequence[MicroBatch],
        answers: Sequence[ScoreResponse | None],
        counts: Normalisers,
        *,
        progress: TrainingProgress,
        number: int,
        forwards: int,
    ) -> dict[str, float]:
        """Forward and backward over this trainer's micro-batches; their gradients are added up.

        Gives this trainer's share of the loss under `TOTAL`, and of each term by its name; the arguments and
        the errors are those of :meth:`step`.
        """
        work = [(batch, answer, 1.0) for batch, answer in zip(batches, answers, strict=True)]
        if self._is_sharded:
            # A layer is gathered by all trainers at once: who has fewer micro-batches goes along with its
            # last (and smallest) one, which then counts for nothing.
            work += [(batches[-1], answers[-1], 0.0)] * (forwards - len(work))
        sums = dict.fromkeys((TOTAL, *self._part_names), 0.0)
        for index, (batch, answer, weight) in enumerate(work):
            is_last = index == len(work) - 1
            with self._synchronise(is_last):
                share, parts = self._share(self._join(batch, answer), counts, progress, number)
                # Both distributed forms average over trainers; shares are to be summed.
                torch.autograd.backward(share * (weight * self._collective.size))
            for name, part in {TOTAL: share.detach(), **parts}.items():
                sums[name] += weight * float(part)
        return sums

    def _share(
        self, scored: ScoredBatch, counts: Normalisers, progress: TrainingProgress, number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            share, parts = self._shared(scored, counts, progress)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"Step {number}: {error.message}. The last good checkpoint is kept; lower the learning rate "
                "or look at the data.",
                code="non_finite_loss",
                param=error.param,
            ) from error
        if tuple(parts) != self._part_names:
            raise InvalidInputError(
                f"The objective gave the parts {list(parts)}, but its terms are {list(self._part_names)}.",
                code="missing_loss_part",
                param="objective",
            )
        return share, parts

    def _update(self, local: dict[str, float], tokens: int, counts: Normalisers, number: int) -> StepResult:
        names = [TOTAL, *self._part_names]
        # In float64 and in a fixed order of names: every trainer takes part, also one without a masked token.
        *totals, all_tokens = self._collective.sum([*(local[name] for name in names), tokens])
        sums = dict(zip(names, totals, strict=True))
        for name in (*names[1:], TOTAL):
            _require_finite(sums[name], number, name)
        limit = math.inf if self._clip_norm is None else self._clip_norm
        norm = float(gather_whole(torch.nn.utils.clip_grad_norm_(self._student.parameters(), limit)))
        _require_finite(norm, number, "gradient norm")
        self._optimizer.step()
        total = sums.pop(TOTAL)
        return StepResult(total, sums, norm, counts, round(all_tokens))

    def _join(self, batch: MicroBatch, answer: ScoreResponse | None) -> ScoredBatch:
        batch = batch.to(self._student.device)
        if not self._asks_teacher:
            return ScoredBatch(batch, None)
        if isinstance(batch.match, ChunkMatch):
            return ScoredBatch(batch, batch.match.scores(answer))
        return ScoredBatch(batch, batch.match.scores(answer, self._teacher_head))

    def _synchronise(self, is_last: bool) -> AbstractContextManager[object]:
        # In parts, gradients are summed at each micro-batch: to wait for the last would keep them all whole.
        if is_last or not isinstance(self._shared, DistributedDataParallel):
            return nullcontext()
        return self._shared.no_sync()


def _require_finite(value: float, number: int, name: str) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"Step {number}: the {name} is {value}. The last good checkpoint is kept; lower the learning "
            "rate or look at the data.",
            code="non_finite_loss",
            param=name,
        )


def build_optimizer(
    student: nn.Module, *, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, as is usual for norms and biases."""
    matrices = [parameter for parameter in student.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in student.parameters() if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.0,
        betas=betas,
        eps=epsilon,
        fused=True,
    )
