"""Which way to a teacher an attempt gets."""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import tiny_spec
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AttemptBrief
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import TeacherLease
from workers.scores.cache import CachingTransport
from workers.scores.opening import DEFAULT_BYTES, open_transport, score_cache_bytes
from workers.scores.serve_transport import ServeTransport

CPU = torch.device("cpu")


def brief(*, has_lease: bool = True, **resources_: object) -> AttemptBrief:
    spec = tiny_spec(Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER)
    resources = spec.resources.model_copy(update=resources_)
    return AttemptBrief(
        job_id="job",
        attempt=1,
        phase=Phase.TRAIN,
        spec=spec.model_copy(update={"resources": resources}),
        storage="/nowhere",
        teacher=TeacherLease(application="pool") if has_lease else None,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_CACHE", str(tmp_path))
    monkeypatch.delenv("TIDE_SCORE_CACHE_BYTES", raising=False)


def test_the_cache_stands_before_the_pool(tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert isinstance(open_transport(brief(), stack, CPU), CachingTransport)
    assert (tmp_path / "scores").is_dir()
    assert score_cache_bytes() == DEFAULT_BYTES


def test_the_spec_or_the_platform_can_turn_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert isinstance(open_transport(brief(score_cache=False), stack, CPU), ServeTransport)
        monkeypatch.setenv("TIDE_SCORE_CACHE_BYTES", "0")
        assert isinstance(open_transport(brief(), stack, CPU), ServeTransport)
    assert not (tmp_path / "scores").exists()


def test_without_a_lease_there_is_no_way() -> None:
    with ExitStack() as stack:
        assert open_transport(brief(has_lease=False), stack, CPU) is None


def test_a_bound_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_SCORE_CACHE_BYTES", "8GiB")
    with pytest.raises(InvalidInputError, match="8GiB"):
        score_cache_bytes()


def test_nixl_brings_values_onto_the_device_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    monkeypatch.setattr("workers.scores.serve_transport.require_nixl", places.append)
    asked = brief(score_cache=False, tensor_transport="nixl")
    with ExitStack() as stack:
        transport = open_transport(asked, stack, torch.device("cuda:3"))
        assert isinstance(transport, ServeTransport)
        assert transport._asker._held_device == "cuda:3"  # type: ignore[attr-defined]
    assert places == ["the trainer"]


def test_a_trainer_without_nixl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)  # importing it fails, also where it is installed
    asked = brief(score_cache=False, tensor_transport="nixl")
    with ExitStack() as stack, pytest.raises(InvalidInputError, match="tide-distill\\[nixl\\]") as caught:
        open_transport(asked, stack, CPU)
    assert (caught.value.code, caught.value.param) == ("nixl_missing", "resources.tensor_transport")
