"""A real job on a real head, whose control plane and then whose cluster are killed under it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.orchestrator import embedded_ray
from tests.support.running_tide import Service, await_true, job_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 800


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "data")
    made.start()
    yield made
    made.end()
    record = embedded_ray.read_record(made.folder)
    shutil.rmtree(embedded_ray.temp_dir(made.folder), ignore_errors=True)
    assert record is None, "ending in order forgets the head"


def test_a_job_survives_the_control_plane_and_then_the_cluster(service: Service, tmp_path: Path) -> None:
    answer = httpx.post(f"{service.url}/v1/jobs", json=job_spec(tmp_path, steps=STEPS), timeout=20)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    path = f"/v1/jobs/{job_id}"

    def steps_done() -> int:
        series = service.get(f"{path}/metrics?name=loss")["data"]
        return max(series[0]["steps"], default=0) if series else 0

    await_true(lambda: steps_done() >= 1, "training has begun", 240)
    service.kill()
    time.sleep(1.0)  # the trainer goes on alone and keeps its reports
    service.start()
    seen = steps_done()
    await_true(lambda: steps_done() > seen, "the same attempt goes on")
    job = service.get(path)
    assert (job["status"], job["attempt"]) == ("running", 1)

    await_true(lambda: service.get(f"{path}/checkpoints")["data"], "there is a checkpoint")
    record = embedded_ray.read_record(service.folder)
    assert record is not None
    assert service.get(path)["status"] == "running", "the job is too short for this test"
    for process in embedded_ray.find_members(record):
        with contextlib.suppress(psutil.NoSuchProcess):  # it went down with one that was killed before it
            process.kill()
    await_true(lambda: service.get(path)["finished_at"] is not None, "the job has ended", 240)

    job = service.get(path)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    (loss,) = service.get(f"{path}/metrics?name=loss&max_points={STEPS}")["data"]
    steps = loss["steps"]
    assert steps == list(range(1, STEPS + 1)), "every step is stored, once"
    assert job["model"]["step"] == STEPS
    assert Path(job["model"]["location"], "model.safetensors").is_file()
    kinds = [event["type"] for event in service.get(f"{path}/events?limit=100")["data"]]
    assert kinds.count("job.succeeded") == 1
    assert kinds.count("attempt.started") == 1
