"""Which teachers should run, how large they are, and whether they fit."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch

from service.orchestrator import pools, teacher_size
from service.orchestrator.compute import ApplicationState, ApplicationStatus, ClusterResources
from service.orchestrator.pools import PoolSnapshot
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import PoolState, TeacherPool
from tide_core.models.quantisation import memory_bytes
from tide_core.models.teachers.adapter import load_teacher

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINGER = timedelta(minutes=5)
GIB = 1 << 30
LAPTOP = ClusterResources(nodes=1, cpus=4, gpus=0, largest_node_memory=8 * GIB, largest_gpu_memory=0)


def pool(**changes: object) -> TeacherPool:
    values = {"teacher": TeacherSpec(model="/t"), "replicas": 1, "gpus_per_replica": 0, "cpus_per_replica": 1}
    return TeacherPool.model_validate(values | changes)


def snapshot(
    *replicas: int, state: PoolState = PoolState.READY, idle: timedelta = timedelta()
) -> PoolSnapshot:
    return PoolSnapshot(pool(), state, replicas, NOW - idle)


def desired(*known: PoolSnapshot, observed: dict[str, ApplicationState] | None = None):
    return pools.desired(known, observed or {}, now=NOW, linger=LINGER, storage="/s")


def test_the_largest_lease_decides_the_size() -> None:
    (application,) = desired(snapshot(2, 5, 3))
    assert application.replicas == 5
    assert application.arguments["storage"] == "/s"
    assert (
        TeacherPool.model_validate(
            {name: value for name, value in application.arguments.items() if name != "storage"}
        ).teacher.model
        == "/t"
    )


@pytest.mark.parametrize(
    ("state", "idle", "is_wanted"),
    [
        (PoolState.READY, timedelta(minutes=4), True),
        (PoolState.READY, timedelta(minutes=6), False),
        (PoolState.UNHEALTHY, timedelta(), False),
        (PoolState.STARTING, timedelta(), False),
    ],
)
def test_only_what_works_lingers(state: PoolState, idle: timedelta, is_wanted: bool) -> None:
    assert bool(desired(snapshot(state=state, idle=idle))) is is_wanted


def test_a_running_pool_keeps_its_size_while_idle_and_its_placement_always() -> None:
    (first,) = desired(snapshot(3))
    running = {first.name: ApplicationState(ApplicationStatus.RUNNING, wanted=first)}
    (idle,) = desired(snapshot(), observed=running)
    assert idle.replicas == 3
    greedy = dataclasses.replace(snapshot(3), pool=pool(cpus_per_replica=8))
    assert desired(greedy, observed=running) == [first], "other CPUs would restart it under its users"


def test_nothing_is_put_twice() -> None:
    (application,) = desired(snapshot(1))
    asked = {application.name: ApplicationState(ApplicationStatus.FAILED, wanted=application)}
    assert not pools.must_put([application], asked)
    assert pools.must_put([dataclasses.replace(application, replicas=2)], asked)
    assert pools.must_put([], asked)
    going = {application.name: ApplicationState(ApplicationStatus.DELETING, wanted=application)}
    assert not pools.must_put([], going)
    assert pools.must_put([application], going)


@pytest.mark.parametrize(
    ("status", "ready", "is_desired", "state"),
    [
        (ApplicationStatus.RUNNING, 1, True, PoolState.READY),
        (ApplicationStatus.STARTING, 1, True, PoolState.READY),
        (ApplicationStatus.STARTING, 0, True, PoolState.STARTING),
        (ApplicationStatus.DELETING, 0, True, PoolState.STARTING),
        (ApplicationStatus.FAILED, 0, True, PoolState.UNHEALTHY),
        (ApplicationStatus.UNHEALTHY, 0, True, PoolState.UNHEALTHY),
        (ApplicationStatus.RUNNING, 1, False, PoolState.STOPPING),
        (ApplicationStatus.ABSENT, 0, False, PoolState.STOPPED),
    ],
)
def test_states(status: ApplicationStatus, ready: int, is_desired: bool, state: PoolState) -> None:
    assert pools.pool_state(ApplicationState(status, "", ready), is_desired=is_desired) is state


class TestSize:
    def write(self, folder: Path, size: int, dtype: str | None = "bfloat16") -> TeacherSpec:
        folder.mkdir(exist_ok=True)
        with (folder / "model-00001-of-00001.safetensors").open("wb") as file:
            file.truncate(size)
        (folder / "config.json").write_text(json.dumps({"torch_dtype": dtype} if dtype else {}))
        return TeacherSpec(model=str(folder))

    @pytest.mark.parametrize(
        ("stored", "served", "is_on_gpu", "factor"),
        [
            ("bfloat16", "auto", False, 2.0),
            ("bfloat16", "auto", True, 1.0),
            ("float32", "bfloat16", False, 0.5),
            (None, "auto", False, 1.0),
        ],
    )
    def test_scaled_by_the_precision_that_is_served(
        self, tmp_path: Path, stored: str | None, served: str, is_on_gpu: bool, factor: float
    ) -> None:
        teacher = self.write(tmp_path / "t", 1000, stored).model_copy(update={"dtype": served})
        assert teacher_size.weight_bytes(teacher, is_on_gpu=is_on_gpu) == 1000 * factor

    @pytest.mark.parametrize(
        ("quantisation", "served", "is_tied", "expected"),
        [
            # 500 numbers on disk in bfloat16, 100 or 200 of them in embedding and head.
            ("int8", "auto", True, 100 * 4 + 400 * 8.5 / 8),
            ("int8", "bfloat16", False, 200 * 2 + 300 * 8.5 / 8),
            ("int4", "auto", False, 200 * 4 + 300 * 4.5 / 8),
        ],
    )
    def test_quantised_layers_take_their_bits(
        self, tmp_path: Path, quantisation: str, served: str, is_tied: bool, expected: float
    ) -> None:
        teacher = self.write(tmp_path / "t", 1000).model_copy(
            update={"dtype": served, "quantisation": quantisation}
        )
        sizes = {"vocab_size": 10, "hidden_size": 10, "tie_word_embeddings": is_tied}
        (tmp_path / "t" / "config.json").write_text(json.dumps(sizes | {"dtype": "bfloat16"}))
        assert teacher_size.weight_bytes(teacher, is_on_gpu=False) == int(expected)
        (tmp_path / "t" / "config.json").write_text(json.dumps(sizes))
        assert teacher_size.weight_bytes(teacher, is_on_gpu=False) is None

    @pytest.mark.parametrize("name", ["teacher_dense", "teacher_moe"])
    @pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
    def test_the_estimate_is_what_a_teacher_takes(
        self, name: str, quantisation: Literal["none", "int8", "int4"]
    ) -> None:
        """Short by norms, router and the padding of rows, which are a few per cent of a teacher so small."""
        folder = Path(__file__).parents[3] / "workers/demo/assets" / name
        teacher = TeacherSpec(model=str(folder), quantisation=quantisation)
        model = load_teacher(folder, dtype=torch.float32, quantisation=quantisation)
        estimate = teacher_size.weight_bytes(teacher, is_on_gpu=False)
        assert estimate == pytest.approx(memory_bytes(model), rel=0.05)

    def test_too_large_for_the_largest_node(self, tmp_path: Path) -> None:
        teacher = self.write(tmp_path / "t", 5 * GIB)
        message = teacher_size.problem(pool(teacher=teacher), LAPTOP)
        assert "10.0 GiB" in message
        assert "8.0 GiB" in message
        fits = self.write(tmp_path / "u", 4 * GIB)
        assert teacher_size.problem(pool(teacher=fits), LAPTOP) is None

    def test_gpu_memory_counts_with_gpus(self, tmp_path: Path) -> None:
        teacher = self.write(tmp_path / "t", 100 * GIB)
        node = dataclasses.replace(LAPTOP, gpus=8, largest_gpu_memory=80 * GIB)
        assert "80.0 GiB" in teacher_size.problem(pool(teacher=teacher, gpus_per_replica=1), node)
        assert teacher_size.problem(pool(teacher=teacher, gpus_per_replica=2), node) is None

    def test_what_is_not_known_is_no_reason(self) -> None:
        assert teacher_size.problem(pool(teacher=TeacherSpec(model="org/name")), LAPTOP) is None
