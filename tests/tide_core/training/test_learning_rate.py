"""The learning rate's path and the length of a run."""

import math

import pytest

from tide_core.contracts.errors import DataError
from tide_core.contracts.job import Hyperparameters
from tide_core.training.schedule import learning_rate, total_steps, training_progress


def test_cosine_with_warm_up() -> None:
    hyper = Hyperparameters(learning_rate=2.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, hyper) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1.0 + math.cos(math.pi * 89 / 90))
    assert all(rate > 0 for rate in rates)


def test_linear_and_constant() -> None:
    linear = Hyperparameters(learning_rate=1.0, warmup_ratio=0.0, learning_rate_schedule="linear")
    assert [learning_rate(step, 4, linear) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = Hyperparameters(learning_rate=1.0, warmup_ratio=0.5, learning_rate_schedule="constant")
    assert [learning_rate(step, 4, constant) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_steps_of_a_run() -> None:
    assert total_steps(Hyperparameters(max_steps=7), 1000) == 7
    assert total_steps(Hyperparameters(epochs=3, global_batch_size=8), 100) == 38
    assert total_steps(Hyperparameters(epochs=0.001, global_batch_size=8), 100) == 1
    assert total_steps(Hyperparameters(global_batch_size=10), 100) == 100
    with pytest.raises(DataError, match="training sequence"):
        total_steps(Hyperparameters(max_steps=7), 0)


def test_progress_stays_below_one() -> None:
    assert training_progress(0, 10) == 0.0
    assert training_progress(9, 10) == 0.9
