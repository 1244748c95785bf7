"""Two pools, each reached by the local transport and by real Ray Serve."""

from collections.abc import Iterator

import pytest

from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import TeacherPool
from workers.teachers.loading import LoadedTeacher, load_for_serving
from workers.teachers.tiny import write_tiny_teacher

ARCHITECTURES = ("llada2_moe", "wedlm")


@pytest.fixture(scope="package")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TeacherPool]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        architecture: TeacherPool(
            teacher=TeacherSpec(model=str(write_tiny_teacher(folder / architecture, architecture))),
            replicas=1,
            gpus_per_replica=0,
            cpus_per_replica=0.5,
        )
        for architecture in ARCHITECTURES
    }


@pytest.fixture(scope="package")
def loaded(pools: dict[str, TeacherPool]) -> Iterator[dict[str, LoadedTeacher]]:
    teachers = {name: load_for_serving(pool.teacher, threads=1) for name, pool in pools.items()}
    yield teachers
    for teacher in teachers.values():
        teacher.engine.close()


@pytest.fixture(scope="package")
def serving(pools: dict[str, TeacherPool]) -> Iterator[None]:
    """A cluster that serves both pools, deployed as the control plane does: declaratively."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    try:
        serve.start(proxy_location="Disabled")
        applications = [
            {
                "name": pool.application,
                "route_prefix": None,
                "import_path": "workers.teachers.app:build",
                "args": pool.model_dump(mode="json") | {"storage": "/nowhere"},
            }
            for pool in pools.values()
        ]
        client = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": applications}), _blocking=True)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
