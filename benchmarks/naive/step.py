"""One optimiser step as the released trainer takes it.

The teacher runs in the trainer's process, once a view, over whole sequences; the student's logits are
computed at both copies of every token; log-softmaxes of full logits are held in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.naive.batch import NaiveBatch, mask_view, naive_batch, staircase_mask, views
from benchmarks.naive.losses import total_loss
from benchmarks.naive.models import transformers_model, with_expert_loop
from benchmarks.scenario import Scenario, Sizes, recipe
from tide_core.data.samples import PreparedSample
from tide_core.models.decoder import Decoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.llada2_moe import LLaDA2MoeModel
from tide_core.training.drawing import draw
from tide_core.training.step import build_optimizer


class NaiveArm:
    """Student and teacher of the naive arm.

    Args:
        scenario: the objective.
        sizes: block size and ids.
        student: whose weights are copied.
        teacher: whose weights are copied (dense) or shared (mixture); None when nothing is asked.
        clip_norm: of the gradient.
        autocast: dtype of the student's forward; None for the weights' own.
    """

    def __init__(
        self,
        scenario: Scenario,
        sizes: Sizes,
        student: BlockDiffusionStudent,
        teacher: Decoder | None,
        *,
        clip_norm: float = 1.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._scenario = scenario
        self._sizes = sizes
        self._recipe = recipe(scenario, sizes)
        self.student = transformers_model(student).train()
        self._teacher = _naive_teacher(teacher)
        self._device = student.device
        self._clip_norm = clip_norm
        self._autocast = autocast
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            self.student, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0
        )

    def step(self, rows: Sequence[PreparedSample], learning_rate: float) -> tuple[float, dict[str, float]]:
        """Draw, score, forward, backward, update; the loss and its parts."""
        drawn = [draw(sample, 0, self._recipe) for sample in rows]
        batch = naive_batch(drawn, self._sizes.mask_id).to(self._device)
        teacher_logits = self.teacher_logits(batch) if self._teacher is not None else None
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = total_loss(self._scenario.terms, self._student_logits(batch), teacher_logits, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), self._clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return float(loss.detach()), parts

    def run(self, steps: Sequence[Sequence[PreparedSample]], learning_rate: float) -> list[float]:
        """One step after the other."""
        return [self.step(rows, learning_rate)[0] for rows in steps]

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last step by the checkpoint's names."""
        named = self.student.named_parameters()
        return {name: weight.grad for name, weight in named if weight.grad is not None}

    def close(self) -> None:
        """There is nothing to close."""

    def _student_logits(self, batch: NaiveBatch) -> Tensor:
        seq_len = batch.x_0.shape[1]
        mask = staircase_mask(batch.lengths, seq_len, self._sizes.block, x0_first=False)
        positions = torch.arange(seq_len, device=self._device).repeat(2).expand(len(batch.x_0), -1)
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            logits: Tensor = self.student(
                input_ids=torch.cat([batch.x_t, batch.x_0], dim=1),
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            ).logits
        return logits[:, :seq_len]

    @torch.no_grad()
    def teacher_logits(self, batch: NaiveBatch) -> Tensor:
        """Full logits, each token's from the pass that masks it; in B cut and brought to the student."""
        passes = views(batch.teacher_groups)
        logits = self._pass(batch, passes[0])
        for view in passes[1:]:
            logits = torch.where((batch.teacher_groups == view)[..., None], self._pass(batch, view), logits)
        if self._scenario.is_cross:
            return logits
        rows = torch.arange(len(logits), device=self._device)[:, None]
        return logits[rows, batch.positions.clamp_min(0), : self._sizes.shared_vocab]

    def _pass(self, batch: NaiveBatch, view: int) -> Tensor:
        """One pass of the teacher over the mask_view sequences, logits at every token."""
        x_t = mask_view(batch.teacher_ids, batch.teacher_groups, view, self._sizes.mask_id)
        seq_len = x_t.shape[1]
        if isinstance(self._teacher, LLaDA2MoeModel):
            is_token = torch.arange(seq_len, device=self._device) < batch.teacher_lengths[:, None]
            logits: Tensor = self._teacher.lm_head(self._teacher.hidden_states(x_t, is_token))
            return logits
        return self._dense_pass(batch, x_t)

    def _dense_pass(self, batch: NaiveBatch, x_t: Tensor) -> Tensor:
        """``[x_0 | x_t]`` under the block pattern; logits at both copies."""
        seq_len = x_t.shape[1]
        teacher: Any = self._teacher
        positions = torch.arange(seq_len, device=self._device).repeat(2).expand(len(x_t), -1)
        output = teacher.model(
            input_ids=torch.cat([batch.teacher_ids, x_t], dim=1),
            attention_mask=staircase_mask(batch.teacher_lengths, seq_len, self._sizes.block, x0_first=True),
            position_ids=positions,
            use_cache=True,  # as the released code leaves it, though the cache is never read
        )
        # The wire carries hidden states in bfloat16; rounded alike, both arms compute the same loss.
        hidden = output.last_hidden_state.to(torch.bfloat16).to(teacher.lm_head.weight.dtype)
        logits: Tensor = teacher.lm_head(hidden)
        return logits[:, seq_len:]


def _naive_teacher(teacher: Decoder | None) -> nn.Module | None:
    if teacher is None:
        return None
    if isinstance(teacher, LLaDA2MoeModel):
        return with_expert_loop(teacher)
    return transformers_model(teacher).eval().requires_grad_(False)
