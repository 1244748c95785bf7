"""Training states in local folders and in remote storage."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import tiny_student
from tide_core.contracts.errors import CheckpointError
from tide_core.schedules.adaptive import AdaptiveProgress
from tide_core.training.step import build_optimizer
from workers.student.checkpoint import CheckpointStore, TrainingState


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "states") if request.param == "local" else f"memory://{uuid.uuid4().hex}/states"


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A student after two steps, so that the optimiser has moments."""
    student = tiny_student()
    optimizer = build_optimizer(student, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1)
    for _ in range(2):
        for parameter in student.parameters():
            parameter.grad = torch.cos(parameter.detach())
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-2
        optimizer.step()
    return student, optimizer


def test_what_is_saved_is_restored(root: str) -> None:
    student, optimizer = trained()
    state = TrainingState(2, 10, "digest", AdaptiveProgress(0.1 + 0.2, -1e-17, 3.0000000000000004))
    store = CheckpointStore(root, keep=2)
    assert store.restore(student, optimizer, "digest") is None
    saved = store.save(student, optimizer, state)
    assert saved.bytes > 0
    fresh = tiny_student(seed=77)
    again = build_optimizer(fresh, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1)
    assert store.restore(fresh, again, "digest") == state
    for ours, theirs in zip(student.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in optimizer.state[ours].items():
            assert torch.equal(value, again.state[theirs][name]), name


def test_old_states_go(root: str) -> None:
    student, optimizer = trained()
    store = CheckpointStore(root, keep=2)
    for step in (2, 4, 6):
        store.save(student, optimizer, TrainingState(step, 10, "d"))
    assert [gone.step for gone in store.prune()] == [2]
    assert [kept.step for kept in store.list_states()] == [4, 6]
    assert store.prune() == []


def test_a_half_written_state_is_not_seen(tmp_path: Path) -> None:
    student, optimizer = trained()
    store = CheckpointStore(str(tmp_path), keep=3)
    store.save(student, optimizer, TrainingState(2, 10, "d"))
    last = store.save(student, optimizer, TrainingState(4, 10, "d"))
    (Path(last.location) / "optimizer.safetensors").write_bytes(b"cut")
    assert [kept.step for kept in store.list_states()] == [2]
    (tmp_path / "step-00000009").mkdir()
    assert [kept.step for kept in store.list_states()] == [2]


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    student, optimizer = trained()
    store = CheckpointStore(str(tmp_path), keep=3)
    store.save(student, optimizer, TrainingState(2, 10, "d"))
    other = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="keys"):
        store.restore(other, torch.optim.AdamW(other.parameters()), "d")


def test_no_pickle_anywhere(tmp_path: Path) -> None:
    student, optimizer = trained()
    saved = CheckpointStore(str(tmp_path), keep=1).save(student, optimizer, TrainingState(2, 10, "d"))
    assert {path.suffix for path in Path(saved.location).iterdir()} == {".json", ".safetensors"}
