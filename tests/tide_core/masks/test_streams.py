"""Counter streams: stateless, distinct, and the same for ever."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError
from tide_core.masks.streams import permutation, uniforms

KEYS = st.tuples(st.integers(), st.integers(0, 2**40), st.integers(0, 2**40), st.text(max_size=10))


@given(KEYS, st.integers(0, 50), st.integers(0, 50))
def test_a_draw_depends_on_its_key_and_place_alone(key: tuple, count: int, more: int) -> None:
    first = uniforms(*key, count)
    np.random.default_rng().random(7)
    np.testing.assert_array_equal(first, uniforms(*key, count + more)[:count])
    assert first.dtype == np.float64
    assert ((first >= 0) & (first < 1)).all()


def test_every_part_of_the_key_matters() -> None:
    keys = [
        (0, 0, 0, "mask"),
        (1, 0, 0, "mask"),
        (0, 1, 0, "mask"),
        (0, 0, 1, "mask"),
        (0, 0, 0, "t"),
        (-1, 0, 0, "mask"),
    ]
    # Numbers must not run together: (1, 11) and (11, 1) would read the same without a separator.
    keys += [(1, 11, 0, "mask"), (11, 1, 0, "mask"), (2**70, 0, 0, "mask")]
    draws = {tuple(uniforms(*key, 4)) for key in keys}
    assert len(draws) == len(keys)


def test_numpy_integers_name_the_same_stream_as_python_ones(no_shape_annotations: None) -> None:
    np.testing.assert_array_equal(
        uniforms(np.int64(3), np.int32(1), np.int64(5), "mask", 3), uniforms(3, 1, 5, "mask", 3)
    )


def test_draws_are_uniform_and_uncorrelated() -> None:
    table = np.stack([uniforms(7, 0, sample, "mask", 200) for sample in range(500)])
    counts = np.histogram(table, bins=20, range=(0, 1))[0]
    assert abs(counts - table.size / 20).max() < 5 * np.sqrt(table.size / 20)
    centred = table - 0.5
    assert abs((centred[1:] * centred[:-1]).mean()) < 0.002
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 0.002


def test_another_process_draws_the_same() -> None:
    code = "from tide_core.masks.streams import uniforms; print(uniforms(5, 1, 9, 'mask', 3).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(uniforms(5, 1, 9, "mask", 3).tolist())


@given(st.integers(0, 2**62), st.integers(0, 5), st.integers(0, 300))
def test_an_order_visits_every_sample_once(seed: int, epoch: int, count: int) -> None:
    order = permutation(seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        uniforms(0, 0, 0, "mask", -1)
    with pytest.raises(InvalidInputError):
        permutation(0, 0, -1)
