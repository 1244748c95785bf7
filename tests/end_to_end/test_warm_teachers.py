"""A teacher's pool over several jobs on the real thing: kept warm, taken down to nothing, woken again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_tide import Service, await_true, job_spec
from tide.client import JobHandle
from tide_core.contracts.resources import Teacher
from tide_core.contracts.states import JobState

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LINGER_SECONDS = 60
WAKE_SECONDS = 60.0
"""A tiny teacher must serve within this time of being leased, on a loaded machine of two cores."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "data", "--teacher-linger-seconds", str(LINGER_SECONDS))
    made.start()
    yield made
    made.end()


def test_a_pool_is_kept_warm_goes_to_nothing_and_wakes(service: Service, tmp_path: Path) -> None:
    spec = job_spec(tmp_path, steps=4)

    def run() -> JobHandle:
        """A job, at its end."""
        job = service.client.jobs.create(spec).wait(240)
        assert job.status is JobState.SUCCEEDED, job.error
        return job

    cold = seconds_until_taught(run())
    assert cold < WAKE_SECONDS
    assert pool(service).status == "ready", "the pool works on when its job has ended"
    created = pool(service).created_at

    warm = seconds_until_taught(run())
    assert warm < min(3.0, cold), "the second job of a study finds its teacher loaded"

    ended = time.monotonic()
    await_true(lambda: pool(service).status == "stopped", "nobody uses it: it goes", LINGER_SECONDS + 40)
    assert time.monotonic() - ended > LINGER_SECONDS / 2, "but not at once"
    assert pool(service).ready_replicas == 0

    woken = seconds_until_taught(run())
    assert warm < woken < WAKE_SECONDS
    assert pool(service).created_at == created, "it is the same pool"
    print(f"cold {cold:.1f} s, warm {warm:.1f} s, woken {woken:.1f} s")


def pool(service: Service) -> Teacher:
    """The one pool there is."""
    (found,) = service.client.teachers.list()
    return found


def seconds_until_taught(job: JobHandle) -> float:
    """From the job's lease to the start of its training, by its events."""
    at = {event.type: event.created_at for event in job.events()}
    return (at["job.running"] - at["teacher.leased"]).total_seconds()
