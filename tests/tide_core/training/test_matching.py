"""What a teacher's answer is matched to, against plain loops: the likeliest ids, and pre-token boundaries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.score_answers import TOP_K
from tests.support.tiny_runs import BEGINS_PRETOKEN, MASK, tiny_samples, tiny_spec
from tide_core.contracts.errors import AlignmentError, InvalidInputError
from tide_core.contracts.objective import CalmTerm, ChunkFilter, ForwardKLTerm, Pipeline, Variant
from tide_core.contracts.scores import ScoreResponse, TopKQuestion, Want
from tide_core.contracts.teacher import want_of
from tide_core.objective.inputs import TopKScores
from tide_core.training.collating import collate
from tide_core.training.drawing import BatchRecipe, DrawnSample, draw, recipe_for
from tide_core.training.matching import (
    VISIBLE_NON_BOUNDARY,
    ChunkMatch,
    PositionMatch,
    bfloat16_rows,
    match_positions,
)

FILTERED = [CalmTerm(chunk_filter=ChunkFilter(threshold=0.3))]


def drawn_for(recipe: BatchRecipe, count: int = 6) -> list[DrawnSample]:
    return [draw(sample, 3, recipe) for sample in tiny_samples(recipe.pipeline, count)]


def cross_recipe(*, two_views: bool) -> BatchRecipe:
    named = tiny_spec(Variant.TIDE_SHARED if two_views else Variant.BASELINE, Pipeline.CROSS_TOKENIZER)
    spec = tiny_spec(FILTERED, Pipeline.CROSS_TOKENIZER, teacher_context=named.teacher_context)
    return recipe_for(spec, job_id="job", lease=None, begins_pretoken=BEGINS_PRETOKEN)


def cross_recipe_plain() -> BatchRecipe:
    return recipe_for(tiny_spec([CalmTerm()], Pipeline.CROSS_TOKENIZER), job_id="job", lease=None)


@pytest.mark.parametrize("two_views", [False, True])
def test_boundaries_against_a_loop(two_views: bool) -> None:
    recipe = cross_recipe(two_views=two_views)
    drawn = drawn_for(recipe)
    batch = collate(drawn, recipe, mask_token_id=MASK)
    assert batch.request is not None
    assert batch.request.want is Want.TARGET_AND_BOUNDARY
    assert isinstance(batch.match, ChunkMatch)
    answered = int(batch.request.masked_counts.sum())
    values = -np.random.default_rng(0).random((answered, 2)).astype(np.float32)
    found = batch.match.scores(ScoreResponse(values, "f", "t")).boundaries
    assert found is not None
    student, teacher, visible = [], [], []
    masked_before = answers_before = 0
    for item in drawn:
        ours, theirs = item.sample.student_chunk_ids, item.sample.teacher_chunk_ids
        masked, groups = item.corruption.is_masked, item.groups
        for chunk in np.flatnonzero(item.corruption.is_active_chunk):
            place = max(i for i, c in enumerate(ours) if c == chunk) + 1
            is_there = place < len(ours)
            begins = not is_there or BEGINS_PRETOKEN[item.sample.student_ids[place]]
            visible.append(0.0 if begins else VISIBLE_NON_BOUNDARY)
            is_masked = is_there and masked[place]
            student.append(masked_before + int(masked[:place].sum()) if is_masked else -1)
            last = max(i for i, c in enumerate(theirs) if c == chunk)
            is_asked = last + 1 < len(theirs) and groups[last + 1] == groups[last]
            row = answers_before + int((groups[: last + 1] > 0).sum())
            teacher.append(float(values[row, 1]) if is_asked else visible[-1])
        masked_before += int(masked.sum())
        answers_before += int((groups > 0).sum())
    assert found.student_next.tolist() == student
    assert found.visible_log_probs.tolist() == pytest.approx(visible)
    assert found.teacher_log_probs.tolist() == pytest.approx(teacher)
    assert any(place >= 0 for place in student)
    assert any(place < 0 for place in student)
    assert found.begins_pretoken.tolist() == BEGINS_PRETOKEN.tolist()


def test_an_answer_without_the_second_column_is_refused() -> None:
    recipe = cross_recipe(two_views=False)
    match = collate(drawn_for(recipe), recipe, mask_token_id=MASK).match
    assert isinstance(match, ChunkMatch)
    with pytest.raises(AlignmentError, match="shape"):
        match.scores(ScoreResponse(np.zeros(match.answer_chunk.size, np.float32), "f", "t"))


@pytest.mark.parametrize("is_filtered", [False, True])
def test_nothing_masked_needs_no_answer(is_filtered: bool) -> None:
    recipe = cross_recipe(two_views=False) if is_filtered else cross_recipe_plain()
    idle = [
        replace(
            item,
            corruption=replace(
                item.corruption,
                is_masked=np.zeros_like(item.corruption.is_masked),
                is_active_chunk=np.zeros_like(item.corruption.is_active_chunk),
            ),
            groups=np.zeros_like(item.groups),
        )
        for item in drawn_for(recipe)
    ]
    batch = collate(idle, recipe, mask_token_id=MASK)
    assert batch.request is None
    assert isinstance(batch.match, ChunkMatch)
    scores = batch.match.scores(None)
    assert scores.log_probs.shape == (0,)
    assert (scores.boundaries is not None) == is_filtered


def test_likeliest_ids_land_at_their_positions() -> None:
    spec = tiny_spec(Variant.TIDE_SHARED, Pipeline.SHARED_TOKENIZER)
    recipe = recipe_for(spec, job_id="job", lease=None, shared_vocab=60)
    match = match_positions(drawn_for(recipe), 60, TOP_K)
    assert isinstance(match, PositionMatch)
    answers = np.zeros(match.answer_row.size, TOP_K.row_format)
    answers["ids"] = np.arange(answers.size * TOP_K.k).reshape(-1, TOP_K.k)
    answers["logits"] = -np.arange(TOP_K.k)
    answers["log_tails"] = [-1.0, -np.inf]
    packed = answers.view(np.uint8).reshape(answers.size, -1)
    packed.setflags(write=False)  # as from the object store
    scores = match.scores(ScoreResponse(packed, "f", "t"), None)
    assert isinstance(scores, TopKScores)
    assert scores.ids[:, 0].tolist() == (match.answer_row * TOP_K.k).tolist()
    for temperature, tail in ((1.0, math.exp(-1.0)), (2.0, 0.0)):
        known = scores.at(temperature)
        weights = [math.exp(-n / temperature) for n in range(TOP_K.k)]
        total = math.fsum(weights) + tail
        expected = torch.tensor([math.log(weight / total) for weight in weights])
        torch.testing.assert_close(known.log_probs[0], expected)
        assert math.exp(float(known.log_tail[0])) == pytest.approx(tail / total)
    with pytest.raises(InvalidInputError, match=r"3\.0"):
        scores.at(3.0)


def test_the_recipe_asks_for_what_the_terms_need() -> None:
    spec = tiny_spec(
        [ForwardKLTerm(temperature=3.0), ForwardKLTerm(), ForwardKLTerm(weight=0.5)],
        Pipeline.SHARED_TOKENIZER,
    )
    sparse = spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"top_k": 100})})
    assert want_of(spec) is Want.HIDDEN
    recipe = recipe_for(sparse, job_id="job", lease=None, shared_vocab=60)
    assert recipe.top_k == TopKQuestion(60, 60, (2.0, 3.0))
    control = tiny_spec(Variant.NONE, Pipeline.SHARED_TOKENIZER)
    assert want_of(control) is None


def test_hidden_states_that_came_as_a_tensor_count_alike() -> None:
    spec = tiny_spec(Variant.TIDE_SHARED, Pipeline.SHARED_TOKENIZER)
    recipe = recipe_for(spec, job_id="job", lease=None, shared_vocab=60)
    match = match_positions(drawn_for(recipe), 60)
    answers, head = match.answer_row.size, torch.ones(60, 8)
    states = torch.randn(answers + 1, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    tensor, array = states[:-1], states[:-1].view(torch.uint16).numpy()
    by_tensor, by_array = (match.scores(ScoreResponse(each, "f", "t"), head) for each in (tensor, array))
    assert not isinstance(by_tensor, TopKScores)
    assert not isinstance(by_array, TopKScores)
    assert torch.equal(by_tensor.hidden, by_array.hidden)
    assert torch.equal(by_tensor.hidden, states[match.answer_row].float())
    with pytest.raises(AlignmentError, match="shape"):
        match.scores(ScoreResponse(states, "f", "t"), head)


def test_rows_of_a_tensor_are_of_their_own_memory() -> None:
    states = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    rows = bfloat16_rows(states, np.array([2, 0, 2]))
    assert rows.tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    rows.zero_()
    assert states[2].tolist() == [6, 7, 8]
