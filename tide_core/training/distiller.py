"""A distillation, step by step: what a run on one trainer is made of, without Ray, service or storage.

In: a resolved spec, prepared samples, a student, and the teacher's answers. Out: optimiser steps with their
losses. A step is drawn, the teacher is asked, the trainers agree on the counts, and the step is taken::

    distiller = Distiller(distillation)
    step = distiller.draw(0)
    answers = [teacher.answer(request) for request in step.requests]
    taken = distiller.take(step, answers, distiller.agree(step))

`examples/one_step.py` does this with a teacher in the same process; `workers/student/loop.py` does it with a
pool of teachers, asks some steps ahead, and adds states, reports, and stopping when asked to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tide_core.alignment.boundaries import begins_pretoken
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import TIDAL_TERMS
from tide_core.contracts.scores import ScoreResponse, Want
from tide_core.contracts.teacher import TeacherLease, want_of
from tide_core.data.batches import BatchPlan, micro_batches
from tide_core.data.shards import PreparedDataset
from tide_core.masks.block_attention import compact_length
from tide_core.models.compiling import compile_layers
from tide_core.models.student import BlockDiffusionStudent
from tide_core.objective.inputs import Normalisers
from tide_core.objective.objective import Objective
from tide_core.schedules.adaptive import AdaptiveProgress, advance
from tide_core.schedules.tidal import TrainingProgress, scheduled_lambda
from tide_core.training.collating import collate
from tide_core.training.collective import Alone, Collective
from tide_core.training.drawing import BatchRecipe, draw, recipe_for
from tide_core.training.schedule import learning_rate, total_steps, training_progress
from tide_core.training.sharding import is_sharded
from tide_core.training.step import ShareOfLoss, Stepper, StepResult, build_optimizer
from tide_core.training.steps import DrawnStep


@dataclass(frozen=True)
class Distillation:
    """All that decides the steps of one trainer.

    Attributes:
        spec: the resolved job.
        recipe: what decides each micro-batch.
        plan: which samples make up each step.
        student: on its device, weights in float32.
        teacher_head: the teacher's LM head on the student's device, where hidden states are asked for.
        autocast: dtype of the forward pass, None for the weights' own.
        collective: this trainer among the others.
    """

    spec: ResolvedJobSpec
    recipe: BatchRecipe
    plan: BatchPlan
    student: BlockDiffusionStudent
    teacher_head: Tensor | None = None
    autocast: torch.dtype | None = None
    collective: Collective = field(default_factory=Alone)


def recipe_of_pair(
    spec: ResolvedJobSpec,
    dataset: PreparedDataset,
    student: BlockDiffusionStudent,
    tokenizer: Path,
    *,
    teacher_vocab: int | None,
    job_id: str = "",
    lease: TeacherLease | None = None,
) -> BatchRecipe:
    """The recipe of a job over its prepared data.

    Args:
        spec: the resolved job.
        dataset: says how many leading ids the two tokenizers share.
        student: bounds the shared ids by its vocabulary.
        tokenizer: the student's folder; read where a term asks where pre-tokens begin.
        teacher_vocab: rows of the teacher's LM head; None where no teacher is asked.
        job_id, lease: go into each request to a pool.
    """
    shared = 0
    if teacher_vocab is not None:
        shared = min(dataset.manifest.shared_vocab, student.vocab_size, teacher_vocab)
    begins = None
    if want_of(spec) is Want.TARGET_AND_BOUNDARY:
        begins = begins_pretoken(load_tokenizer(tokenizer), student.vocab_size)
    return recipe_for(spec, job_id=job_id, lease=lease, shared_vocab=shared, begins_pretoken=begins)


def draw_step(setting: Distillation, number: int) -> DrawnStep:
    """One trainer's part of a step, with its noise and laid out, and the questions to the teacher.

    A pure function of the step's number.

    Raises:
        InvalidInputError: the global batch has no sequence for this trainer.
    """
    recipe, hyper, size = setting.recipe, setting.spec.hyperparameters, setting.collective.size
    visits = setting.plan.worker_share(number, setting.collective.rank, size)
    if not visits:
        raise InvalidInputError(
            f"A global batch of {setting.plan.global_batch_size} sequences leaves nothing to do for one of "
            f"{size} workers: raise hyperparameters.global_batch_size.",
            param="hyperparameters.global_batch_size",
        )
    drawn = [draw(visit.sample, visit.epoch, recipe) for visit in visits]
    lengths = [compact_length(item.corruption.is_masked, recipe.block_size) for item in drawn]
    groups = micro_batches(lengths, hyper.micro_batch_size, hyper.micro_batch_tokens)
    mask_token_id = setting.student.mask_token_id
    batches = [
        collate([drawn[place] for place in group], recipe, mask_token_id=mask_token_id) for group in groups
    ]
    return DrawnStep(number, batches)


@dataclass(frozen=True)
class Agreement:
    """What all trainers know of a step before it is taken.

    Attributes:
        counts: the step's normalisers over all trainers.
        is_stopping: whether any of them was asked to stop.
        forwards: the most micro-batches that any of them has.
    """

    counts: Normalisers
    is_stopping: bool
    forwards: int


@dataclass(frozen=True)
class DistilledStep:
    """What came of a step.

    Attributes:
        result: losses and gradient norm over all trainers.
        learning_rate: of the step.
        mean_lambda: mean of TIDAL's ``lambda_t`` over this trainer's sequences, of the first TIDAL term.
        adaptive: TAID's progress after the step; goes into the next one.
    """

    result: StepResult
    learning_rate: float
    mean_lambda: float | None
    adaptive: AdaptiveProgress


class Distiller:
    """Draws the steps of a distillation and takes them, in any process.

    `draw` may run in another thread than the rest.

    Attributes:
        total_steps: of the whole run.
        optimizer: holds the moments; a state of the run saves and restores it.
    """

    def __init__(self, distillation: Distillation) -> None:
        self._setting = distillation
        hyper, student = distillation.spec.hyperparameters, distillation.student
        self.total_steps = total_steps(hyper, distillation.plan.visits_per_epoch)
        self.optimizer = build_optimizer(
            student,
            betas=(hyper.adam_beta1, hyper.adam_beta2),
            epsilon=hyper.adam_epsilon,
            weight_decay=hyper.weight_decay,
        )
        student.train()
        student.activation_checkpointing = hyper.activation_checkpointing
        if hyper.compile:
            compile_layers(student)
        self._stepper = _build_stepper(distillation, self.optimizer)

    def draw(self, number: int) -> DrawnStep:
        """This trainer's part of a step; see :func:`draw_step`."""
        return draw_step(self._setting, number)

    def agree(self, step: DrawnStep, *, wishes_stop: bool = False) -> Agreement:
        """Tell the other trainers of this one's part of a step, in one message; every trainer calls it."""
        collective, own = self._setting.collective, step.counts
        forwards = [0] * collective.size
        forwards[collective.rank] = len(step.batches)
        maskable, masked, chunks, sequences, wishes, *each = collective.sum(
            [
                own.maskable_tokens,
                own.masked_positions,
                own.active_chunks,
                own.sequences,
                float(wishes_stop),
                *forwards,
            ]
        )
        counts = Normalisers(round(maskable), round(masked), round(chunks), round(sequences))
        return Agreement(counts, wishes > 0, round(max(each)))

    def take(
        self,
        step: DrawnStep,
        answers: Iterable[ScoreResponse],
        agreed: Agreement,
        adaptive: AdaptiveProgress | None = None,
    ) -> DistilledStep:
        """Forward, backward and update.

        Args:
            step: as drawn.
            answers: the teacher's, one for each of the step's requests.
            agreed: what all trainers know of the step.
            adaptive: TAID's progress after the step before; None before the first.

        Raises:
            NonFiniteError: ``non_finite_loss``, before the weights are touched.
        """
        adaptive = adaptive or AdaptiveProgress()
        progress = TrainingProgress(training_progress(step.number, self.total_steps), adaptive.progress)
        rate = learning_rate(step.number, self.total_steps, self._setting.spec.hyperparameters)
        result = self._stepper.step(
            step.batches,
            step.pair_answers(answers),
            agreed.counts,
            progress=progress,
            learning_rate=rate,
            number=step.number,
            forwards=agreed.forwards,
        )
        # TAID's progress follows the loss that all trainers share.
        done = min(1.0, (step.number + 1) / self.total_steps)
        advanced = advance(adaptive, result.total, linear_progress=done)
        return DistilledStep(result, rate, self._mean_lambda(step, progress), advanced)

    def _mean_lambda(self, step: DrawnStep, progress: TrainingProgress) -> float | None:
        terms = self._setting.spec.objective
        schedule = next((term.schedule for term in terms if isinstance(term, TIDAL_TERMS)), None)
        if schedule is None:
            return None
        times = torch.cat([batch.t for batch in step.batches])
        return float(scheduled_lambda(schedule, progress, times).mean())


def _build_stepper(setting: Distillation, optimizer: torch.optim.Optimizer) -> Stepper:
    spec = setting.spec
    objective = Objective(spec.objective, setting.recipe.noise, allow_unsupported=spec.allow_unsupported)
    # A student in parts computes in that dtype by itself.
    autocast = None if is_sharded(setting.student) else setting.autocast
    return Stepper(
        ShareOfLoss(setting.student, objective, autocast, head_dtype=setting.autocast),
        optimizer,
        setting.collective,
        clip_norm=spec.hyperparameters.gradient_clip_norm,
        asks_teacher=setting.recipe.want is not None,
        teacher_head=setting.teacher_head,
    )
