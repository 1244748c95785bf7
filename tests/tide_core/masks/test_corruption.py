"""Corruption, chunk-consistent masking and CompDemo against loops over tokens."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.masks.compdemo import complementary_split
from tide_core.masks.corruption import Corruption, corrupt, teacher_groups, teacher_groups_shared
from tide_core.masks.streams import SampleKey, uniforms
from tide_core.schedules.noise import CosineNoise, LinearNoise, NoiseSchedule

KEYS = st.builds(SampleKey, st.integers(0, 9), st.integers(0, 3), st.integers(0, 99))
LINEAR = LinearNoise()


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, student chunk ids and teacher chunk ids, with gaps, prompts and chunks of many tokens."""
    length = draw(st.integers(0, 24))
    labels = np.array(
        draw(st.lists(st.sampled_from([-100, 5, 6]), min_size=length, max_size=length)), np.int64
    )
    chunk, student, teacher = 0, [], []
    while len(student) < length:
        size = draw(st.integers(1, 4))
        if draw(st.booleans()):
            student += [chunk] * size
            teacher += [chunk] * draw(st.integers(1, 3))
            chunk += 1
        else:
            student += [-1] * size
            teacher += [-1] * draw(st.integers(0, 2))
    return labels, np.array(student[:length], np.int32), np.array(teacher, np.int32)


def slow_corrupt(
    labels: np.ndarray, chunk_ids: np.ndarray, key: SampleKey, noise: NoiseSchedule
) -> tuple[float, list[bool], set[int]]:
    """Token by token, from the definition."""
    t = 1e-3 + (1 - 1e-3) * float(uniforms(*key, "timestep", 1)[0])
    draws = uniforms(*key, "mask", len(labels))
    masked = [bool(label != -100 and draws[i] < 1 - noise.alpha(t)) for i, label in enumerate(labels)]
    members: dict[int, list[int]] = {}
    for i, chunk in enumerate(chunk_ids):
        if chunk >= 0:
            members.setdefault(int(chunk), []).append(i)
    active = {
        chunk
        for chunk, places in members.items()
        if any(masked[i] for i in places) and all(labels[i] != -100 for i in places)
    }
    for chunk in active:
        for i in members[chunk]:
            masked[i] = True
    return t, masked, active


@settings(max_examples=150)
@given(samples(), KEYS, st.sampled_from([LinearNoise(), CosineNoise()]))
def test_masks_equal_the_loop(sample: tuple, key: SampleKey, noise: NoiseSchedule) -> None:
    labels, chunk_ids, _ = sample
    result = corrupt(labels, chunk_ids, key=key, noise=noise)
    t, masked, active = slow_corrupt(labels, chunk_ids, key, noise)
    assert result.t == t
    assert result.is_masked.tolist() == masked
    assert set(np.flatnonzero(result.is_active_chunk)) == active
    assert result.active_chunks == len(active)
    assert result.masked_tokens == sum(masked)
    maskable = sum(label != -100 for label in labels)
    assert result.maskable_tokens == maskable
    assert result.token_mask_rate == (sum(masked) / maskable if maskable else 0.0)


@settings(max_examples=100)
@given(samples(), KEYS, st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_the_teacher_sees_whole_chunks_masked(sample: tuple, key: SampleKey, split: float | None) -> None:
    labels, student_ids, teacher_ids = sample
    corruption = corrupt(labels, student_ids, key=key, noise=LINEAR)
    known = set(student_ids.tolist())
    teacher_ids = np.array([chunk for chunk in teacher_ids if chunk in known or chunk == -1], np.int32)
    groups = teacher_groups(
        corruption, student_chunk_ids=student_ids, teacher_chunk_ids=teacher_ids, split=split
    )
    draws = uniforms(*key, "compdemo", corruption.is_active_chunk.size)
    for token, chunk in enumerate(teacher_ids):
        if chunk < 0 or not corruption.is_active_chunk[chunk]:
            assert groups[token] == 0
        elif split is None:
            assert groups[token] == 1
        else:
            # A, which the first view reveals, is masked in the second.
            assert groups[token] == (2 if draws[chunk] < split else 1)


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([-100, 5]), max_size=20), KEYS, st.integers(0, 5), st.sampled_from([None, 0.5])
)
def test_the_teacher_is_masked_where_the_student_is(
    labels: list[int], key: SampleKey, shift: int, split: float | None
) -> None:
    corruption = corrupt(np.array(labels, np.int64), key=key, noise=LINEAR)
    positions = np.array([i + shift if i % 3 else -1 for i in range(len(labels))], np.int32)
    groups = teacher_groups_shared(corruption, positions, len(labels) + shift, split)
    wanted = np.zeros(len(labels) + shift, np.uint8)
    draws = uniforms(*key, "compdemo", len(labels))
    for student, teacher in enumerate(positions):
        if teacher >= 0 and corruption.is_masked[student]:
            wanted[teacher] = 1 if split is None or draws[student] >= split else 2
    np.testing.assert_array_equal(groups, wanted)


def test_padding_positions_never_touch_the_teachers_first_token() -> None:
    """A student token that the teacher does not see must not be scattered to index 0."""
    for index in range(50):
        corruption = corrupt(np.full(8, 5), key=SampleKey(0, 0, index), noise=LINEAR)
        positions = np.full(8, -1, np.int32)
        assert not teacher_groups_shared(corruption, positions, 4, None).any()
        first_visible = np.where(np.arange(8) == 0, 0, -1).astype(np.int32)
        groups = teacher_groups_shared(corruption, first_visible, 4, None)
        assert groups.tolist() == [int(corruption.is_masked[0]), 0, 0, 0]


def test_the_masking_rate_is_the_schedules() -> None:
    for noise in (LinearNoise(), CosineNoise()):
        excess = []
        for index in range(300):
            corruption = corrupt(np.full(400, 5), key=SampleKey(1, 0, index), noise=noise)
            excess.append(corruption.token_mask_rate - (1.0 - noise.alpha(corruption.t)))
        assert abs(float(np.mean(excess))) < 0.005
        assert float(np.std(excess)) < 0.03


def test_timesteps_are_uniform_from_the_smallest_on() -> None:
    times = [corrupt(np.array([5]), key=SampleKey(0, 0, i), noise=LINEAR, min_t=0.4).t for i in range(2000)]
    assert 0.4 <= min(times) < 0.41
    assert 0.99 < max(times) < 1.0
    assert float(np.mean(times)) == pytest.approx(0.7, abs=0.02)


def test_chunk_consistent_masking_raises_the_rate() -> None:
    chunk_ids = np.repeat(np.arange(100), 2)
    pairs = [
        (
            corrupt(np.full(200, 5), chunk_ids, key=SampleKey(0, 0, i), noise=LINEAR),
            corrupt(np.full(200, 5), key=SampleKey(0, 0, i), noise=LINEAR),
        )
        for i in range(20)
    ]
    for chunked, plain in pairs:
        assert chunked.t == plain.t
        # Both tokens of a pair survive with probability (1 - t)^2.
        assert chunked.token_mask_rate == pytest.approx(1 - (1 - plain.t) ** 2, abs=0.15)
        assert (chunked.is_masked | ~plain.is_masked).all()


def test_a_longer_padding_leaves_the_mask_alone() -> None:
    labels = np.full(10, 5)
    padded = np.concatenate([labels, np.full(6, -100)])
    short = corrupt(labels, key=SampleKey(3, 0, 1), noise=LINEAR)
    long = corrupt(padded, key=SampleKey(3, 0, 1), noise=LINEAR)
    np.testing.assert_array_equal(long.is_masked[:10], short.is_masked)
    assert not long.is_masked[10:].any()


def test_corruption_needs_no_torch() -> None:
    code = "import sys, tide_core.masks.corruption; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# CompDemo ---------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0.0, 0.25, 0.5, 1.0]), KEYS)
def test_a_split_is_complementary(masked: list[bool], ratio: float, key: SampleKey) -> None:
    is_masked = np.array(masked, np.bool_)
    in_a, in_b = complementary_split(is_masked, ratio, key)
    assert not (in_a & in_b).any()
    np.testing.assert_array_equal(in_a | in_b, is_masked)
    assert ratio > 0.0 or not in_a.any()
    assert ratio < 1.0 or not in_b.any()


def test_a_split_has_the_asked_ratio_and_depends_on_place_alone() -> None:
    everything = np.ones(20_000, np.bool_)
    in_a, _ = complementary_split(everything, 0.3, SampleKey(0, 0, 0))
    assert float(in_a.mean()) == pytest.approx(0.3, abs=0.02)
    some = everything.copy()
    some[::3] = False
    fewer, _ = complementary_split(some, 0.3, SampleKey(0, 0, 0))
    np.testing.assert_array_equal(fewer, in_a & some)


def test_arrays_tensors_and_bare_seeds_agree() -> None:
    is_masked = np.array([[True, False, True], [True, True, True]])
    from_array = complementary_split(is_masked, 0.5, SampleKey(4, 0, 0))
    from_tensor = complementary_split(torch.from_numpy(is_masked), 0.5, 4)
    for array, tensor in zip(from_array, from_tensor, strict=True):
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())


def test_a_bad_split_is_refused(no_shape_annotations: None) -> None:
    with pytest.raises(InvalidInputError):
        complementary_split(np.ones(3, np.bool_), 1.5, 0)
    with pytest.raises(ShapeError):
        complementary_split(np.ones(3), 0.5, 0)  # type: ignore[call-overload]


# Bad input --------------------------------------------------------------------------------------------


def corruption_of(length: int) -> Corruption:
    return corrupt(np.full(length, 5), np.arange(length), key=SampleKey(0, 0, 0), noise=LINEAR)


def test_bad_samples_are_refused(no_shape_annotations: None) -> None:
    key, labels = SampleKey(0, 0, 0), np.full(4, 5)
    for min_t in (0.0, 1.0, -1.0):
        with pytest.raises(InvalidInputError):
            corrupt(labels, key=key, noise=LINEAR, min_t=min_t)
    with pytest.raises(ShapeError):
        corrupt(labels.reshape(2, 2), key=key, noise=LINEAR)
    with pytest.raises(ShapeError):
        corrupt(labels, np.zeros(3, np.int32), key=key, noise=LINEAR)
    with pytest.raises(ShapeError):
        corrupt(labels, np.array([0, -2, 1, 1]), key=key, noise=LINEAR)


def test_chunks_and_positions_of_another_sample_are_refused() -> None:
    corruption = corruption_of(4)
    ids = np.arange(4)
    with pytest.raises(ShapeError):
        teacher_groups(corruption, student_chunk_ids=ids[:3], teacher_chunk_ids=ids, split=None)
    with pytest.raises(ShapeError):
        teacher_groups(corruption, student_chunk_ids=ids + 1, teacher_chunk_ids=ids, split=None)
    with pytest.raises(ShapeError):
        teacher_groups(corruption, student_chunk_ids=ids, teacher_chunk_ids=ids + 1, split=None)
    for positions in (ids[:3], ids + 1, np.array([0, 0, 1, 2])):
        with pytest.raises(ShapeError) as caught:
            teacher_groups_shared(corruption, positions, 4, None)
        assert caught.value.param == "teacher_positions"
