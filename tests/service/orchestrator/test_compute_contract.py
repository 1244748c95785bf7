"""What every cluster must do, held against the one in memory and a real Ray head."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from service.orchestrator import embedded_ray
from service.orchestrator.compute import (
    Application,
    ApplicationStatus,
    Compute,
    Scaling,
    Submission,
    SubmissionState,
    SubmissionStatus,
)
from service.orchestrator.embedded_ray import HeadOptions, HeadRecord
from service.orchestrator.fake_compute import FakeCompute
from service.orchestrator.ray_compute import RayCompute
from tide_core.contracts.errors import ComputeUnavailableError

STAND_IN = """
from ray import serve

@serve.deployment(name="teacher")
class Teacher:
    def __init__(self, is_broken):
        if is_broken:
            raise ValueError("there are no weights here")

def build(arguments):
    return Teacher.bind(arguments["is_broken"])
"""


@dataclass
class Cluster:
    """A cluster under test, and how its submissions come to their end."""

    compute: Compute
    settle: Callable[[str, int], Awaitable[None]]
    await_application: Callable[[str, ApplicationStatus], Awaitable[None]]
    environment: dict[str, str]


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HeadRecord, Path]]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "stand_in.py").write_text(STAND_IN)
    record, is_new = embedded_ray.find_or_start(
        HeadOptions(python=sys.executable, folder=folder, num_cpus=4, object_store_bytes=200 << 20)
    )
    assert is_new
    yield record, folder
    embedded_ray.stop(record, folder)
    shutil.rmtree(embedded_ray.temp_dir(folder), ignore_errors=True)
    assert embedded_ray.find_members(record) == []


def _fake_cluster() -> Cluster:
    compute = FakeCompute()

    async def settle(submission_id: str, exit_code: int) -> None:
        if not (await compute.status(submission_id)).has_ended:
            compute.finish(submission_id, exit_code=exit_code)
            compute.set_log(submission_id, "hello from the job")

    async def await_application(name: str, status: ApplicationStatus) -> None:
        message = "ValueError: there are no weights here" if status is ApplicationStatus.FAILED else ""
        compute.set_application(name, status, message)

    return Cluster(compute, settle, await_application, {})


def _ray_cluster(record: HeadRecord, folder: Path) -> Cluster:
    compute = RayCompute(record.dashboard_url, embedded_ray.read_token(folder))

    async def settle(submission_id: str, exit_code: int) -> None:
        await _until(lambda: _has_ended(compute, submission_id))

    async def await_application(name: str, status: ApplicationStatus) -> None:
        async def reached() -> bool:
            return (await compute.applications())[name].status is status

        await _until(reached)

    return Cluster(compute, settle, await_application, {"PYTHONPATH": str(folder)})


@pytest.fixture(params=["fake", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    is_fake = request.param == "fake"
    made = _fake_cluster() if is_fake else _ray_cluster(*request.getfixturevalue("ray_head"))
    yield made
    await made.compute.close()


async def _has_ended(compute: Compute, submission_id: str) -> bool:
    return (await compute.status(submission_id)).has_ended


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.2)


def _submission(name: str, code: str) -> Submission:
    # A name of its own for every run: a head keeps what it once heard of.
    return Submission(f"tide-{name}-{os.getpid()}", python(code), {"TIDE_WORD": "hello"}, {"tide_job": name})


async def test_a_submission_that_succeeds(cluster: Cluster) -> None:
    job = _submission("good", "import os; print(os.environ['TIDE_WORD'], 'from the job')")
    assert await cluster.compute.status(job.submission_id) == SubmissionState(SubmissionStatus.NOT_FOUND)
    await cluster.compute.submit(job)
    await cluster.compute.submit(
        dataclasses.replace(job, entrypoint="exit 7")
    )  # the same id: no second start
    await cluster.settle(job.submission_id, 0)
    state = await cluster.compute.status(job.submission_id)
    assert state.status is SubmissionStatus.SUCCEEDED
    assert not state.is_own_failure
    assert "hello from the job" in await cluster.compute.logs(job.submission_id)


async def test_a_submission_that_fails(cluster: Cluster) -> None:
    job = _submission("bad", "raise SystemExit(3)")
    await cluster.compute.submit(job)
    await cluster.settle(job.submission_id, 3)
    state = await cluster.compute.status(job.submission_id)
    assert (state.status, state.exit_code, state.is_own_failure) == (SubmissionStatus.FAILED, 3, True)


async def test_a_submission_that_is_killed(cluster: Cluster) -> None:
    job = _submission("killed", "import os; os.kill(os.getpid(), 9)")
    await cluster.compute.submit(job)
    await cluster.settle(job.submission_id, -9)
    state = await cluster.compute.status(job.submission_id)
    assert state.is_own_failure
    assert state.was_killed


async def test_a_submission_that_is_stopped(cluster: Cluster) -> None:
    job = _submission("long", "import time; time.sleep(600)")
    await cluster.compute.submit(job)
    await cluster.compute.stop(job.submission_id)
    await cluster.compute.stop(job.submission_id)
    await cluster.settle(job.submission_id, 0)
    state = await cluster.compute.status(job.submission_id)
    assert state.status is SubmissionStatus.STOPPED
    assert not state.is_own_failure


async def test_what_is_unknown_is_no_error(cluster: Cluster) -> None:
    await cluster.compute.stop("tide-unknown-1")
    assert await cluster.compute.logs("tide-unknown-1") == ""


async def test_the_size_of_the_cluster(cluster: Cluster) -> None:
    await cluster.compute.ping()
    size = await cluster.compute.resources()
    assert (size.nodes, size.cpus) == (1, 4)
    assert size.largest_node_memory > 1 << 30
    assert size.has_node({})
    assert not size.has_node({"tide.dev/purpose": "teacher"})


def _application(
    cluster: Cluster, name: str, *, is_broken: bool = False, replicas: int = 1, most: int | None = None
) -> Application:
    return Application(
        name=f"teacher-{name}",
        import_path="stand_in:build",
        arguments={"is_broken": is_broken},
        deployment="teacher",
        scaling=Scaling(
            minimum=replicas,
            maximum=most or replicas,
            policy="ray.serve.autoscaling_policy:replica_queue_length_autoscaling_policy",
            up_after_seconds=1.0,
            down_after_seconds=2.0,
        ),
        cpus_per_replica=0.5,
        gpus_per_replica=0.0,
        environment=cluster.environment,
    )


async def test_applications_come_grow_fail_and_go(cluster: Cluster) -> None:
    compute = cluster.compute
    assert await compute.applications() == {}
    good = _application(cluster, "good")
    await compute.put_applications([good])
    await cluster.await_application(good.name, ApplicationStatus.RUNNING)
    known = await compute.applications()
    assert known[good.name].wanted == good, "what was asked for can be read back, so nothing is put twice"
    assert known[good.name].is_serving

    larger = _application(cluster, "good", replicas=2)
    broken = _application(cluster, "broken", is_broken=True)
    await compute.put_applications([larger, broken])
    await cluster.await_application(broken.name, ApplicationStatus.FAILED)
    known = await compute.applications()
    assert "there are no weights here" in known[broken.name].message
    assert known[good.name].wanted == larger
    await cluster.await_application(good.name, ApplicationStatus.RUNNING)

    nowhere = dataclasses.replace(good, node_labels={"tide.dev/purpose": "elsewhere"})
    await compute.put_applications([nowhere])
    assert (await compute.applications())[good.name].wanted == nowhere

    await compute.put_applications([])
    await _until(lambda: _gone(compute))


async def _gone(compute: Compute) -> bool:
    return all(
        state.status is ApplicationStatus.DELETING for state in (await compute.applications()).values()
    )


def _listens_on(process: psutil.Process) -> set[str]:
    try:
        if "ServeReplica" in "".join(process.cmdline()):
            return set()
        found = [connection for connection in process.net_connections() if connection.status == "LISTEN"]
    except psutil.NoSuchProcess:
        return set()
    return {connection.laddr.ip.removeprefix("::ffff:") for connection in found}


@pytest.mark.ray
@pytest.mark.slow
class TestRayAlone:
    """What only a real head can show."""

    async def test_a_wrong_token_is_told_apart(self, ray_head: tuple[HeadRecord, Path]) -> None:
        record, _ = ray_head
        compute = RayCompute(record.dashboard_url, "wrong")
        with pytest.raises(ComputeUnavailableError) as caught:
            await compute.ping()
        assert caught.value.code == "compute_unauthorized"
        await compute.close()

    async def test_every_process_listens_on_loopback_alone(self, ray_head: tuple[HeadRecord, Path]) -> None:
        """But for serving replicas, whose port Ray binds everywhere and guards with the token."""
        record, _ = ray_head
        addresses = {
            address for process in embedded_ray.find_members(record) for address in _listens_on(process)
        }
        assert addresses == {"127.0.0.1"}

    async def test_a_running_head_is_found_again(self, ray_head: tuple[HeadRecord, Path]) -> None:
        record, folder = ray_head
        found, is_new = embedded_ray.find_or_start(HeadOptions(python=sys.executable, folder=folder))
        assert (found, is_new) == (record, False)


async def test_no_server_at_the_address() -> None:
    compute = RayCompute(f"http://127.0.0.1:{embedded_ray.find_free_port()}")
    with pytest.raises(ComputeUnavailableError):
        await compute.ping()
    await compute.close()
