"""What every transport must do, checked over the local one and over real Ray Serve."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.support.score_answers import TOP_K, numbers, request_of, top_k_for
from tide_core.contracts.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    RetryableScoreError,
    ScoreError,
)
from tide_core.contracts.scores import Layout, Want
from tide_core.contracts.teacher import TeacherLease, TeacherPool
from tide_core.scoring.local_teacher import LocalTeacher
from tide_core.scoring.prefetcher import AskedStep, Prefetcher
from tide_core.scoring.transport import ScoreTransport
from workers.scores.local_transport import LocalTransport
from workers.scores.retrying import RetryPolicy
from workers.scores.serve_transport import ServeTransport
from workers.teachers.loading import LoadedTeacher

pytestmark = pytest.mark.timeout(180)
Connect = Callable[..., ScoreTransport]


@pytest.fixture(params=["same process", "local", pytest.param("serve", marks=pytest.mark.ray)])
def connect(
    request: pytest.FixtureRequest, pools: dict[str, TeacherPool], loaded: dict[str, LoadedTeacher]
) -> Iterator[Connect]:
    """Opens a transport to a pool by its architecture."""
    if request.param == "serve":
        request.getfixturevalue("serving")
    opened: list[ScoreTransport] = []

    def connect(architecture: str = "llada2_moe", fingerprint: str | None = None) -> ScoreTransport:
        teacher = loaded[architecture]
        if request.param == "same process":
            opened.append(LocalTeacher.load(pools[architecture].teacher.model, fingerprint=fingerprint))
        elif request.param == "local":
            opened.append(LocalTransport(teacher.engine, teacher.description, fingerprint=fingerprint))
        else:
            lease = TeacherLease(application=pools[architecture].application, fingerprint=fingerprint)
            opened.append(ServeTransport(lease))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


@pytest.mark.parametrize("architecture", ["llada2_moe", "wedlm"])
def test_it_answers_as_the_engine_does(
    connect: Connect, loaded: dict[str, LoadedTeacher], architecture: str
) -> None:
    transport = connect(architecture)
    assert transport.describe() == loaded[architecture].description
    for layout in Layout:
        for want in Want:
            request = request_of([9, 40, 17], layout, want)
            expected = loaded[architecture].engine.submit(request).result(30).values
            response = transport.submit(request).result(60)
            assert response.values.dtype == expected.dtype
            np.testing.assert_allclose(
                numbers(response.values, request), numbers(expected, request), rtol=2**-7, atol=1e-5
            )
            assert response.fingerprint == loaded[architecture].description.fingerprint
            assert response.compute_seconds > 0


def test_two_jobs_at_once_get_their_own_answers(connect: Connect, loaded: dict[str, LoadedTeacher]) -> None:
    jobs = {name: connect("llada2_moe") for name in ("first", "second")}
    asked = [
        (name, request_of([16 + seed, 24], seed=seed, job_id=name)) for seed in range(8) for name in jobs
    ]
    futures = [jobs[name].submit(request) for name, request in asked]
    for (_, request), future in zip(asked, futures, strict=True):
        expected = loaded["llada2_moe"].engine.submit(request).result(30).values
        np.testing.assert_allclose(future.result(60).values, expected, atol=1e-5)


def test_it_feeds_a_prefetcher(connect: Connect) -> None:
    asked = (AskedStep(seed, [request_of([12, 20], seed=seed)]) for seed in range(6))
    with Prefetcher(connect(), asked, depth=2) as prefetcher:
        for number, step in enumerate(prefetcher):
            assert step.payload == number
            assert step.responses[0].values.size == int((request_of([12, 20], seed=number).groups > 0).sum())


def test_the_teachers_own_errors_come_through(connect: Connect) -> None:
    request = request_of([8])
    with pytest.raises(InvalidInputError, match="9999") as caught:
        connect().submit(replace(request, token_ids=np.full(8, 9999, np.int32))).result(60)
    assert (caught.value.code, caught.value.param) == ("invalid_input", "token_ids")


def test_another_teacher_than_the_leases_is_refused(connect: Connect) -> None:
    with pytest.raises(FingerprintMismatchError):
        connect(fingerprint="another teacher").submit(request_of([8])).result(60)
    transport = connect("llada2_moe")
    description = transport.describe()
    assert connect("llada2_moe", description.fingerprint).submit(request_of([8])).result(60) is not None


def test_a_closed_transport_refuses(connect: Connect) -> None:
    transport = connect()
    transport.close()
    with pytest.raises(ScoreError):
        transport.submit(request_of([8]))


@pytest.mark.ray
def test_a_pool_that_is_not_there_is_waited_for_until_the_deadline(serving: None) -> None:
    transport = ServeTransport(
        TeacherLease(application="teacher-none"), policy=RetryPolicy(deadline_seconds=0.5)
    )
    with pytest.raises(RetryableScoreError, match="teacher-none") as caught:
        transport.submit(request_of([8])).result(30)
    assert caught.value.code == "score_deadline"


@pytest.mark.ray
def test_the_answer_carries_four_bytes_or_one_hidden_state_a_masked_token(
    serving: None, pools: dict[str, TeacherPool]
) -> None:
    from ray import cloudpickle

    transport = ServeTransport(TeacherLease(application=pools["llada2_moe"].application))
    request = request_of([256] * 32)
    masked = int(request.masked_counts.sum())
    width = transport.describe().hidden_size
    for want, bytes_each in (
        (Want.TARGET_LOG_PROB, 4),
        (Want.TARGET_AND_BOUNDARY, 8),
        (Want.HIDDEN, 2 * width),
        (Want.TOP_K, 6 * TOP_K.k + 4 * len(TOP_K.temperatures)),
    ):
        response = transport.submit(replace(request, want=want, top_k=top_k_for(want))).result(60)
        buffers: list[object] = []
        head = cloudpickle.dumps(response, protocol=5, buffer_callback=buffers.append)
        total = len(head) + sum(memoryview(buffer).nbytes for buffer in buffers)  # type: ignore[arg-type]
        assert total <= 1.05 * bytes_each * masked
    transport.close()


@pytest.mark.ray
def test_a_replica_that_dies_is_replaced_while_clients_ask(
    serving: None, pools: dict[str, TeacherPool], loaded: dict[str, LoadedTeacher]
) -> None:
    import ray

    application = pools["wedlm"].application
    transport = ServeTransport(TeacherLease(application=application), policy=RetryPolicy(deadline_seconds=60))
    transport.describe()
    names = [each for each in ray.util.list_named_actors(all_namespaces=True) if application in each["name"]]
    assert len(names) == 1
    ray.kill(ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]))
    time.sleep(0.2)
    request = request_of([30, 12])
    expected = loaded["wedlm"].engine.submit(request).result(30).values
    np.testing.assert_allclose(transport.submit(request).result(90).values, expected, atol=1e-5)
    transport.close()
