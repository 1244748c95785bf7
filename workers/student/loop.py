"""The training loop. Read `train` from top to bottom: it is the whole of a run on one trainer.

In: a `Run`: what is distilled, the way to the teacher, where states and reports go. Out: the trained student
in place, training states in storage, a report for every step, and an `Outcome`. The step itself is
`tide_core/training/distiller.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tide_core.contracts.reporting import CheckpointDeleted, CheckpointSaved, Metrics
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.prefetcher import Prefetcher
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.distiller import Distillation, Distiller
from tide_core.training.sharding import evaluation_mode, is_sharded
from tide_core.training.steps import ask_steps
from workers.reporting.reporter import Reporter
from workers.student.checkpoint import CheckpointStore, TrainingState, assist
from workers.student.journal import Journal, Speeds


@dataclass(frozen=True)
class Run:
    """All that training needs.

    Attributes:
        distillation: what decides the steps: spec, data, student, the other trainers.
        spec_digest: names spec and data; a checkpoint of another digest is refused.
        transport: the way to the teacher, when a term asks it.
        reporter: on trainer 0; None elsewhere.
        store: where states are saved.
        probe: measures the student on held-out sequences; on trainer 0, where the spec asks for it.
    """

    distillation: Distillation
    spec_digest: str
    transport: ScoreTransport | None
    reporter: Reporter | None
    store: CheckpointStore
    probe: Callable[[BlockDiffusionStudent], dict[str, float]] | None = None

    @property
    def student(self) -> BlockDiffusionStudent:
        """The student that is trained."""
        return self.distillation.student


@dataclass(frozen=True)
class Outcome:
    """How training ended: after which step, how fast, and whether because it was asked to stop."""

    state: TrainingState
    is_stopped: bool
    speeds: Speeds


def train(run: Run) -> Outcome:
    """Train from the last saved state, or from the start, to the end or until it is asked to stop.

    Raises:
        NonFiniteError: ``non_finite_loss``; the states saved before stay as they are.
        ScoreError: the teacher could not answer within its deadline.
    """
    spec = run.distillation.spec
    distiller = Distiller(run.distillation)
    total = distiller.total_steps
    state = run.store.restore(run.student, distiller.optimizer, run.spec_digest)
    state = state or TrainingState(0, total, run.spec_digest)
    journal = Journal(run.reporter, total)
    is_stopping = False

    journal.start(state.step)
    steps = ask_steps(distiller.draw, range(state.step, total))
    with Prefetcher(run.transport, steps, spec.resources.prefetch_steps) as prefetched:
        for answered in prefetched:
            agreed = distiller.agree(answered.payload, wishes_stop=_is_asked_to_stop(run))
            is_stopping = agreed.is_stopping
            if is_stopping:
                break
            taken = distiller.take(answered.payload, answered.responses, agreed, state.adaptive)
            state = replace(state, step=state.step + 1, adaptive=taken.adaptive)
            journal.record(answered, taken)
            if state.step % spec.checkpoints.every_steps == 0 and state.step < total:
                _save(run, distiller.optimizer, state)
            _probe(run, state)
    _save(run, distiller.optimizer, state)
    return Outcome(state, is_stopping, journal.speeds())


def _is_asked_to_stop(run: Run) -> bool:
    return run.reporter is not None and run.reporter.stop_requested


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
    """Measure on held-out sequences every so many steps; trainer 0 reports.

    With a student in parts every trainer takes part in every forward, so all do the same ones; otherwise the
    others wait at the next sum.
    """
    every = run.distillation.spec.evaluation.every_steps
    if run.probe is None or every is None or state.step % every:
        return
    if run.reporter is None and not is_sharded(run.student):
        return
    with evaluation_mode(run.student):
        values = run.probe(run.student)
    if run.reporter is not None:
        run.reporter.send(Metrics(step=state.step, values=values))
