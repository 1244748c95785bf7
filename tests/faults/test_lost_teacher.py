"""A real job whose teacher's pool is gone for longer than its trainer waits for an answer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.orchestrator import embedded_ray
from tests.support.running_tide import Service, await_true, job_spec

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, DEADLINE_SECONDS = 800, 6


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Service]:
    """A Tide whose trainers soon give up asking."""
    made = Service(tmp_path / "data", "--score-deadline-seconds", str(DEADLINE_SECONDS))
    made.start()
    yield made
    made.end()
    shutil.rmtree(embedded_ray.temp_dir(made.folder), ignore_errors=True)


def test_a_job_survives_a_teacher_that_is_gone_for_a_while(impatient: Service, tmp_path: Path) -> None:
    """One counted failure would end it."""
    spec = job_spec(tmp_path, steps=STEPS, resources={"max_attempts": 1, "score_cache": False})
    job = impatient.client.jobs.create(spec)
    await_true(lambda: list(job.checkpoints()), "there is a checkpoint", 240)
    assert job.refresh().status == "running", "the job is too short for this test"

    record = embedded_ray.read_record(impatient.folder)
    assert record is not None
    headers = {"Authorization": f"Bearer {embedded_ray.read_token(impatient.folder)}"}
    began = time.monotonic()

    def has_given_up() -> bool:
        """Whether the attempt has ended; the pool that the control plane brings back is taken down again."""
        httpx.delete(f"{record.dashboard_url}/api/serve/applications/", headers=headers, timeout=30)
        return job.refresh().attempt == 2

    await_true(has_given_up, "the trainer gave up", 120)
    assert time.monotonic() - began >= DEADLINE_SECONDS

    ended = job.wait(240)
    assert (ended.status, ended.attempt) == ("succeeded", 2), ended.error
    (loss,) = job.metrics("loss", max_points=STEPS).data
    assert loss.steps == list(range(1, STEPS + 1)), "every step is stored, once"
    events = list(job.events())
    (failed,) = [event for event in events if event.type == "train.failed"]
    assert failed.data["code"] in ("score_deadline", "score_unavailable")
    (again,) = [event for event in events if event.type == "attempt.started"]
    assert again.data["counts"] is False
