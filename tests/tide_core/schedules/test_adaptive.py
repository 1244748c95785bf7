"""TAID's adaptive progress against a transcription of its algorithm."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.schedules.adaptive import AdaptiveProgress, advance


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(1e-4, 1.0), st.floats(0, 0.999))
def test_progress_follows_the_algorithm(losses: list[float], step_size: float, decay: float) -> None:
    state, progress, momentum, previous = AdaptiveProgress(), 0.0, 0.0, None
    for step, loss in enumerate(losses):
        linear = step / len(losses)
        state = advance(state, loss, linear_progress=linear, step_size=step_size, momentum_decay=decay)
        fall = 0.0 if previous is None else (previous - loss) / (previous + 1e-15)
        momentum = decay * momentum + (1 - decay) * fall
        stride = step_size / (1 + math.exp(min(700.0, -momentum))) * (1 - progress)
        progress, previous = min(1.0, max(linear, progress + stride)), loss
        assert state.progress == pytest.approx(progress)
        assert state.momentum == pytest.approx(momentum)
        assert state.previous_loss == loss


def test_a_falling_loss_moves_progress_faster_than_a_rising_one() -> None:
    def final(losses: list[float]) -> float:
        state = AdaptiveProgress()
        for loss in losses:
            state = advance(state, loss, linear_progress=0.0, step_size=0.1, momentum_decay=0.5)
        return state.progress

    assert final([8.0, 4.0, 2.0, 1.0]) > final([1.0, 2.0, 4.0, 8.0])


def test_progress_ends_at_one_even_when_the_loss_never_falls() -> None:
    assert advance(AdaptiveProgress(0.2, -5.0, 1.0), 9.0, linear_progress=1.0).progress == 1.0


def test_a_loss_that_rose_a_thousandfold_overflows_nothing() -> None:
    state = advance(AdaptiveProgress(0.1, 0.0, 1e-6), 1e6, linear_progress=0.0, momentum_decay=0.0)
    assert state.progress == pytest.approx(0.1)


def test_bad_input_is_refused() -> None:
    for loss in (math.nan, math.inf):
        with pytest.raises(NonFiniteError):
            advance(AdaptiveProgress(), loss, linear_progress=0.0)
    for options in (
        {"linear_progress": 1.5},
        {"linear_progress": 0.5, "step_size": 0.0},
        {"linear_progress": 0.5, "momentum_decay": 1.0},
    ):
        with pytest.raises(InvalidInputError):
            advance(AdaptiveProgress(), 1.0, **options)
