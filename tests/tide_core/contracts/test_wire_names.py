"""A trainer and a replica of two versions understand each other: what they pickle keeps its place."""

import pytest

from tide_core.contracts import errors
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, TopKQuestion, Want
from tide_core.contracts.teacher import TeacherDescription
from workers.teachers.holding import HeldAnswer

SCORES, TEACHER, ERRORS = (f"tide_core.contracts.{name}" for name in ("scores", "teacher", "errors"))
PLACES = {
    ScoreRequest: f"{SCORES}.ScoreRequest",
    ScoreResponse: f"{SCORES}.ScoreResponse",
    TopKQuestion: f"{SCORES}.TopKQuestion",
    Layout: f"{SCORES}.Layout",
    Want: f"{SCORES}.Want",
    TeacherDescription: f"{TEACHER}.TeacherDescription",
    HeldAnswer: "workers.teachers.holding.HeldAnswer",
    errors.InvalidInputError: f"{ERRORS}.InvalidInputError",
    errors.ScoreError: f"{ERRORS}.ScoreError",
    errors.RetryableScoreError: f"{ERRORS}.RetryableScoreError",
    errors.FingerprintMismatchError: f"{ERRORS}.FingerprintMismatchError",
}


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
def test_what_goes_over_the_wire_keeps_its_name(kind: type) -> None:
    assert f"{kind.__module__}.{kind.__qualname__}" == PLACES[kind]
