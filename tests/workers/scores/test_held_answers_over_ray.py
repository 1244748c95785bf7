"""Hidden states from a real replica: as views of the object store, and by the real NIXL."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.score_answers import request_of
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TEACHER_DEPLOYMENT, TeacherLease, TeacherPool
from workers.scores.serve_transport import ServeTransport
from workers.teachers.app import TeacherReplica

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
needs_nixl = pytest.mark.skipif(find_spec("nixl") is None, reason="no nixl here: pip install '.[nixl]'")


def hidden_request(lengths: list[int], seed: int = 0) -> ScoreRequest:
    return request_of(lengths, Layout.BIDIRECTIONAL, Want.HIDDEN, seed=seed)


def on_replica(read: Any, application: str) -> Any:
    """What a function gives in the pool's only replica."""
    import ray

    (named,) = (
        each for each in ray.util.list_named_actors(all_namespaces=True) if application in each["name"]
    )
    actor = ray.get_actor(named["name"], namespace=named["namespace"])
    return ray.get(actor.__ray_call__.remote(read))


def held(_: object) -> tuple[int, int]:
    """References that a replica holds, and tensors that Ray holds for it."""
    import ray

    from workers.teachers.holding import SHELF

    return len(SHELF), ray._private.worker.global_worker.rdt_manager.rdt_store.get_num_objects()


class Trainer:
    """An actor that asks, as Ray Train's workers are."""

    def __init__(self, application: str) -> None:
        lease = TeacherLease(application=application)
        self.stored = ServeTransport(lease)
        self.held = ServeTransport(lease, held_device="cpu")

    def both(self, requests: list[ScoreRequest]) -> list[tuple[str, bool]]:
        """Type of the values by NIXL, and whether they equal those of the object store."""
        found = []
        for request in requests:
            answer = self.held.submit(request).result(60)
            expected = self.stored.submit(request).result(60)
            if not isinstance(answer.values, torch.Tensor):
                found.append((str(answer.values.dtype), bool((answer.values == expected.values).all())))
                continue
            bits = answer.values.view(torch.uint16).numpy()
            found.append((str(answer.values.dtype), np.array_equal(bits, expected.array)))
        return found

    def many(self, requests: list[ScoreRequest], count: int, at_once: int, later: float) -> dict[str, Any]:
        """Ask in turns, some at once: how many answers were wrong, and what is left here."""
        import ray

        from workers.scores import serve_transport

        expected = [self.stored.submit(request).result(60).array.copy() for request in requests]

        def is_right(number: int) -> bool:
            turn = number % len(requests)
            values = self.held.submit(requests[turn]).result(60).values
            return np.array_equal(values.view(torch.uint16).numpy(), expected[turn])  # type: ignore[union-attr]

        before = self.held.statistics().bytes_received
        read = serve_transport.read_held_answer

        def read_later(answer: Any, *arguments: Any, **more: Any) -> ScoreResponse:
            time.sleep(later)  # what a replica gave up too early is gone by then
            return read(answer, *arguments, **more)

        serve_transport.read_held_answer = read_later
        try:
            with ThreadPoolExecutor(at_once) as pool:
                right = list(pool.map(is_right, range(count)))
        finally:
            serve_transport.read_held_answer = read
        left = len(ray._private.worker.global_worker.rdt_manager._managed_rdt_metadata)
        return {
            "wrong": right.count(False),
            "retries": self.held.statistics().retries,
            "left": left,
            "bytes_received": self.held.statistics().bytes_received - before,
            "bytes": sum(each.nbytes for each in expected),
        }

    def after_the_replica_died(self, request: ScoreRequest) -> bool:
        """An answer whose replica is killed before it was read: the question is put again."""
        import ray

        from workers.scores import serve_transport

        expected = self.stored.submit(request).result(60).array.copy()
        read, killed = serve_transport.read_held_answer, threading.Event()

        def kill_first(answer: Any, *arguments: Any, **more: Any) -> ScoreResponse:
            if not killed.is_set():
                killed.set()
                ray.kill(answer.replica)
                time.sleep(0.5)
            return read(answer, *arguments, **more)

        serve_transport.read_held_answer = kill_first
        try:
            values = self.held.submit(request).result(90).values
        finally:
            serve_transport.read_held_answer = read
        assert killed.is_set()
        assert self.held.statistics().retries > 0
        return np.array_equal(values.view(torch.uint16).numpy(), expected)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def trainer(serving: None, pools: dict[str, TeacherPool]) -> Any:
    import ray
    from ray import cloudpickle

    # Ray's workers cannot import a test module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actor = ray.remote(num_cpus=0)(Trainer).remote(pools["wedlm"].application)
    yield actor
    ray.kill(actor)


def test_the_object_store_gives_views_and_no_copies(serving: None, pools: dict[str, TeacherPool]) -> None:
    transport = ServeTransport(TeacherLease(application=pools["wedlm"].application))
    # More than Ray keeps in the message itself (100 KiB).
    values = transport.submit(hidden_request([256] * 16)).result(60).array
    assert values.nbytes > 100 * 1024
    assert not values.flags.writeable
    assert not values.flags.owndata
    transport.close()


@pytest.mark.soak  # `nixl` is some 440 MB, which the other tests do not need
@needs_nixl
def test_nixl_brings_the_very_same_values(trainer: Any) -> None:
    import ray

    requests = [hidden_request([256] * 16), hidden_request([5], seed=2), hidden_request([40, 9], seed=3)]
    nothing = ScoreRequest(
        np.arange(4, dtype=np.int32),
        np.array([0, 4], np.int64),
        np.zeros(4, np.uint8),
        Layout.BIDIRECTIONAL,
        Want.HIDDEN,
    )
    found = ray.get(trainer.both.remote([*requests, nothing, request_of([20])]))
    assert found == [("torch.bfloat16", True)] * 3 + [("uint16", True), ("float32", True)]


@pytest.mark.soak  # `nixl` is some 440 MB, which the other tests do not need
@needs_nixl
def test_answers_that_overlap_are_right_and_leave_nothing_behind(
    trainer: Any, pools: dict[str, TeacherPool]
) -> None:
    import ray

    requests = [hidden_request([256] * 8, seed) for seed in range(20)]
    found = ray.get(trainer.many.remote(requests, 60, 4, 0.1))
    assert (found["wrong"], found["retries"], found["left"]) == (0, 0, 0)
    assert found["bytes_received"] == 3 * found["bytes"]
    for _ in range(50):  # the last words to the replica may be on their way
        left = on_replica(held, pools["wedlm"].application)
        if left == (0, 0):
            break
        time.sleep(0.1)
    assert left == (0, 0)


class QuickEngine:
    """Answers at once, with the first token's id in every place: Ray loses references to quick answers."""

    async def score(self, asked: ScoreRequest, *, is_held: bool = False) -> ScoreResponse:
        number = int(asked.token_ids[0])
        states = torch.full((int(asked.masked_counts.sum()), 1024), number, dtype=torch.bfloat16)
        return ScoreResponse(states if is_held else states.view(torch.uint16).numpy(), "f", "t")


class QuickTeacher(TeacherReplica):
    def __init__(self) -> None:
        self._engine: Any = QuickEngine()

    async def check_health(self) -> None:
        pass

    def __del__(self) -> None:
        pass


@pytest.mark.soak  # `nixl` is some 440 MB, which the other tests do not need
@needs_nixl
def test_quick_answers_are_held_until_they_are_read(serving: None) -> None:
    import ray
    from ray import cloudpickle, serve

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    deployment = serve.deployment(QuickTeacher, name=TEACHER_DEPLOYMENT, ray_actor_options={"num_cpus": 0.1})
    serve.run(deployment.bind(), name="quick", route_prefix=None)
    actor = ray.remote(num_cpus=0)(Trainer).remote("quick")
    requests = [
        ScoreRequest(
            np.full(64, number, np.int32),
            np.array([0, 64], np.int64),
            np.ones(64, np.uint8),
            Layout.BIDIRECTIONAL,
            Want.HIDDEN,
        )
        for number in range(40)
    ]
    found = ray.get(actor.many.remote(requests, 200, 4, 0.0))
    assert (found["wrong"], found["retries"], found["left"]) == (0, 0, 0)
    ray.kill(actor)
    serve.delete("quick")


@pytest.mark.soak  # `nixl` is some 440 MB, which the other tests do not need
@needs_nixl
def test_a_replica_that_dies_before_it_was_read_is_asked_again(trainer: Any) -> None:
    import ray

    assert ray.get(trainer.after_the_replica_died.remote(hidden_request([64] * 4)))


def hide_nixl(_: object) -> None:
    """Let this process fail to import it, also where it is installed."""
    sys.modules["nixl"] = None  # type: ignore[assignment]


def show_nixl(_: object) -> None:
    """Undo `hide_nixl`."""
    del sys.modules["nixl"]


def test_without_nixl_a_trainer_says_so_at_once(
    serving: None, pools: dict[str, TeacherPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    with pytest.raises(InvalidInputError, match="the trainer cannot import it"):
        ServeTransport(TeacherLease(application=pools["wedlm"].application), held_device="cpu")


def test_without_nixl_a_replica_says_so_too(
    serving: None, pools: dict[str, TeacherPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    application = pools["wedlm"].application
    monkeypatch.setattr("workers.scores.serve_transport.require_nixl", lambda place: None)
    transport = ServeTransport(TeacherLease(application=application), held_device="cpu")
    on_replica(hide_nixl, application)
    try:
        with pytest.raises(InvalidInputError, match="the teacher's replica cannot import it") as caught:
            transport.submit(hidden_request([9])).result(60)
    finally:
        on_replica(show_nixl, application)
    assert caught.value.code == "nixl_missing"
    transport.close()
