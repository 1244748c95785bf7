"""Each kind of Serve application names things that exist, and both sides read its arguments alike."""

import importlib
import inspect
import pickle
from itertools import combinations
from typing import Any

import pytest

from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.serving import APPLICATION_KINDS, TEACHERS, ApplicationKind, is_ours
from tide_core.contracts.teacher import TeacherLease, TeacherPool
from workers.applications import Replica, make_application
from workers.teachers import app

POOL = TeacherPool(
    teacher=TeacherSpec(model="/models/teacher"), replicas=3, gpus_per_replica=0.5, cpus_per_replica=2.0
)


def load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("kind", APPLICATION_KINDS, ids=lambda kind: kind.prefix)
def test_what_serve_imports_is_there(kind: ApplicationKind[Any]) -> None:
    assert list(inspect.signature(load(kind.import_path)).parameters) == ["args"]
    assert callable(load(kind.scaling_policy))


def test_no_name_belongs_to_two_kinds() -> None:
    for one, other in combinations(APPLICATION_KINDS, 2):
        assert not one.prefix.startswith(other.prefix)
        assert not other.prefix.startswith(one.prefix)


def test_an_application_is_known_by_its_name() -> None:
    assert is_ours(POOL.application)
    assert not is_ours("someone-elses")


def test_both_sides_read_the_arguments_alike() -> None:
    packed = TEACHERS.pack(POOL, "s3://bucket")
    assert packed == POOL.model_dump(mode="json") | {"storage": "s3://bucket"}
    assert TEACHERS.unpack(packed) == POOL
    assert TEACHERS.unpack(POOL.model_dump(mode="json")) == POOL, "the storage may be missing"
    with pytest.raises(ValueError, match="unknown"):
        TEACHERS.unpack(packed | {"unknown": 1})


def test_a_lease_names_the_deployment_that_is_built() -> None:
    assert TeacherLease(application="teacher-1").deployment == TEACHERS.deployment


def test_what_running_pools_have_pickled_is_found_again() -> None:
    # Serve starts a further replica of a running pool from what the version before has pickled, and nodes may
    # have the image of the version before when a new pool's replica starts there.
    from ray import cloudpickle

    before = b"cworkers.teachers.app\nTeacher\n."
    assert pickle.loads(before) is app.TeacherReplica
    assert cloudpickle.loads(cloudpickle.dumps(app.TeacherReplica)) is app.TeacherReplica
    assert b"TeacherReplica" not in cloudpickle.dumps(app.TeacherReplica)
    assert list(inspect.signature(app.TeacherReplica).parameters) == ["pool"]


class Recorded:
    """Takes the place of Serve's deployment."""

    def __init__(self, replica: type, **settings: object) -> None:
        self.replica, self.settings = replica, settings

    def bind(self, *arguments: object) -> tuple[type, dict[str, object], tuple[object, ...]]:
        return self.replica, self.settings, arguments


def test_a_pool_is_built_with_the_settings_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    monkeypatch.setattr(serve, "deployment", Recorded)
    built: Any = app.build(TEACHERS.pack(POOL, "/storage"))
    replica, settings, arguments = built
    assert (replica, arguments) == (app.TeacherReplica, (POOL.model_dump(mode="json"),))
    assert settings == {
        "name": "teacher",
        "num_replicas": 3,
        "ray_actor_options": {"num_cpus": 2.0, "num_gpus": 0.5},
        "max_ongoing_requests": 512,
        "max_queued_requests": 1024,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 60.0,
        "logging_config": {"enable_access_log": False},
    }


def test_another_kind_needs_an_entry_and_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    class Echo(Replica):
        async def check_health(self) -> None: ...

        async def record_autoscaling_stats(self) -> dict[str, float]:
            return {}

    kind = ApplicationKind(
        prefix="echo-",
        import_path="echo:build",
        deployment="echo",
        scaling_policy="echo:Policy",
        arguments=TeacherPool,
        max_ongoing_requests=1,
        max_queued_requests=2,
        health_check_period_seconds=3.0,
        health_check_timeout_seconds=4.0,
    )
    monkeypatch.setattr(serve, "deployment", Recorded)
    built: Any = make_application(kind, Echo, "argument", cpus=1.0)
    assert (built[0], built[2]) == (Echo, ("argument",))
    assert (built[1]["name"], built[1]["max_ongoing_requests"], built[1]["health_check_period_s"]) == (
        "echo",
        1,
        3.0,
    )
