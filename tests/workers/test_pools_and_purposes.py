"""A real cluster of two nodes: a teacher's pool grows and shrinks, and all find the nodes meant for them."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.clock import utc_now
from service.orchestrator import pools
from service.orchestrator.compute import Application
from service.orchestrator.pools import LeasedReplicas, PoolRules, PoolSnapshot
from service.orchestrator.ray_compute import serve_config
from tide_core.contracts.job import JobSpec, TeacherSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.placement import PURPOSE_LABEL, Purpose, labels_for
from tide_core.contracts.reporting import AttemptBrief
from tide_core.contracts.scores import Layout, ScoreRequest, Want
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import TeacherLease, TeacherPool
from tide_core.data.dataset_preparation import BATCH_ROWS, RowBatch
from tide_core.data.sources import SourceRow
from workers.evaluation.driver import run_evaluation
from workers.preparation.driver import ray_map
from workers.scores.serve_transport import ServeTransport
from workers.student.driver import fit
from workers.teachers.tiny import write_tiny_teacher

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

SLOW_TEACHER = """
import threading
import time

from workers.teachers import app, engine


class SlowTeacher(app.TeacherReplica):
    def __init__(self, pool):
        quick = engine.score_samples

        def slow(model, samples, *rest):
            time.sleep(0.1 * len(samples))
            return quick(model, samples, *rest)

        engine.score_samples = slow
        super().__init__(pool)

    async def where(self):
        import os

        import ray

        labels = ray.get_runtime_context().get_node_labels()
        return {"labels": labels, "thread": threading.current_thread().name, "pid": os.getpid()}


def build(args):
    app.TeacherReplica = SlowTeacher
    return app.build(args)
"""
WARM_SECONDS = 60.0
"""A pool of a tiny teacher must serve within this time of being wanted, on this machine and under load."""


class Served:
    """The cluster, and what is deployed on it."""

    def __init__(self, folder: Path) -> None:
        (folder / "slow_teacher.py").write_text(SLOW_TEACHER)
        self.folder = folder
        self.pool = TeacherPool(
            teacher=TeacherSpec(model=str(write_tiny_teacher(folder / "teacher", "wedlm"))),
            replicas=1,
            gpus_per_replica=0,
            cpus_per_replica=0.5,
        )

    def application(self, minimum: int, maximum: int, labels: dict[str, str] | None = None) -> Application:
        """What the pool keeper would ask for, with the slow teacher in the place of the usual one."""
        rules = PoolRules(
            storage=str(self.folder),
            linger=timedelta(),
            queue_delay_seconds=0.3,
            grow_after_seconds=1.0,
            shrink_after_seconds=3.0,
            node_labels=labels or {},
        )
        snapshot = PoolSnapshot(self.pool, (LeasedReplicas(minimum, maximum),), utc_now())
        (wanted,) = pools.choose_applications([snapshot], {}, now=utc_now(), rules=rules)
        path = {"PYTHONPATH": f"{self.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        return dataclasses.replace(
            wanted, import_path="slow_teacher:build", environment={**wanted.environment, **path}
        )

    def put(self, *applications: Application, is_waited_for: bool = True) -> None:
        """Make these what Serve runs."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        body = {"applications": [serve_config(application) for application in applications]}
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(body), _blocking=is_waited_for)

    def status(self) -> Any:
        """What Serve says of the pool's application; None when there is none."""
        from ray import serve

        return serve.status().applications.get(self.pool.application)

    def running(self) -> int:
        """Replicas that serve."""
        application = self.status()
        if application is None:
            return 0
        return sum(
            deployment.replica_states.get("RUNNING", 0) for deployment in application.deployments.values()
        )

    def transport(self) -> ServeTransport:
        return ServeTransport(TeacherLease(application=self.pool.application))

    def where(self) -> dict[str, Any]:
        """What a replica says of its process."""
        from ray import serve

        handle = serve.get_deployment_handle("teacher", app_name=self.pool.application)
        found: dict[str, Any] = handle.where.remote().result(timeout_s=30)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    store = 128 * 2**20
    cluster = Cluster(
        head_node_args={"num_cpus": 2, "object_store_memory": store, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=2, object_store_memory=store, labels=labels_for(Purpose.TEACHER))
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield Served(tmp_path_factory.mktemp("pool"))
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def nothing_left(served: Served) -> Iterator[None]:
    yield
    served.put(is_waited_for=False)
    await_true(lambda: served.status() is None, "the pool is gone")


def await_true(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> float:
    """Wait for it; the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start


def request(seed: int) -> ScoreRequest:
    """Four sequences of 16 tokens: 0.4 s of the slow teacher's time."""
    draws = np.random.default_rng(seed)
    return ScoreRequest(
        draws.integers(0, 256, 64).astype(np.int32),
        np.arange(5) * 16,
        np.ones(64, np.uint8),
        Layout.BIDIRECTIONAL,
        Want.TARGET_LOG_PROB,
    )


class Load:
    """Requests without a pause, several at a time, until it is ended."""

    def __init__(self, transport: ServeTransport, in_flight: int) -> None:
        self.asked = self.answered = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._transport = transport
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(in_flight)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        while not self._ended.is_set():
            with self._lock:
                self.asked += 1
            response = self._transport.submit(request(number)).result(120)
            assert response.values.size == 64
            with self._lock:
                self.answered += 1

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)


def test_a_pool_grows_while_requests_wait_and_shrinks_when_they_do_not(served: Served) -> None:
    served.put(served.application(1, 2))
    assert served.running() == 1
    transport = served.transport()
    transport.describe()  # the handle is found before the load begins
    load = Load(transport, in_flight=4)
    try:
        await_true(lambda: served.running() == 2, "the pool has grown")
        answered = load.answered
        await_true(lambda: load.answered > answered + 8, "and answers")
    finally:
        load.end()
    # A trickle that one replica can take goes on while the other one leaves.
    shrunk = False
    deadline = time.monotonic() + 90
    while not shrunk:
        assert time.monotonic() < deadline, "the pool has not shrunk"
        assert transport.submit(request(7)).result(60).values.size == 64
        time.sleep(1.0)
        shrunk = served.running() == 1
    assert load.asked == load.answered > 0, "no request is lost"
    assert transport.statistics().retries == 0
    transport.close()


def test_room_to_grow_is_given_and_taken_without_touching_the_replicas(served: Served) -> None:
    served.put(served.application(1, 1))
    before = served.where()["pid"]
    served.put(served.application(1, 2))
    assert served.where()["pid"] == before
    transport = served.transport()
    load = Load(transport, in_flight=4)
    try:
        await_true(lambda: served.running() == 2, "a replica that started with a fixed number measures, too")
        served.put(served.application(1, 1), is_waited_for=False)
        await_true(lambda: served.running() == 1, "the room is taken away at once")
    finally:
        load.end()
    assert load.asked == load.answered
    transport.close()


def test_teachers_land_on_their_nodes_and_score_on_the_event_loop(served: Served) -> None:
    start = time.monotonic()
    served.put(served.application(2, 2, labels_for(Purpose.TEACHER)))
    assert time.monotonic() - start < WARM_SECONDS
    for _ in range(8):  # both replicas answer some of these
        said = served.where()
        assert said["labels"][PURPOSE_LABEL] == "teacher"
        assert said["thread"].startswith("AsyncIO Thread"), "a request hops to a thread of its own"


def test_no_node_for_it_means_no_replica(served: Served) -> None:
    served.put(served.application(1, 1, {PURPOSE_LABEL: "elsewhere"}), is_waited_for=False)
    time.sleep(5.0)
    assert served.running() == 0
    assert served.status().status == "DEPLOYING", "it waits: the node may come"


def brief(folder: Path, phase: Phase, labels: dict[str, str]) -> AttemptBrief:
    """What a phase's driver is told."""
    request = {
        "teacher": {"model": str(folder)},
        "student": {"model": str(folder)},
        "objective": "tide_cross",
        "data": {"sources": [{"location": "rows.jsonl"}]},
        "resources": {"student_workers": 2, "cpus_per_worker": 0.5},
    }
    spec = resolve(JobSpec.model_validate(request), pipeline=Pipeline.CROSS_TOKENIZER)
    return AttemptBrief(
        job_id="job-1", attempt=1, phase=phase, spec=spec, storage=str(folder), node_labels=labels
    )


@pytest.mark.usefixtures("served")
class TestPurposes:
    """The two-node cluster has one labelled node: what asks for its label must run there, each time."""

    LABELS = labels_for(Purpose.TEACHER)

    def test_preparation(self) -> None:
        def where(batch: Any) -> Any:
            import ray

            return ray.get_runtime_context().get_node_labels().get("tide.dev/purpose")

        row = SourceRow(0, 0, {"prompt": "Say 1", "response": "1"})
        batches = [RowBatch(number, "train", [row] * BATCH_ROWS) for number in range(4)]
        found = list(ray_map(where, batches, node_labels=self.LABELS))
        assert found == ["teacher"] * 4

    def test_evaluation(self, tmp_path: Path) -> None:
        def where(brief_json: str) -> dict[str, Any]:
            import ray

            return dict(ray.get_runtime_context().get_node_labels())

        found = run_evaluation(brief(tmp_path, Phase.EVALUATE, self.LABELS), where)
        assert found[PURPOSE_LABEL] == "teacher"

    def test_training(self, tmp_path: Path) -> None:
        def where(config: dict[str, Any]) -> dict[str, Any]:
            import ray
            import torch.distributed as dist

            own = ray.get_runtime_context().get_node_labels().get("tide.dev/purpose")
            everybody: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everybody, own)
            return {"purposes": everybody}

        found = fit(brief(tmp_path, Phase.TRAIN, self.LABELS), where)
        assert found["purposes"] == ["teacher", "teacher"]
