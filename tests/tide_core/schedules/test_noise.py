"""Noise schedules against their equations, in every kind of number."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError
from tide_core.schedules.noise import CosineNoise, LinearNoise, NoiseSchedule, noise_schedule

TIMES = st.floats(1e-3, 1.0)
SCHEDULES = [LinearNoise(), CosineNoise()]


@given(TIMES)
def test_linear_follows_its_equation(t: float) -> None:
    noise = LinearNoise()
    assert noise.alpha(t) == 1.0 - t
    assert noise.alpha_derivative(t) == -1.0
    assert noise.weight(t) == 1.0 / t


@given(TIMES)
def test_cosine_follows_its_equation(t: float) -> None:
    noise = CosineNoise()
    angle = math.pi / 2 * (1.0 - t)
    assert noise.alpha(t) == pytest.approx(1.0 - math.cos(angle), abs=1e-12)
    assert noise.alpha_derivative(t) == pytest.approx(-math.pi / 2 * math.sin(angle), abs=1e-12)
    assert noise.weight(t) == pytest.approx(math.pi / 2 * math.tan(angle), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("noise", SCHEDULES)
def test_ends_and_direction(noise: NoiseSchedule) -> None:
    grid = np.linspace(0.0, 1.0, 101)
    alpha = noise.alpha(grid)
    assert alpha[0] == pytest.approx(1.0)
    assert alpha[-1] == pytest.approx(0.0, abs=1e-15)
    assert (np.diff(alpha) < 0).all()
    assert noise.weight(1.0) >= 0.0


@pytest.mark.parametrize("noise", SCHEDULES)
def test_the_derivative_is_the_slope_of_alpha(noise: NoiseSchedule) -> None:
    step = 1e-6
    for t in (0.1, 0.5, 0.9):
        slope = (noise.alpha(t + step) - noise.alpha(t - step)) / (2 * step)
        assert noise.alpha_derivative(t) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("noise", SCHEDULES)
def test_floats_arrays_and_tensors_agree(noise: NoiseSchedule) -> None:
    times = [0.001, 0.3, 0.999, 1.0]
    for method in (noise.alpha, noise.alpha_derivative, noise.weight):
        wanted = [method(t) for t in times]
        array = method(np.array(times))
        tensor = method(torch.tensor(times, dtype=torch.float64))
        np.testing.assert_allclose(array, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-12, atol=1e-12)
        assert method(torch.tensor(times)).dtype == torch.float32
        assert method(np.float32(0.5)) == pytest.approx(method(0.5), rel=1e-6)


@pytest.mark.parametrize("noise", SCHEDULES)
def test_a_weight_at_or_beyond_the_ends_is_refused(noise: NoiseSchedule) -> None:
    for bad in (0.0, -0.1, 1.1, math.nan):
        for t in (bad, np.array([0.5, bad]), torch.tensor([0.5, bad])):
            with pytest.raises(InvalidInputError) as caught:
                noise.weight(t)
            assert caught.value.param == "t"


def test_a_spec_names_its_schedule() -> None:
    assert noise_schedule("linear") == LinearNoise()
    assert noise_schedule("cosine") == CosineNoise()


def test_an_unknown_schedule_is_refused(no_shape_annotations: None) -> None:
    with pytest.raises(InvalidInputError):
        noise_schedule("quadratic")  # type: ignore[arg-type]
