"""The training loop. Read `train` from top to bottom: it is the whole of a run on one trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import TIDAL_TERMS
from tide_core.contracts.reporting import CheckpointDeleted, CheckpointSaved, Metrics
from tide_core.contracts.states import Phase
from tide_core.data.batches import BatchPlan, micro_batches
from tide_core.masks.block_attention import compact_length
from tide_core.models.compiling import compile_layers
from tide_core.models.student import BlockDiffusionStudent
from tide_core.objective.inputs import Normalisers
from tide_core.objective.objective import Objective
from tide_core.schedules.adaptive import advance
from tide_core.schedules.tidal import TrainingProgress, scheduled_lambda
from tide_core.scoring.prefetcher import AnsweredStep, Prefetcher
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.collating import MicroBatch, collate, padding_ratio
from tide_core.training.collective import Collective
from tide_core.training.drawing import Recipe, draw, noise_schedule
from tide_core.training.schedule import learning_rate, total_steps, training_progress
from tide_core.training.sharding import evaluating, is_sharded
from tide_core.training.step import (
    ShareOfLoss,
    Stepper,
    StepResult,
    Stopwatch,
    build_optimizer,
)
from workers.reporting.reporter import ProgressMeter, Reporter
from workers.student.checkpoint import CheckpointStore, TrainingState, assist
from workers.student.stream import (
    DrawnStep,
    answers_of,
    asked_sequences,
    asked_steps,
    tail_masses,
    teacher_figures,
)


@dataclass(frozen=True)
class Run:
    """All that training needs, whoever set it up.

    Attributes:
        spec: the resolved job.
        spec_digest: names spec and data; a checkpoint of another digest is refused.
        recipe: what decides each micro-batch.
        plan: which samples make up each step.
        student: on its device, weights in float32.
        teacher_head: the teacher's LM head on the student's device, when hidden states are asked for.
        transport: the way to the teacher, when a term asks it.
        collective: this trainer among its fellows.
        reporter: on trainer 0; None elsewhere.
        store: where states are saved.
        autocast: dtype of the forward pass, None for the weights' own.
        probe: measures the student on held-out sequences; on trainer 0, where the spec asks for it.
    """

    spec: ResolvedJobSpec
    spec_digest: str
    recipe: Recipe
    plan: BatchPlan
    student: BlockDiffusionStudent
    teacher_head: Tensor | None
    transport: ScoreTransport | None
    collective: Collective
    reporter: Reporter | None
    store: CheckpointStore
    autocast: torch.dtype | None = None
    probe: Callable[[BlockDiffusionStudent], dict[str, float]] | None = None


@dataclass(frozen=True)
class Speeds:
    """How fast this attempt trained, over its steps but the first (which warms up).

    Attributes:
        seconds_per_step: mean.
        tokens_per_second: student tokens of all trainers.
        teacher_wait_ratio: share of the time in which a trainer stood waiting for the teacher.
        cache_hit_ratio: share of the sequences asked about whose answer the score cache held.
    """

    seconds_per_step: float = 0.0
    tokens_per_second: float = 0.0
    teacher_wait_ratio: float = 0.0
    cache_hit_ratio: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How training ended: after which step, how fast, and whether because it was asked to stop."""

    state: TrainingState
    is_stopped: bool
    speeds: Speeds


def train(run: Run) -> Outcome:
    """Train from the last saved state, or from the start, to the end or to a wish to stop.

    Raises:
        NonFiniteError: ``non_finite_loss``; the states saved before stay as they are.
        ScoreError: the teacher could not answer within its deadline.
    """
    hyper = run.spec.hyperparameters
    total = total_steps(hyper, run.plan.visits_per_epoch)
    optimizer = build_optimizer(
        run.student,
        betas=(hyper.adam_beta1, hyper.adam_beta2),
        epsilon=hyper.adam_epsilon,
        weight_decay=hyper.weight_decay,
    )
    state = run.store.restore(run.student, optimizer, run.spec_digest)
    state = state or TrainingState(0, total, run.spec_digest)
    run.student.train()
    stepper = _stepper(run, optimizer)
    journal = _Journal(run, total)
    is_stopping = False

    def drawn(number: int) -> list[MicroBatch]:
        return _micro_batches(run, number)

    steps = asked_steps(drawn, range(state.step, total))
    journal.start(state)
    with Prefetcher(run.transport, steps, run.spec.resources.prefetch_steps) as prefetched:
        for answered in prefetched:
            agreed = _agree(answered.payload, run)
            is_stopping = agreed.is_stopping
            if is_stopping:
                break
            number = answered.payload.number
            progress = TrainingProgress(training_progress(number, total), state.adaptive.progress)
            rate = learning_rate(number, total, hyper)
            result = stepper.step(
                answered.payload.batches,
                answers_of(answered),
                agreed.counts,
                progress=progress,
                learning_rate=rate,
                number=number,
                forwards=agreed.forwards,
            )
            state = _advanced(state, result, total)
            journal.record(state, answered, result, progress, rate)
            if state.step % run.spec.checkpoints.every_steps == 0 and state.step < total:
                _save(run, optimizer, state)
            _probe(run, state)
    _save(run, optimizer, state)
    return Outcome(state, is_stopping, journal.speeds())


def _stepper(run: Run, optimizer: torch.optim.Optimizer) -> Stepper:
    objective = Objective(
        run.spec.objective, noise_schedule(run.spec), allow_unsupported=run.spec.allow_unsupported
    )
    run.student.activation_checkpointing = run.spec.hyperparameters.activation_checkpointing
    if run.spec.hyperparameters.compile:
        compile_layers(run.student)
    # A student in parts computes in that dtype by itself.
    autocast = None if is_sharded(run.student) else run.autocast
    return Stepper(
        ShareOfLoss(run.student, objective, autocast, head_dtype=run.autocast),
        optimizer,
        run.collective,
        clip_norm=run.spec.hyperparameters.gradient_clip_norm,
        asks_teacher=run.recipe.want is not None,
        teacher_head=run.teacher_head,
    )


def _micro_batches(run: Run, number: int) -> list[MicroBatch]:
    """This trainer's part of a step, drawn and laid out."""
    visits = run.plan.worker_share(number, run.collective.rank, run.collective.size)
    if not visits:
        raise InvalidInputError(
            f"A global batch of {run.plan.global_batch_size} sequences leaves nothing to do for one of "
            f"{run.collective.size} workers: raise hyperparameters.global_batch_size.",
            param="hyperparameters.global_batch_size",
        )
    drawn = [draw(visit.sample, visit.epoch, run.recipe) for visit in visits]
    lengths = [compact_length(item.corruption.is_masked, run.recipe.block_size) for item in drawn]
    hyper = run.spec.hyperparameters
    return [
        collate([drawn[place] for place in group], run.recipe, mask_token_id=run.student.mask_token_id)
        for group in micro_batches(lengths, hyper.micro_batch_size, hyper.micro_batch_tokens)
    ]


@dataclass(frozen=True)
class _Agreement:
    """What all trainers know of a step before it begins.

    Attributes:
        counts: the step's normalisers over all trainers.
        is_stopping: whether any of them was asked to stop.
        forwards: the most micro-batches that any of them has.
    """

    counts: Normalisers
    is_stopping: bool
    forwards: int


def _agree(step: DrawnStep, run: Run) -> _Agreement:
    """Tell the other trainers of this one's part of a step, in one message."""
    own = [batch.counts for batch in step.batches]
    wish = run.reporter is not None and run.reporter.stop_requested
    forwards = [0] * run.collective.size
    forwards[run.collective.rank] = len(own)
    maskable, masked, chunks, sequences, wishes, *each = run.collective.sum(
        [
            sum(counts.maskable_tokens for counts in own),
            sum(counts.masked_positions for counts in own),
            sum(counts.active_chunks for counts in own),
            sum(counts.sequences for counts in own),
            float(wish),
            *forwards,
        ]
    )
    counts = Normalisers(round(maskable), round(masked), round(chunks), round(sequences))
    return _Agreement(counts, wishes > 0, round(max(each)))


def _advanced(state: TrainingState, result: StepResult, total: int) -> TrainingState:
    """The state after a step; TAID's progress follows the loss that all trainers share."""
    step = state.step + 1
    adaptive = advance(state.adaptive, result.total, linear_progress=min(1.0, step / total))
    return replace(state, step=step, adaptive=adaptive)


def _save(run: Run, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Trainer 0 writes the state; the others give it their parts, if any, and meet it at the next sum."""
    if run.reporter is None:
        if is_sharded(run.student):
            assist(run.student, optimizer)
        return
    run.reporter.keep()
    saved = run.store.save(run.student, optimizer, state)
    run.reporter.send(CheckpointSaved(step=saved.step, location=saved.location, bytes=saved.bytes))
    for old in run.store.prune():
        run.reporter.send(CheckpointDeleted(step=old.step, location=old.location))


def _probe(run: Run, state: TrainingState) -> None:
    """Measure on held-out sequences every so many steps; trainer 0 tells.

    Of a student in parts all trainers do the same forwards, since each takes part in every one; otherwise
    the others wait at the next sum.
    """
    every = run.spec.evaluation.every_steps
    if run.probe is None or every is None or state.step % every:
        return
    if run.reporter is None and not is_sharded(run.student):
        return
    with evaluating(run.student):
        values = run.probe(run.student)
    if run.reporter is not None:
        run.reporter.send(Metrics(step=state.step, values=values))


class _Journal:
    """Turns steps into metrics and progress, on trainer 0."""

    def __init__(self, run: Run, total: int) -> None:
        self._run = run
        self._total = total
        self._watch = Stopwatch()
        self._steps: list[tuple[float, int, float, int, int]] = []
        self._meter = (
            ProgressMeter(run.reporter, Phase.TRAIN, "training", total) if run.reporter is not None else None
        )

    def start(self, state: TrainingState) -> None:
        """Say where training begins, and start the clock of the first step."""
        if self._meter is not None:
            self._meter.update(state.step)
        self._watch.lap()

    def record(
        self,
        state: TrainingState,
        step: AnsweredStep[DrawnStep],
        result: StepResult,
        progress: TrainingProgress,
        rate: float,
    ) -> None:
        """Report one step."""
        seconds = self._watch.lap()
        asked, hits = asked_sequences(step), sum(answer.cache_hits for answer in step.responses)
        self._steps.append((seconds, result.tokens, step.teacher_wait_seconds, asked, hits))
        if self._run.reporter is None or self._meter is None:
            return
        counts = result.counts
        values = {
            "loss": result.total,
            **{f"loss/{name}": value for name, value in result.parts.items()},
            "mask_rate": counts.masked_positions / max(1, counts.maskable_tokens),
            "gradient_norm": result.gradient_norm,
            "learning_rate": rate,
            "step_seconds": seconds,
            "tokens_per_second": result.tokens / max(seconds, 1e-9),
            "teacher_wait_seconds": step.teacher_wait_seconds,
            "feed_wait_seconds": step.feed_wait_seconds,
            "padding_ratio": padding_ratio(step.payload.batches),
        }
        if asked:
            values |= teacher_figures(step.responses) | tail_masses(step)
            values["teacher_cache_hit_ratio"] = hits / asked
        trust = self._mean_lambda(step.payload, progress)
        if trust is not None:
            values["lambda"] = trust
        self._run.reporter.send(Metrics(step=state.step, values=values))
        self._meter.update(state.step)

    def speeds(self) -> Speeds:
        """Means over the steps so far."""
        steps = self._steps[1:] or self._steps
        if not steps:
            return Speeds()
        seconds, tokens, waits, asked, hits = (sum(column) for column in zip(*steps, strict=True))
        return Speeds(seconds / len(steps), tokens / seconds, waits / seconds, hits / max(1, asked))

    def _mean_lambda(self, step: DrawnStep, progress: TrainingProgress) -> float | None:
        """Mean of ``lambda_t`` over this trainer's sequences, of the first TIDAL term."""
        term = next((term for term in self._run.spec.objective if isinstance(term, TIDAL_TERMS)), None)
        if term is None:
            return None
        times = torch.cat([batch.t for batch in step.batches])
        return float(scheduled_lambda(term.schedule, progress, times).mean())


def spec_digest(spec: ResolvedJobSpec, prepared: str) -> str:
    """Names what a training state belongs to: the spec, less labels, placement and pace, and the data."""
    placement = dict.fromkeys(("name", "metadata", "resources", "evaluation", "checkpoints"), True)
    pace = {"micro_batch_size", "micro_batch_tokens", "activation_checkpointing", "compile"}
    parts = spec.model_dump_json(exclude={**placement, "hyperparameters": pace, "teacher": {"compile"}})
    return hashlib.blake2b(f"{parts}\n{prepared}".encode(), digest_size=16).hexdigest()
