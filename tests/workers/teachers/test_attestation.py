"""A replica that answers nonsense is found before and while it serves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import RetryableScoreError, TokenizerError
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.scores import Want
from workers.teachers.attestation import AttestationError, Attestor, golden_requests
from workers.teachers.loading import LoadedTeacher, load_for_serving
from workers.teachers.tiny import write_tiny_teacher


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[LoadedTeacher]:
    folder = write_tiny_teacher(tmp_path / "teacher", "llada2_moe")
    loaded = load_for_serving(TeacherSpec(model=str(folder)), threads=1)
    yield loaded
    loaded.engine.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attestor(loaded: LoadedTeacher, clock: Clock) -> Attestor:
    return Attestor(loaded.engine, golden_requests(loaded.tokenizer), "float32", clock=clock)


def head_of(loaded: LoadedTeacher) -> torch.Tensor:
    return loaded.engine.model.lm_head.weight


def probe_again(attestor: Attestor, clock: Clock) -> None:
    """What check_health does over the next minutes."""
    clock.now += attestor.interval_seconds
    attestor.check()  # asks
    assert attestor._probes is not None
    for probe in attestor._probes:
        probe.exception(30)
    attestor.check()  # judges


def test_golden_prompts_depend_on_the_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_teacher(tmp_path / "a", "wedlm", seed=1))
    again = load_tokenizer(write_tiny_teacher(tmp_path / "b", "wedlm", seed=2))
    first, second = golden_requests(tokenizer), golden_requests(again)
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.groups, other.groups)
        assert {1, 2} <= set(one.groups.tolist())


def test_a_tokenizer_that_makes_nothing_of_text_is_refused() -> None:
    with pytest.raises(TokenizerError):
        golden_requests(Tokenizer(models.BPE()))


def test_a_sound_teacher_keeps_passing(attestor: Attestor, clock: Clock) -> None:
    attestor.attest()
    attestor.check()
    assert attestor._probes is None, "not due yet"
    for _ in range(3):
        probe_again(attestor, clock)


def test_check_never_waits_for_the_engine(attestor: Attestor, clock: Clock) -> None:
    attestor.attest()
    clock.now += attestor.interval_seconds
    attestor.check()
    attestor.check()


def test_nan_weights_do_not_start(attestor: Attestor, loaded: LoadedTeacher) -> None:
    loaded.engine.model.norm.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="NaN") as caught:
        attestor.attest()
    assert caught.value.code == "teacher_not_finite"  # type: ignore[attr-defined]


def test_a_nan_in_the_head_does_not_start(attestor: Attestor, loaded: LoadedTeacher) -> None:
    head_of(loaded)[17, 3] = float("nan")
    with pytest.raises(AttestationError) as caught:
        attestor.attest()
    assert caught.value.code == "teacher_not_finite"


def test_flat_answers_do_not_start(attestor: Attestor, loaded: LoadedTeacher) -> None:
    head_of(loaded).zero_()
    with pytest.raises(AttestationError) as caught:
        attestor.attest()
    assert caught.value.code == "teacher_flat"


def test_answers_that_ignore_the_input_do_not_start(attestor: Attestor, loaded: LoadedTeacher) -> None:
    genuine = loaded.engine.model.hidden_at
    constant = torch.linspace(-1, 1, loaded.engine.model.hidden_size)
    loaded.engine.model.hidden_at = lambda *arguments: genuine(*arguments) * 0 + constant  # type: ignore[method-assign]
    with pytest.raises(AttestationError) as caught:
        attestor.attest()
    assert caught.value.code == "teacher_collapsed"


@pytest.mark.parametrize("change", ["drift", "zero"])
def test_a_change_while_serving_quarantines_the_replica(
    attestor: Attestor, loaded: LoadedTeacher, clock: Clock, change: str
) -> None:
    attestor.attest()
    head = head_of(loaded)
    if change == "zero":
        head.zero_()
    else:
        head.mul_(1.02)
    with pytest.raises(AttestationError) as caught:
        probe_again(attestor, clock)
    assert caught.value.code == {"drift": "teacher_drift", "zero": "teacher_flat"}[change]
    with pytest.raises(AttestationError):
        attestor.check()
    request = replace(attestor.requests[0], job_id="job", want=Want.TARGET_LOG_PROB)
    with pytest.raises(RetryableScoreError) as refused:
        loaded.engine.submit(request)
    assert refused.value.code == "replica_quarantined"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rounding_in_batches_of_other_shapes_is_not_drift(tmp_path: Path, clock: Clock, dtype: str) -> None:
    folder = write_tiny_teacher(tmp_path / "teacher", "wedlm")
    loaded = load_for_serving(TeacherSpec(model=str(folder), dtype=dtype), threads=1)
    assert loaded.description.dtype == dtype
    attestor = Attestor(loaded.engine, golden_requests(loaded.tokenizer), dtype, clock=clock)
    attestor.attest()
    noise = [loaded.engine.submit(replace(request, job_id="job")) for request in attestor.requests]
    probe_again(attestor, clock)
    for future in noise:
        future.result(10)
    loaded.engine.close()


def test_every_round_tells_its_result(loaded: LoadedTeacher, attestor: Attestor, clock: Clock) -> None:
    results: list[bool] = []
    attestor.on_result = results.append
    attestor.attest()
    probe_again(attestor, clock)
    head_of(loaded).data.mul_(0.0)
    with pytest.raises(AttestationError):
        probe_again(attestor, clock)
    assert results == [True, True, False]
