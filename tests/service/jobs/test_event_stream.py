"""The event stream: live, resumable, and ended with its job; over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.db.session import Database
from service.jobs import repository
from service.jobs.state_machine import transition
from tide_core.contracts.states import JobState

PostJob = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    """The control plane behind a real server: a test client would wait for the end of the stream."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 (uvicorn offers no event to wait for)
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


async def _walk(database: Database, job_id: str, *states: JobState) -> None:
    for state in states:
        async with database.write() as session:
            await transition(session, await repository.lock(session, job_id), state, f"now {state}")


class Reader:
    """Reads a stream's messages as (name, id, data)."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> tuple[str | None, int | None, Any]:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if not line and "data" in fields:
                name = fields.get("event")
                number = int(fields["id"]) if "id" in fields else None
                return name, number, json.loads(fields["data"])
            key, _, value = line.partition(": ")
            if key:
                fields[key] = value
        raise EOFError


@contextlib.asynccontextmanager
async def _stream(url: str, job_id: str, **headers: str) -> AsyncIterator[Reader]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(timeout=20) as client:
        path = f"{url}/v1/jobs/{job_id}/events/stream"
        async with client.stream("GET", path, headers=names) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            yield Reader(answer.aiter_lines())


async def test_events_arrive_as_they_happen_and_end_with_the_job(
    url: str, post_job: PostJob, database: Database
) -> None:
    job_id = (await post_job())["id"]
    async with _stream(url, job_id) as reader:
        name, number, event = await reader.next()
        assert (name, event["type"], event["id"]) == (None, "job.queued", number)
        await _walk(database, job_id, JobState.PREPARING)
        assert (await reader.next())[2]["type"] == "job.preparing"
        await _walk(database, job_id, JobState.CANCELLING, JobState.CANCELLED)
        assert (await reader.next())[2]["type"] == "job.cancelling"
        assert (await reader.next())[2]["type"] == "job.cancelled"
        assert await reader.next() == ("done", None, {"status": "cancelled"})
        with pytest.raises(EOFError):
            await reader.next()


async def test_a_stream_goes_on_after_the_last_event_seen(
    url: str, post_job: PostJob, database: Database
) -> None:
    job_id = (await post_job())["id"]
    await _walk(database, job_id, JobState.PREPARING, JobState.CANCELLING, JobState.CANCELLED)
    async with _stream(url, job_id) as reader:
        seen = [await reader.next() for _ in range(2)]
    last = str(seen[-1][1])
    async with _stream(url, job_id, Last_Event_ID=last) as reader:
        rest = [(await reader.next())[2] for _ in range(3)]
    assert [entry.get("type") for entry in rest] == ["job.cancelling", "job.cancelled", None]


async def test_progress_is_part_of_the_stream(url: str, post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    async with _stream(url, job_id) as reader:
        await reader.next()
        async with database.write() as session:
            job = await repository.lock(session, job_id)
            job.progress = {"phase": "train", "completed": 3}
        name, number, data = await reader.next()
    assert (name, number, data["completed"]) == ("progress", None, 3)


async def test_a_senseless_last_event_id_is_refused(client: httpx.AsyncClient, post_job: PostJob) -> None:
    job_id = (await post_job())["id"]
    for value in ("abc", "-1", "9" * 30):
        answer = await client.get(f"/v1/jobs/{job_id}/events/stream", headers={"Last-Event-ID": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Last-Event-ID")


async def test_events_are_paged_oldest_first(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    job_id = (await post_job())["id"]
    await _walk(database, job_id, JobState.PREPARING, JobState.CANCELLING)
    first = (await client.get(f"/v1/jobs/{job_id}/events?limit=2")).json()
    assert ([event["type"] for event in first["data"]], first["has_more"]) == (
        ["job.queued", "job.preparing"],
        True,
    )
    rest = (await client.get(f"/v1/jobs/{job_id}/events?after={first['last_id']}")).json()
    assert ([event["type"] for event in rest["data"]], rest["has_more"]) == (["job.cancelling"], False)
