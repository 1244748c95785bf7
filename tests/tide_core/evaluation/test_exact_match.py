"""Sampling for exact match: the teacher through the score contract, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource, ExactMatchTask
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse
from tide_core.contracts.teacher import TeacherDescription
from tide_core.evaluation.exact_match import Matches, compare_answers, match_figures, read_tasks
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.evaluation.teacher_sampling import sample_teacher

VOCAB, EOS, MASK = 12, 11, 10


class Oracle:
    """A teacher whose answer is token (position % 5) everywhere, and the end from position 13 on.

    Hidden states are one-hot, so that the head's logits say it; every third position is unsure.
    """

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        self.requests.append(request)
        rows = []
        for begin, end in zip(request.offsets[:-1], request.offsets[1:], strict=True):
            for position in np.flatnonzero(request.groups[begin:end]):
                rows.append(self.hidden_at(int(position)))
        values = torch.stack(rows).bfloat16().view(torch.int16).numpy().view(np.uint16)
        future: Future[ScoreResponse] = Future()
        future.set_result(ScoreResponse(values, "f", "t"))
        return future

    def hidden_at(self, position: int) -> torch.Tensor:
        hidden = torch.zeros(VOCAB)
        hidden[EOS if position >= 13 else position % 5] = 0.5 if position % 3 == 0 else 20.0
        hidden[MASK] = 40.0  # never to be chosen
        return hidden

    def describe(self) -> TeacherDescription:
        raise AssertionError("not asked")

    def close(self) -> None:
        """Nothing to close."""


def sampled(oracle: Oracle, prompts: list[list[int]], limit: int) -> list[list[int]]:
    return sample_teacher(
        TeacherAccess(oracle, torch.eye(VOCAB), Layout.BIDIRECTIONAL, VOCAB),
        prompts,
        max_new_tokens=limit,
        block_size=4,
        threshold=0.9,
        mask_token_id=MASK,
        eos_token_ids=[EOS],
    )


def test_the_teacher_answers_block_by_block_until_the_end() -> None:
    oracle = Oracle()
    answers = sampled(oracle, [[7] * 6, [7] * 9], 32)
    assert answers == [[p % 5 for p in range(6, 13)], [p % 5 for p in range(9, 13)]]
    first = oracle.requests[0]
    assert np.diff(first.offsets).tolist() == [8, 12], "the prompt's own block is filled first"
    assert first.groups.tolist() == [0] * 6 + [1] * 2 + [0] * 9 + [1] * 3
    assert len(oracle.requests) < 12, "sure tokens are fixed together"


def test_what_is_fixed_is_shown_and_stays() -> None:
    oracle = Oracle()
    sampled(oracle, [[7, 7]], 6)
    second = oracle.requests[1]
    shown = second.token_ids[second.groups == 0]
    assert shown[:2].tolist() == [7, 7]
    assert all(second.token_ids[p] == p % 5 for p in np.flatnonzero(second.groups == 0)[2:])


class Unsure(Oracle):
    """Never sure enough, and surer the later the position."""

    def hidden_at(self, position: int) -> torch.Tensor:
        hidden = torch.zeros(VOCAB)
        hidden[position % 5] = 0.1 * position
        return hidden


def test_where_none_is_sure_the_surest_is_fixed() -> None:
    oracle = Unsure()
    sampled(oracle, [[7] * 4], 4)
    masked = [np.flatnonzero(request.groups).tolist() for request in oracle.requests]
    assert masked == [[4, 5, 6, 7], [4, 5, 6], [4, 5], [4]]


def test_the_limit_cuts_inside_a_block() -> None:
    assert sampled(Oracle(), [[7] * 2], 5) == [[2, 3, 4, 0, 1]]


def test_tasks_are_read_with_their_groups(write_lines: Callable[..., Path]) -> None:
    rows = [
        {"prompt": "1+1", "response": "2", "kind": "sum"},
        {"prompt": "2*3", "response": "6", "kind": "product"},
        {"text": "no question"},
        {"prompt": "1+2", "response": "3", "kind": "sum"},
        {"prompt": "9+9", "response": "18", "kind": "sum"},
    ]
    spec = ExactMatchTask(source=DataSource(location=str(write_lines(rows))), limit=3, group_field="kind")
    tasks = read_tasks(spec)
    assert [task.reference for task in tasks] == ["2", "6", "3"]
    assert [message.content for message in tasks[0].prompt] == ["1+1"]
    matches = compare_answers(tasks, [" 2\n", "7", "3"])
    assert matches == Matches((True, False, True), (" 2\n", "7", "3"))
    assert match_figures(tasks, matches) == {
        "rate": pytest.approx(2 / 3),
        "count": 3,
        "by_group": {"product": {"rate": 0.0, "count": 1}, "sum": {"rate": 1.0, "count": 2}},
    }


def test_a_source_without_tasks_is_refused(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"text": "nothing asked"}])
    with pytest.raises(DataError, match="no prompt"):
        read_tasks(ExactMatchTask(source=DataSource(location=str(path))))
