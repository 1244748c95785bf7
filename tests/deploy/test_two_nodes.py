"""The containers of the chart run as its manifests say, on two Ray nodes: a job runs, a node vanishes.

The pods are namespaces of this machine (see `pods`), each with its own address, so that commands, ports,
users, volumes and environment are the manifests' and KubeRay's, word for word.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.deploy.pods import Pod, obstacle
from tests.support.deploy.release import STORAGE, Release
from tests.support.running_tide import await_true, job_spec

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 1200


@pytest.fixture(scope="module")
def release(render: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart for one machine without GPUs, installed, with one worker."""
    if (why := obstacle()) is not None:
        pytest.skip(f"no pods here: {why}")
    folder = tmp_path_factory.mktemp("release")
    made = Release(render("kind-cpu"), folder)
    try:
        made.install()
        made.start_worker(0)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def spec(release: Release) -> dict[str, Any]:
    """A job whose inputs lie in the claim that all pods share, and that has no attempt to lose."""
    inputs = release.storage / "inputs"
    inputs.mkdir()
    changes = {"resources": {"max_attempts": 1}, "checkpoints": {"every_steps": 100}}
    written = json.dumps(job_spec(inputs, steps=STEPS, **changes))
    subprocess.run(["chown", "-R", "10001:10001", str(inputs)], check=True)
    spec: dict[str, Any] = json.loads(written.replace(str(release.storage), str(STORAGE)))
    return spec


def post(release: Release, spec: dict[str, Any]) -> str:
    answer = httpx.post(f"{release.url}/v1/jobs", json=spec, headers=release.user(), timeout=20)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def await_end(release: Release, job_id: str) -> dict[str, Any]:
    await_true(lambda: release.get(f"/v1/jobs/{job_id}")["finished_at"], f"{job_id} has ended", 300)
    job: dict[str, Any] = release.get(f"/v1/jobs/{job_id}")
    assert job["status"] == "succeeded", (job["error"], release.describe())
    return job


def check_losses(release: Release, job_id: str) -> None:
    (loss,) = release.get(f"/v1/jobs/{job_id}/metrics?name=loss&max_points={STEPS}")["data"]
    assert loss["steps"] == list(range(1, STEPS + 1)), "every step is stored, once"


def works(pod: Pod, role: str) -> bool:
    """Whether one of the pod's processes has this role in Ray."""
    return any(role in " ".join(_command(each)) for each in pod.members())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_job_goes_through_the_containers_commands(release: Release, spec: dict[str, Any]) -> None:
    assert len(release.living_nodes()) == 2
    job_id = post(release, spec)
    worker = release.worker
    await_true(lambda: works(worker, "ray::RayTrainWorker"), "the second node trains", 200)
    assert works(worker, "ray::ServeReplica"), "the teacher lives there too"
    job = await_end(release, job_id)
    assert job["attempt"] == 1
    assert Path(job["model"]["location"]).is_relative_to(STORAGE)
    assert (
        release.storage / Path(job["model"]["location"]).relative_to(STORAGE) / "model.safetensors"
    ).is_file()
    check_losses(release, job_id)


def test_ray_answers_its_token_alone(release: Release) -> None:
    assert httpx.get(f"{release.dashboard}/api/jobs/", timeout=10).status_code == 401
    assert httpx.get(f"{release.dashboard}/api/jobs/", headers=release.token(), timeout=10).status_code == 200


def test_clients_show_the_token_of_the_secret(release: Release) -> None:
    assert httpx.get(f"{release.url}/v1/jobs", timeout=10).status_code == 401
    (job, *_) = release.get("/v1/jobs")["data"]
    assert job["posted_by"] == "bootstrap"


def test_the_object_store_is_in_shared_memory(release: Release) -> None:
    for pod in release.pods:
        assert "object store is using" not in pod.log.read_text(), pod.name


def test_an_upgrades_migration_finds_nothing_to_do(release: Release) -> None:
    release.migrate(1)
    assert release.get("/readyz")["status"] == "ready"


def test_every_exporter_answers_what_prometheus_can_read(release: Release) -> None:
    promtool = shutil.which("promtool")
    assert set(release.exporters()) == {"tide-control-plane", "tide-head", "tide-worker-0"}
    for name, url in release.exporters().items():
        text = httpx.get(url, timeout=20).raise_for_status().text
        families = {family.name for family in text_string_to_metric_families(text)}
        prefix = "tide_" if name == "tide-control-plane" else "ray_"
        assert len([each for each in families if each.startswith(prefix)]) >= 5, (name, families)
        if promtool is not None:
            # Status 3: it was read, but names or help texts are not as Prometheus likes them.
            done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
            assert done.returncode in (0, 3), done.stderr


@pytest.mark.parametrize("end", ["killed", "cut off", "taken away"])
def test_a_job_survives_the_node_that_trains_and_teaches(
    release: Release, spec: dict[str, Any], end: str
) -> None:
    worker = release.worker
    number = int(worker.name.removeprefix("tide-worker-"))
    job_id = post(release, spec | {"seed": number})
    await_true(lambda: works(worker, "ray::RayTrainWorker"), "the node trains", 200)
    await_true(lambda: release.get(f"/v1/jobs/{job_id}/checkpoints")["data"], "there is a checkpoint", 100)
    if end == "cut off":  # by a power cut: no peer sees the connections close
        release.network.unplug(worker.name)
    if end == "taken away":  # a spot machine: its owner says so before
        release.announce_end(worker)
    worker.kill()
    assert worker.members() == []
    assert release.get(f"/v1/jobs/{job_id}")["status"] == "running", "the job is too short for this test"
    release.start_worker(number + 1)  # as KubeRay does for a pod that is gone

    job = await_end(release, job_id)
    assert job["attempt"] == 2
    events = release.get(f"/v1/jobs/{job_id}/events?limit=100")["data"]
    (started,) = [event for event in events if event["type"] == "attempt.started"]
    assert started["data"]["counts"] is False, "the loss is the platform's"
    check_losses(release, job_id)
    _nothing_is_left(release)


def _nothing_is_left(release: Release) -> None:
    def statuses() -> set[str]:
        jobs = httpx.get(f"{release.dashboard}/api/jobs/", headers=release.token(), timeout=10).json()
        return {each["status"] for each in jobs}

    # A driver says its last word before it ends.
    await_true(lambda: statuses() <= {"SUCCEEDED", "FAILED", "STOPPED"}, "every Ray job has ended", 60)
    await_true(lambda: not works(release.worker, "ray::RayTrainWorker"), "no trainer outlives its job", 30)
    assert len(release.living_nodes()) == 2
