"""The demo's verdict follows from the figures alone, and says so when there is no difference."""

from typing import Any

import numpy as np
import pytest

from tide_core.contracts.objective import Pipeline, Variant
from tide_core.studies.paired import PairedResult
from workers.demo.comparison import JobOutcome, compare, verdict
from workers.demo.report import markdown
from workers.demo.setting import ALL_JOBS, DemoJob

TOKENS = np.full(40, 10.0)


def outcome(pipeline: Pipeline, variant: Variant, nelbo: float) -> JobOutcome:
    """A job whose every sequence has the same NELBO a token, but for a little scatter of its own."""
    scatter = np.random.default_rng(3).normal(size=40)
    figures = {"nelbo_per_token": nelbo, "masked_token_accuracy": 0.5, "exact_match": {"rate": 0.25}}
    report: dict[str, Any] = {
        "models": {"start": {"nelbo_per_token": 3.0}, "student": figures, "teacher": {}},
        "sizes": {"student_parameters": 1_000_000},
        "speeds": {"seconds_per_step": 0.25},
    }
    sequences = {
        "student/nll": (nelbo + 0.5 * scatter) * TOKENS,
        "student/tokens": TOKENS,
        "student/exact_match": np.tile([1.0, 0.0, 0.0, 0.0], 10),
    }
    return JobOutcome(DemoJob(pipeline, variant), f"job-{variant}", "/models/x", report, sequences)


def test_a_student_below_its_control_on_every_sequence_is_helped() -> None:
    pipeline = Pipeline.SHARED_TOKENIZER
    outcomes = [outcome(pipeline, Variant.TIDE_SHARED, 1.9), outcome(pipeline, Variant.NONE, 2.0)]
    (comparison,) = compare(outcomes)
    assert [row.model for row in comparison.rows] == [
        "start",
        "control (none)",
        "distilled (tide_shared)",
        "teacher",
    ]
    gains = {gain.figure: gain for gain in comparison.gains["tide_shared"]}
    assert gains["nelbo_per_token"].verdict == "helped"
    assert gains["nelbo_per_token"].result.difference == pytest.approx(-0.1)
    assert gains["exact_match"].verdict == "no clear difference"
    assert "masked_token_accuracy" not in gains, "what was not measured a sequence is not compared"
    told = markdown([comparison], outcomes)
    assert "| start | 3.0000 | – | – | – |" in told
    assert "helped" in told


def test_without_a_control_nothing_is_claimed() -> None:
    (comparison,) = compare([outcome(Pipeline.CROSS_TOKENIZER, Variant.TIDE_CROSS, 2.0)])
    assert comparison.gains == {}


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "expected"),
    [
        (-0.2, -0.1, False, "helped"),
        (0.1, 0.2, False, "hurt"),
        (0.1, 0.2, True, "helped"),
        (-0.2, -0.1, True, "hurt"),
        (-0.1, 0.1, True, "no clear difference"),
        (0.0, 0.1, True, "no clear difference"),
    ],
)
def test_the_verdict_is_what_the_interval_says(
    low: float, high: float, higher_is_better: bool, expected: str
) -> None:
    result = PairedResult((low + high) / 2, low, high, 0.01)
    assert verdict(result, higher_is_better) == expected


def test_the_main_jobs_have_their_controls_and_all_variants_are_eight() -> None:
    assert len(ALL_JOBS) == len(set(ALL_JOBS)) == 8
