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
    answer = httpx.post(f"{impatient.url}/v1/jobs", json=spec, timeout=20)
    assert answer.status_code == 201, answer.text
    path = f"/v1/jobs/{answer.json()['id']}"
    await_true(lambda: impatient.get(f"{path}/checkpoints")["data"], "there is a checkpoint", 240)
    assert impatient.get(path)["status"] == "running", "the job is too short for this test"

    record = embedded_ray.read_record(impatient.folder)
    assert record is not None
    headers = {"Authorization": f"Bearer {embedded_ray.read_token(impatient.folder)}"}
    began = time.monotonic()

    def has_given_up() -> bool:
        """Whether the attempt has ended; the pool that the control plane brings back is taken down again."""
        httpx.delete(f"{record.dashboard_url}/api/serve/applications/", headers=headers, timeout=30)
        return bool(impatient.get(path)["attempt"] == 2)

    await_true(has_given_up, "the trainer gave up", 120)
    assert time.monotonic() - began >= DEADLINE_SECONDS
    await_true(lambda: impatient.get(path)["finished_at"] is not None, "the job has ended", 240)

    job = impatient.get(path)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    (loss,) = impatient.get(f"{path}/metrics?name=loss&max_points={STEPS}")["data"]
    assert loss["steps"] == list(range(1, STEPS + 1)), "every step is stored, once"
    events = impatient.get(f"{path}/events?limit=100")["data"]
    (failed,) = [event for event in events if event["type"] == "train.failed"]
    assert failed["data"]["code"] in ("score_deadline", "score_unavailable")
    (again,) = [event for event in events if event["type"] == "attempt.started"]
    assert again["data"]["counts"] is False
