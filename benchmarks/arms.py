"""Both arms of a step behind one protocol: Tide's own training code, and the naive one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.naive.step import NaiveArm
from benchmarks.scenario import PROGRESS, Scenario, Sizes, recipe, student, teacher
from tide_core.contracts.scores import ScoreResponse
from tide_core.contracts.teacher import TeacherDescription
from tide_core.data.samples import PreparedSample
from tide_core.models.decoder import Decoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.objective.objective import Objective
from tide_core.schedules.tidal import TrainingProgress
from tide_core.scoring.prefetcher import AskedStep, Prefetcher
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.collating import MicroBatch, collate
from tide_core.training.collective import Alone
from tide_core.training.drawing import draw
from tide_core.training.step import ShareOfLoss, Stepper, build_optimizer
from workers.scores.local_transport import LocalTransport
from workers.teachers.engine import TeacherEngine

CLIP_NORM = 1.0
PREFETCHED_STEPS = 2
"""As a job's default, ``resources.prefetch_steps``."""
FINGERPRINT = "bench"


class Arm(Protocol):
    """One way to take a step."""

    optimizer: torch.optim.Optimizer

    def step(self, rows: Sequence[PreparedSample], learning_rate: float) -> tuple[float, dict[str, float]]:
        """A whole step on these samples: the loss and its parts."""

    def run(self, steps: Sequence[Sequence[PreparedSample]], learning_rate: float) -> list[float]:
        """Several steps as training takes them, one after the other; their losses. Nothing goes on after."""

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last step, by the checkpoint's names."""

    def close(self) -> None:
        """End what runs in the background."""


class TideArm:
    """The training step of a job: `tide_core.training.step`, with the teacher's engine in this process.

    Args:
        scenario: the objective.
        sizes: block size and ids.
        student: trained in place.
        teacher: served by an engine here; None when nothing is asked.
        transport: the way to a teacher elsewhere, instead of the engine.
        autocast: dtype of the student's forward; None for the weights' own.
    """

    def __init__(
        self,
        scenario: Scenario,
        sizes: Sizes,
        student: BlockDiffusionStudent,
        teacher: Decoder | None,
        *,
        transport: ScoreTransport | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._sizes = sizes
        self.student = student.train()
        self.recipe = recipe(scenario, sizes)
        self.engine = _engine(teacher) if teacher is not None and transport is None else None
        self.transport = transport or (_local(self.engine) if self.engine is not None else None)
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            student, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0
        )
        head = teacher.lm_head.weight if teacher is not None and not scenario.is_cross else None
        self._stepper = Stepper(
            ShareOfLoss(student, Objective(scenario.terms, self.recipe.noise), autocast),
            self.optimizer,
            Alone(),
            clip_norm=CLIP_NORM,
            asks_teacher=scenario.asks_teacher,
            teacher_head=None if head is None else head.detach(),
        )

    def step(self, rows: Sequence[PreparedSample], learning_rate: float) -> tuple[float, dict[str, float]]:
        """Draw, ask, wait for the answer, forward, backward, update; the loss and its parts."""
        batch = self.draw_batch(rows)
        answer = None
        if batch.request is not None:
            assert self.transport is not None
            answer = self.transport.submit(batch.request).result()
        return self.train(batch, answer, learning_rate)

    def run(self, steps: Sequence[Sequence[PreparedSample]], learning_rate: float) -> list[float]:
        """As a job trains: later steps are drawn and asked while the student works on the present one."""
        drawn = (self.draw_batch(rows) for rows in steps)
        asked = (AskedStep(batch, [batch.request] if batch.request is not None else []) for batch in drawn)
        losses = []
        with Prefetcher(self.transport, asked, PREFETCHED_STEPS) as answered:
            for step in answered:
                answer = step.responses[0] if step.responses else None
                losses.append(self.train(step.payload, answer, learning_rate)[0])
        return losses

    def draw_batch(self, rows: Sequence[PreparedSample]) -> MicroBatch:
        """The samples with their noise, laid out, and their question."""
        noisy = [draw(sample, 0, self.recipe) for sample in rows]
        return collate(noisy, self.recipe, mask_token_id=self._sizes.mask_id)

    def train(
        self, batch: MicroBatch, answer: ScoreResponse | None, learning_rate: float
    ) -> tuple[float, dict[str, float]]:
        """Forward, backward and update on an answered micro-batch."""
        result = self._stepper.step(
            [batch],
            [answer],
            batch.counts,
            progress=TrainingProgress(PROGRESS, PROGRESS),
            learning_rate=learning_rate,
            number=0,
            forwards=1,
        )
        return result.total, result.parts

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last step, by the checkpoint's names."""
        holder = BlockDiffusionStudent.from_config(self.student.config)
        with torch.no_grad():
            for target, weight in zip(holder.parameters(), self.student.parameters(), strict=True):
                assert weight.grad is not None
                target.copy_(weight.grad)
        return {name: tensor.detach() for name, tensor in holder.checkpoint_tensors().items()}

    def close(self) -> None:
        """End the engine's thread."""
        if self.transport is not None:
            self.transport.close()
        if self.engine is not None:
            self.engine.close()


def make_arm(
    name: str,
    scenario: Scenario,
    sizes: Sizes,
    *,
    device: str = "cpu",
    teacher_dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Arm:
    """The arm ``tide`` or ``naive`` with weights of its own, equal in both."""
    pupil = student(sizes, device=device)
    guide = (
        teacher(scenario.teacher, sizes, dtype=teacher_dtype, device=device)
        if scenario.asks_teacher
        else None
    )
    if name == "tide":
        return TideArm(scenario, sizes, pupil, guide, autocast=autocast)
    assert name == "naive", name
    return NaiveArm(scenario, sizes, pupil, guide, clip_norm=CLIP_NORM, autocast=autocast)


def _engine(model: Decoder) -> TeacherEngine:
    return TeacherEngine(model, fingerprint=FINGERPRINT, tokenizer_fingerprint=FINGERPRINT)


def _local(engine: TeacherEngine) -> LocalTransport:
    return LocalTransport(engine, describe(engine))


def describe(engine: TeacherEngine) -> TeacherDescription:
    """What an engine with drawn weights says of itself."""
    weight = engine.model.lm_head.weight
    return TeacherDescription(
        fingerprint=engine.fingerprint,
        tokenizer_fingerprint=engine.tokenizer_fingerprint,
        architecture="drawn weights",
        vocab_size=engine.model.vocab_size,
        hidden_size=engine.model.hidden_size,
        mask_token_id=engine.model.mask_token_id,
        parameters=0,
        dtype="bfloat16" if weight.dtype == torch.bfloat16 else "float32",
        device=str(weight.device),
        weight_bytes=0,
    )
