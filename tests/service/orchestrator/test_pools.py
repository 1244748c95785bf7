"""Which teachers should run, how large they are, and whether they fit."""

from __future__ import annotations

import dataclasses
import importlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch

from service.orchestrator import pools, teacher_size
from service.orchestrator.compute import (
    Application,
    ApplicationState,
    ApplicationStatus,
    ClusterResources,
)
from service.orchestrator.pools import LeasedReplicas, PoolRules, PoolSnapshot
from tide_core.checkpoints.headers import SINGLE_NAME
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.placement import Purpose, labels_for
from tide_core.contracts.serving import TEACHERS
from tide_core.contracts.teacher import PoolState, TeacherPool
from tide_core.models.quantisation import memory_bytes
from tide_core.models.teachers.adapter import load_teacher

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = PoolRules(
    storage="/s",
    linger=timedelta(minutes=5),
    queue_delay_seconds=0.5,
    grow_after_seconds=30.0,
    shrink_after_seconds=300.0,
)
GIB = 1 << 30
LAPTOP = ClusterResources(nodes=1, cpus=4, gpus=0, largest_node_memory=8 * GIB, largest_gpu_memory=0)


def pool(**changes: object) -> TeacherPool:
    values = {"teacher": TeacherSpec(model="/t"), "replicas": 1, "gpus_per_replica": 0, "cpus_per_replica": 1}
    return TeacherPool.model_validate(values | changes)


def snapshot(*replicas: int, most: int = 0, idle: timedelta = timedelta()) -> PoolSnapshot:
    leases = tuple(LeasedReplicas(number, max(number, most)) for number in replicas)
    return PoolSnapshot(pool(), leases, NOW - idle)


def desired(
    *known: PoolSnapshot, observed: dict[str, ApplicationState] | None = None, rules: PoolRules = RULES
) -> list[Application]:
    return pools.choose_applications(known, observed or {}, now=NOW, rules=rules)


def bounds(application: Application) -> tuple[int, int]:
    return application.scaling.minimum, application.scaling.maximum


def test_the_largest_lease_decides_the_size() -> None:
    (application,) = desired(snapshot(2, 5, 3))
    assert bounds(application) == (5, 5), "without room to grow the number is fixed"
    assert application.arguments["storage"] == "/s"
    assert (
        TeacherPool.model_validate(
            {name: value for name, value in application.arguments.items() if name != "storage"}
        ).teacher.model
        == "/t"
    )


def test_the_roomiest_lease_decides_how_far_a_pool_grows() -> None:
    leases = (LeasedReplicas(2, 2), LeasedReplicas(1, 8), LeasedReplicas(1, 3))
    (application,) = desired(PoolSnapshot(pool(), leases, NOW))
    assert bounds(application) == (2, 8)
    assert application.scaling.arguments == {"target_seconds": 0.5}
    assert (application.scaling.up_after_seconds, application.scaling.down_after_seconds) == (30.0, 300.0)
    (crowded,) = desired(PoolSnapshot(pool(), (LeasedReplicas(1, 3), LeasedReplicas(6, 6)), NOW))
    assert bounds(crowded) == (6, 6)


def test_the_policy_is_where_it_is_said_to_be() -> None:
    module, _, name = TEACHERS.scaling_policy.partition(":")
    (application,) = desired(snapshot(1))
    policy = getattr(importlib.import_module(module), name)(**application.scaling.arguments)
    assert policy.target_seconds == RULES.queue_delay_seconds


@pytest.mark.parametrize(
    ("status", "ready", "minutes", "is_wanted"),
    [
        (ApplicationStatus.RUNNING, 1, 4, True),
        (ApplicationStatus.STARTING, 1, 4, True),
        (ApplicationStatus.UNHEALTHY, 1, 4, True),
        (ApplicationStatus.RUNNING, 1, 5, False),
        (ApplicationStatus.RUNNING, 1, 600, False),
        (ApplicationStatus.STARTING, 0, 0, False),
        (ApplicationStatus.UNHEALTHY, 0, 0, False),
        (ApplicationStatus.FAILED, 0, 0, False),
        (ApplicationStatus.DELETING, 0, 0, False),
        (ApplicationStatus.ABSENT, 0, 0, False),
        (None, 0, 0, False),
    ],
)
def test_only_what_serves_lingers_and_not_for_ever(
    status: ApplicationStatus | None, ready: int, minutes: int, is_wanted: bool
) -> None:
    (application,) = desired(snapshot(1))
    state = None if status is None else ApplicationState(status, "", ready, wanted=application)
    observed = {} if state is None else {application.name: state}
    idle = snapshot(idle=timedelta(minutes=minutes))
    assert bool(desired(idle, observed=observed)) is is_wanted
    leased = snapshot(1, idle=timedelta(minutes=minutes))
    assert len(desired(leased, observed=observed)) == 1, "a leased pool is wanted in every state"


def test_a_running_pool_keeps_its_size_while_idle_and_its_placement_always() -> None:
    (first,) = desired(snapshot(3, most=6))
    running = {first.name: ApplicationState(ApplicationStatus.RUNNING, wanted=first)}
    (idle,) = desired(snapshot(), observed=running)
    assert idle == first
    greedy = dataclasses.replace(snapshot(3, most=6), pool=pool(cpus_per_replica=8))
    assert desired(greedy, observed=running) == [first], "other CPUs would restart it under its users"


def test_teachers_ask_for_their_nodes_where_nodes_have_purposes() -> None:
    rules = dataclasses.replace(RULES, node_labels=labels_for(Purpose.TEACHER))
    (application,) = desired(snapshot(1), rules=rules)
    assert application.node_labels == {"tide.dev/purpose": "teacher"}
    (anywhere,) = desired(snapshot(1))
    assert anywhere.node_labels == {}


def test_a_missing_node_is_told_with_what_to_do() -> None:
    wanted = labels_for(Purpose.TEACHER)
    trainers = dataclasses.replace(LAPTOP, labels=({}, labels_for(Purpose.TRAINER)))
    said = pools.explain_missing_node(wanted, trainers, "a teacher")
    assert "tide.dev/purpose=teacher" in said
    assert "ray start --labels" in said
    assert pools.explain_missing_node({}, trainers, "a teacher") is None
    both = dataclasses.replace(trainers, labels=(*trainers.labels, {**wanted, "ray.io/node-id": "1"}))
    assert pools.explain_missing_node(wanted, both, "a teacher") is None


def test_nothing_is_put_twice() -> None:
    (application,) = desired(snapshot(1))
    asked = {application.name: ApplicationState(ApplicationStatus.FAILED, wanted=application)}
    assert not pools.must_put([application], asked)
    larger = dataclasses.replace(application.scaling, minimum=2, maximum=2)
    assert pools.must_put([dataclasses.replace(application, scaling=larger)], asked)
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
        with (folder / SINGLE_NAME).open("wb") as file:
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
