"""TIDAL's share of the teacher and the timestep weight against their equations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.objective import TidalSchedule
from tide_core.schedules.tidal import TrainingProgress, scheduled_lambda, tidal_lambda, timestep_weight

UNIT = st.floats(0, 1)


@given(UNIT, st.lists(UNIT, max_size=4), UNIT, UNIT)
def test_the_share_follows_its_equation(progress: float, times: list[float], init: float, top: float) -> None:
    t = torch.tensor(times, dtype=torch.float64)
    for growth, g in (("cosine", (1 - math.cos(math.pi * progress)) / 2), ("linear", progress)):
        trained = init + (top - init) * g
        wanted = {
            "both": [trained * (1 - x) for x in times],
            "training": [trained for _ in times],
            "timestep": [top * (1 - x) for x in times],
        }
        for axes, values in wanted.items():
            share = tidal_lambda(progress, t, lambda_init=init, lambda_max=top, growth=growth, axes=axes)
            torch.testing.assert_close(share, torch.tensor(values, dtype=torch.float64))


def test_defaults_are_the_papers() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(tidal_lambda(0.0, t), torch.tensor([0.1, 0.075, 0.0]))
    torch.testing.assert_close(tidal_lambda(0.5, t), torch.tensor([0.5, 0.375, 0.0]))
    torch.testing.assert_close(tidal_lambda(1.0, t), torch.tensor([0.9, 0.675, 0.0]))
    # Cosine growth is slow at the start: a quarter of the way is far from a quarter of the rise.
    assert float(tidal_lambda(0.25, t[:1])) == pytest.approx(0.1 + 0.8 * 0.14645, abs=1e-5)


def test_the_midrange_weight_is_a_bump_around_one_half() -> None:
    t = torch.tensor([0.35, 0.5, 0.65, 0.0])
    wanted = torch.tensor([math.exp(-0.5), 1.0, math.exp(-0.5), math.exp(-0.25 / 0.045)])
    torch.testing.assert_close(timestep_weight(t, "midrange"), wanted)
    torch.testing.assert_close(timestep_weight(t, "uniform"), torch.ones(4))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_numbers_out_of_range_are_refused(bad: float) -> None:
    t = torch.tensor([0.5])
    for arguments, options in (
        ((bad, t), {}),
        ((0.5, torch.tensor([bad])), {}),
        ((0.5, t), {"lambda_init": bad}),
        ((0.5, t), {"lambda_max": bad}),
    ):
        with pytest.raises(InvalidInputError):
            tidal_lambda(*arguments, **options)
    with pytest.raises(InvalidInputError):
        timestep_weight(torch.tensor([bad]), "uniform")


def test_unknown_names_are_refused(no_shape_annotations: None) -> None:
    t = torch.tensor([0.5])
    for options in ({"growth": "exponential"}, {"axes": "none"}):
        with pytest.raises(InvalidInputError) as caught:
            tidal_lambda(0.5, t, **options)  # type: ignore[arg-type]
        assert caught.value.param in options
    with pytest.raises(InvalidInputError):
        timestep_weight(t, "triangle")  # type: ignore[arg-type]


def test_a_terms_schedule_decides_which_progress_counts() -> None:
    t = torch.tensor([0.25, 0.5])
    progress = TrainingProgress(linear=0.5, adaptive=0.9)
    options = {"lambda_init": 0.2, "lambda_max": 0.8, "axes": "both"}
    for growth in ("cosine", "linear"):
        torch.testing.assert_close(
            scheduled_lambda(TidalSchedule(growth=growth, **options), progress, t),
            tidal_lambda(0.5, t, growth=growth, **options),
        )
    adaptive = TidalSchedule(growth="adaptive", **options)
    torch.testing.assert_close(
        scheduled_lambda(adaptive, progress, t), tidal_lambda(0.9, t, growth="linear", **options)
    )
    with pytest.raises(InvalidInputError) as caught:
        scheduled_lambda(adaptive, TrainingProgress(linear=0.5), t)
    assert caught.value.param == "adaptive_progress"
