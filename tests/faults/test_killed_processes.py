"""A real job on a real head, whose control plane and then whose cluster are killed under it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

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
    job = service.client.jobs.create(job_spec(tmp_path, steps=STEPS))

    def steps_done() -> int:
        series = job.metrics("loss").data
        return max(series[0].steps, default=0) if series else 0

    await_true(lambda: steps_done() >= 1, "training has begun", 240)
    service.kill()
    time.sleep(1.0)  # the trainer goes on alone and keeps its reports
    service.start()
    seen = steps_done()
    await_true(lambda: steps_done() > seen, "the same attempt goes on")
    running = job.refresh()
    assert (running.status, running.attempt) == ("running", 1)

    await_true(lambda: list(job.checkpoints()), "there is a checkpoint")
    record = embedded_ray.read_record(service.folder)
    assert record is not None
    assert job.refresh().status == "running", "the job is too short for this test"
    for process in embedded_ray.find_members(record):
        with contextlib.suppress(psutil.NoSuchProcess):  # it went down with one that was killed before it
            process.kill()

    ended = job.wait(240)
    assert (ended.status, ended.attempt) == ("succeeded", 2), ended.error
    (loss,) = job.metrics("loss", max_points=STEPS).data
    assert loss.steps == list(range(1, STEPS + 1)), "every step is stored, once"
    assert ended.model.step == STEPS
    assert Path(ended.model.location, "model.safetensors").is_file()
    kinds = [event.type for event in job.events()]
    assert kinds.count("job.succeeded") == 1
    assert kinds.count("attempt.started") == 1
