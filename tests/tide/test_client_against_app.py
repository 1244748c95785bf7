"""Both clients against the real control plane: one over HTTP, one inside the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

import tide
from service.app import create_app
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings


@pytest.fixture
def client(url: str) -> Any:
    with tide.Client(url) as opened:
        yield opened


@pytest.fixture
async def async_client(tmp_path: Path) -> AsyncIterator[tide.AsyncClient]:
    settings = Settings(data_dir=tmp_path / "data", reconcile_interval_seconds=0.05, events_poll_seconds=0.02)
    app = create_app(settings, FakeCompute())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with tide.AsyncClient("http://tide", transport=transport) as opened:
            yield opened


class TestBlocking:
    def test_a_job_from_its_post_to_its_end(self, client: tide.Client, job_body: dict[str, Any]) -> None:
        job = client.jobs.create(job_body)
        assert job.name == "a job"
        assert not job.is_ended
        assert client.jobs.get(job.id).id == job.refresh().id == job.id
        with pytest.raises(tide.WaitTimeoutError):
            job.wait(timeout=0.3)
        assert job.cancel().status in (tide.JobState.CANCELLING, tide.JobState.CANCELLED)
        ended = job.wait(timeout=60)
        assert ended.is_ended
        assert ended.status is tide.JobState.CANCELLED
        types = [message.type for message in job.watch() if isinstance(message, tide.Event)]
        assert types[0] == "job.queued"
        assert types[-1] == "job.cancelled"
        assert [event.type for event in job.events(page_size=2)] == types
        second = next(job.events()).id
        assert [event.type for event in job.events(after=second)] == types[1:]
        assert job.metrics("loss").data == []
        assert list(job.checkpoints()) == []

    def test_a_posted_spec_can_be_posted_again(self, client: tide.Client, job_body: dict[str, Any]) -> None:
        first = client.jobs.create(tide.JobSpec.model_validate(job_body))
        again = client.jobs.create(first.spec)
        assert again.id != first.id
        assert again.spec == first.spec
        for job in (first, again):
            job.cancel()

    def test_the_same_key_gives_the_same_job(self, client: tide.Client, job_body: dict[str, Any]) -> None:
        one, two = (client.jobs.create(job_body, idempotency_key="k1") for _ in range(2))
        assert one.id == two.id
        with pytest.raises(tide.RequestConflictError):
            client.jobs.create(job_body | {"name": "other"}, idempotency_key="k1")
        one.cancel()

    def test_pages_are_fetched_as_they_are_needed(self, url: str, job_body: dict[str, Any]) -> None:
        class Counting(httpx.HTTPTransport):
            pages = 0

            def handle_request(self, request: httpx.Request) -> httpx.Response:
                Counting.pages += request.method == "GET"
                return super().handle_request(request)

        with tide.Client(url, transport=Counting()) as client:
            posted = [client.jobs.create(job_body).id for _ in range(3)]
            jobs = client.jobs.list(page_size=2)
            assert Counting.pages == 0
            assert [job.id for job in islice(jobs, 2)] == posted[:0:-1]
            assert Counting.pages == 1
            assert next(jobs).id == posted[0]
            assert Counting.pages == 2
            after = [job.id for job in client.jobs.list(after=posted[1], page_size=1)]
            assert after[0] == posted[0]
            for job_id in posted:
                client.jobs.cancel(job_id)
            assert posted[0] not in [job.id for job in client.jobs.list(status=["running"])]

    def test_errors_are_the_servers_own(self, client: tide.Client, job_body: dict[str, Any]) -> None:
        with pytest.raises(tide.InvalidRequestError) as caught:
            client.jobs.create(job_body | {"colour": "red"})
        assert (caught.value.status, caught.value.param) == (422, "colour")
        assert caught.value.request_id
        with pytest.raises(tide.MissingResourceError, match="job-unknown"):
            client.jobs.get("job-unknown")
        with pytest.raises(tide.MissingResourceError):
            list(client.jobs.watch("job-unknown"))

    def test_the_rest_of_the_interface(self, client: tide.Client, job_body: dict[str, Any]) -> None:
        assert client.health().status == "ok"
        assert client.ready("database").status == "ready"
        assert {check.name for check in client.ready().checks} == {"database", "reconciler", "ray"}
        assert list(client.datasets.list()) == list(client.models.list()) == []
        for get in (client.teachers.get, client.datasets.get, client.models.get):
            with pytest.raises(tide.MissingResourceError):
                get("unknown")
        assert all(teacher.object == "teacher" for teacher in client.teachers.list())
        job = client.jobs.create(job_body)
        with pytest.raises(tide.MissingResourceError, match="it has no log"):
            job.logs(phase="evaluate")
        job.cancel()


class TestAwaiting:
    async def test_a_job_from_its_post_to_its_end(
        self, async_client: tide.AsyncClient, job_body: dict[str, Any]
    ) -> None:
        job = await async_client.jobs.create(job_body)
        await job.cancel()
        ended = await job.wait(timeout=60)
        assert ended.status is tide.JobState.CANCELLED
        types = [message.type async for message in job.watch() if isinstance(message, tide.Event)]
        assert (types[0], types[-1]) == ("job.queued", "job.cancelled")
        assert [event.type async for event in job.events(page_size=2)] == types
        assert [found.id async for found in async_client.jobs.list()] == [job.id]
        assert (await job.refresh()).status is tide.JobState.CANCELLED

    async def test_readiness_that_is_missing_is_an_answer(self, tmp_path: Path) -> None:
        app = create_app(Settings(data_dir=tmp_path))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with tide.AsyncClient("http://tide", transport=transport) as client:
                readiness = await client.ready()
        assert readiness.status == "not_ready"
