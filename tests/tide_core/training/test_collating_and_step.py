"""Micro-batches against plain loops, and two simulated trainers against one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_runs import BLOCK, MASK, Bench, tiny_samples, tiny_spec, tiny_student
from tide_core.contracts.errors import AlignmentError, InvalidInputError
from tide_core.contracts.objective import CalmTerm, CrossEntropyTerm, Pipeline, Variant
from tide_core.contracts.scores import FIRST_VIEW, SECOND_VIEW, ScoreResponse
from tide_core.models.student import BlockDiffusionStudent
from tide_core.objective.inputs import ChunkScores, HiddenScores, Normalisers, ObjectiveInputs
from tide_core.objective.objective import Objective, ObjectiveOutput
from tide_core.schedules.tidal import TrainingProgress
from tide_core.training.collating import collate
from tide_core.training.collective import Alone
from tide_core.training.distiller import Distillation, draw_step
from tide_core.training.drawing import draw, recipe_for
from tide_core.training.matching import ChunkMatch, PositionMatch
from tide_core.training.step import TOTAL, ShareOfLoss, Stepper, build_optimizer

A, B = Pipeline.CROSS_TOKENIZER, Pipeline.SHARED_TOKENIZER


def drawn_samples(variant: Variant, pipeline: Pipeline, count: int = 5) -> tuple[Any, Any]:
    shared = 60 if pipeline is B else 0
    recipe = recipe_for(tiny_spec(variant, pipeline), job_id="job", lease=None, shared_vocab=shared)
    return [draw(sample, 3, recipe) for sample in tiny_samples(pipeline, count)], recipe


@pytest.mark.parametrize("variant", [Variant.TIDE_CROSS, Variant.TIDE_SHARED])
def test_chunk_scores_against_a_loop(variant: Variant) -> None:
    drawn, recipe = drawn_samples(variant, A)
    batch = collate(drawn, recipe, mask_token_id=MASK)
    assert batch.request is not None
    assert isinstance(batch.match, ChunkMatch)
    answered = int(batch.request.masked_counts.sum())
    values = -np.random.default_rng(0).random(answered).astype(np.float32)
    scores = batch.match.scores(ScoreResponse(values, "f", "t"))
    assert isinstance(scores, ChunkScores)
    expected: list[float] = []
    rows: list[int] = []
    masked_chunk: list[int] = []
    place = 0
    for row, item in enumerate(drawn):
        sums: dict[int, float] = {}
        for chunk, group in zip(item.sample.teacher_chunk_ids, item.groups, strict=True):
            if group:
                sums[int(chunk)] = sums.get(int(chunk), 0.0) + float(values[place])
                place += 1
        numbers = {chunk: len(expected) + rank for rank, chunk in enumerate(sorted(sums))}
        expected += [sums[chunk] for chunk in sorted(sums)]
        rows += [row] * len(sums)
        for chunk, is_masked in zip(item.sample.student_chunk_ids, item.corruption.is_masked, strict=True):
            if is_masked:
                masked_chunk.append(numbers.get(int(chunk), -1))
    assert scores.log_probs.tolist() == pytest.approx(expected, rel=1e-6)
    assert scores.chunk_row.tolist() == rows
    assert scores.masked_chunk.tolist() == masked_chunk
    assert batch.counts.active_chunks == len(expected)


def test_hidden_scores_against_a_loop() -> None:
    drawn, recipe = drawn_samples(Variant.TIDE_SHARED, B)
    batch = collate(drawn, recipe, mask_token_id=MASK)
    assert batch.request is not None
    assert isinstance(batch.match, PositionMatch)
    answered = int(batch.request.masked_counts.sum())
    # bfloat16 bits whose value is the row's number: exact up to 256.
    numbers = torch.arange(answered, dtype=torch.bfloat16)[:, None].view(torch.int16).numpy().view(np.uint16)
    scores = batch.match.scores(ScoreResponse(numbers, "f", "t"), torch.zeros(64, 1))
    assert isinstance(scores, HiddenScores)
    answer_of: dict[tuple[int, int], int] = {}
    for row, item in enumerate(drawn):
        for position in np.flatnonzero(item.groups):
            answer_of[row, int(position)] = len(answer_of)
    index, hidden, masked = [], [], 0
    for row, item in enumerate(drawn):
        for position in np.flatnonzero(item.corruption.is_masked):
            at_teacher = int(item.sample.teacher_positions[position])
            if at_teacher >= 0:
                index.append(masked)
                hidden.append(answer_of[row, at_teacher])
            masked += 1
    assert scores.aligned_masked_index.tolist() == index
    assert scores.hidden[:, 0].tolist() == hidden
    assert len(index) < masked, "the closing tokens have no teacher"


def test_the_request_carries_the_views_and_leaves_out_idle_sequences() -> None:
    drawn, recipe = drawn_samples(Variant.TIDE_SHARED, B)
    idle = replace(drawn[1], groups=np.zeros_like(drawn[1].groups))
    kept = [drawn[0], drawn[2], drawn[3], drawn[4]]
    batch = collate([*kept[:1], idle, *kept[1:]], recipe, mask_token_id=MASK)
    assert batch.request is not None
    kept = [item for item in kept if item.groups.any()]
    assert batch.request.batch == len(kept)
    np.testing.assert_array_equal(batch.request.groups, np.concatenate([item.groups for item in kept]))
    assert {FIRST_VIEW, SECOND_VIEW} <= set(batch.request.groups.tolist())


def test_the_layout_holds_the_noisy_and_the_clean_copy() -> None:
    drawn, recipe = drawn_samples(Variant.NONE, A)
    batch = collate(drawn, recipe, mask_token_id=MASK)
    assert batch.request is None
    clean = [item.sample.student_ids[item.corruption.is_masked] for item in drawn]
    assert batch.target_ids.tolist() == np.concatenate(clean).tolist()
    assert (batch.input_ids.flatten()[batch.places.index] == MASK).all()
    assert batch.layout.block.max() < 32 // BLOCK


def test_a_wrong_number_of_answers_is_refused() -> None:
    drawn, recipe = drawn_samples(Variant.TIDE_CROSS, A)
    match = collate(drawn, recipe, mask_token_id=MASK).match
    assert isinstance(match, ChunkMatch)
    with pytest.raises(AlignmentError, match="shape"):
        match.scores(ScoreResponse(np.zeros(3, np.float32), "f", "t"))
    with pytest.raises(AlignmentError):
        match.scores(None)


def test_a_chunk_without_a_teacher_token_is_refused() -> None:
    drawn, recipe = drawn_samples(Variant.TIDE_CROSS, A)
    sample = drawn[0].sample
    first = int(np.flatnonzero(drawn[0].corruption.is_active_chunk)[0])
    cut = replace(
        drawn[0],
        sample=replace(
            sample,
            teacher_chunk_ids=np.where(sample.teacher_chunk_ids == first, -1, sample.teacher_chunk_ids),
        ),
        groups=np.where(sample.teacher_chunk_ids == first, 0, drawn[0].groups).astype(np.uint8),
    )
    with pytest.raises(AlignmentError, match="no teacher token"):
        collate([cut], recipe, mask_token_id=MASK)


class OneOf:
    """A trainer of several, whose sums over the others are given."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, values: Sequence[float]) -> list[float]:
        raise AssertionError("the test sums by itself")


def stepper_of(run: Distillation, objective: Objective) -> Stepper:
    """The step of one trainer, alone with its sums."""
    optimizer = build_optimizer(run.student, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.0)
    share = ShareOfLoss(run.student, objective, None)
    asks = run.recipe.want is not None
    return Stepper(share, optimizer, Alone(), clip_norm=1.0, asks_teacher=asks, teacher_head=run.teacher_head)


def gradients(
    bench: Bench, variant: Variant, pipeline: Pipeline, size: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of step 0, dealt to `size` trainers one after the other and summed here."""
    spec = tiny_spec(variant, pipeline, batch=5, micro=2)
    runs = [bench.run(spec, collective=OneOf(rank, size), name=f"s{size}r{rank}") for rank in range(size)]
    steps = [draw_step(run.distillation, 0) for run in runs]
    every = [step.counts for step in steps]
    counts = Normalisers(
        *(sum(getattr(c, n) for c in every) for n in vars(every[0]))  # type: ignore[misc]
    )
    total, sums = 0.0, {}
    for run, step in zip(runs, steps, strict=True):
        student: BlockDiffusionStudent = run.student
        objective = Objective(run.distillation.spec.objective, run.distillation.recipe.noise)
        stepper = stepper_of(run.distillation, objective)
        answers = [bench.transport.submit(request).result() for request in step.requests]
        losses = stepper.accumulate(
            step.batches,
            step.pair_answers(answers),
            counts,
            progress=TrainingProgress(0.3, 0.0),
            number=0,
            forwards=len(step.batches),
        )
        total += losses[TOTAL]
        for name, parameter in student.named_parameters():
            sums[name] = sums.get(name, 0.0) + parameter.grad
    return total, sums


@pytest.mark.parametrize("pipeline", [A, B])
@pytest.mark.parametrize("variant", list(Variant))
def test_two_trainers_sum_to_one(bench: Bench, variant: Variant, pipeline: Pipeline) -> None:
    loss_one, one = gradients(bench, variant, pipeline, 1)
    loss_two, two = gradients(bench, variant, pipeline, 2)
    loss_five, five = gradients(bench, variant, pipeline, 5)
    assert loss_two == pytest.approx(loss_one, rel=1e-5)
    assert loss_five == pytest.approx(loss_one, rel=1e-5)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(five[name], gradient, rtol=1e-4, atol=1e-6)


class Forgetful(Objective):
    """An objective that leaves a term out of its parts."""

    def loss(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        output = super().loss(inputs)
        return replace(output, parts={"cross_entropy": output.parts["cross_entropy"]})


def test_a_part_that_is_missing_is_an_error_and_no_zero(bench: Bench) -> None:
    run = bench.run(tiny_spec([CrossEntropyTerm(), CalmTerm()], A)).distillation
    step = draw_step(run, 0)
    answers = [bench.transport.submit(request).result() for request in step.requests]
    with pytest.raises(InvalidInputError, match="calm") as caught:
        stepper_of(run, Forgetful(run.spec.objective, run.recipe.noise)).step(
            step.batches,
            step.pair_answers(answers),
            step.counts,
            progress=TrainingProgress(0.0),
            learning_rate=0.0,
            number=0,
            forwards=1,
        )
    assert caught.value.code == "missing_loss_part"


def test_norms_are_not_decayed() -> None:
    student = tiny_student()
    optimizer = build_optimizer(student, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert all((id(p) in decayed) == (p.ndim == 2) for p in student.parameters())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(student.parameters()))
