"""The live stream of a job: what is read, where it goes on, when it gives up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

import tide
from tide.operations import stream_events
from tide.transport.feed import OUTAGE_SECONDS, JobFeed

PROGRESS = {
    "phase": "train",
    "stage": "training",
    "completed": 3.0,
    "total": 10.0,
    "updated_at": "2026-01-01T00:00:00Z",
}
DONE = 'event: done\ndata: {"status": "succeeded"}\n\n'


def event(number: int) -> str:
    facts = tide.Event(
        id=number, job_id="job-1", created_at=datetime(2026, 1, 1, tzinfo=UTC), type="x.y", message="m"
    )
    return f"id: {number}\ndata: {facts.model_dump_json()}\n\n"


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends with a broken connection."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("gone")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("gone")


class Streams:
    """Gives one answer a connection, and notes where each began."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.starts: list[tuple[str | None, str | None]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.starts.append((request.headers.get("Last-Event-ID"), request.url.params.get("after")))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def watch(streams: Streams, **options: Any) -> list[Any]:
    with tide.Client("http://tide", transport=httpx.MockTransport(streams)) as client:
        return list(client.jobs.watch("job-1", **options))


def watch_async(streams: Streams, **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        async with tide.AsyncClient("http://tide", transport=httpx.MockTransport(streams)) as client:
            return [message async for message in client.jobs.watch("job-1", **options)]

    return asyncio.run(run())


Watch = Callable[..., list[Any]]


@pytest.fixture(params=[watch, watch_async], ids=["sync", "async"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watch:
    async def keep(_seconds: float) -> None:
        """No time passes."""

    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr("asyncio.sleep", keep)
    chosen: Watch = request.param
    return chosen


def test_events_and_progress_come_typed_and_the_end_ends_it(watched: Watch) -> None:
    text = ": ping\n\n" + event(7) + f"event: progress\ndata: {json.dumps(PROGRESS)}\n\n" + DONE
    first, second = watched(Streams(httpx.Response(200, text=text)))
    assert isinstance(first, tide.Event)
    assert first.id == 7
    assert isinstance(second, tide.JobProgress)
    assert (second.phase, second.completed) == (tide.Phase.TRAIN, 3.0)


def test_a_broken_connection_goes_on_after_the_last_event(watched: Watch) -> None:
    streams = Streams(
        httpx.Response(200, stream=Broken(event(7) + "id: 8\ndata: {half")),
        httpx.ConnectError("refused"),
        httpx.Response(503, text="<html>"),
        httpx.Response(200, text=event(8)),  # ends by itself, without `done`
        httpx.Response(200, text=DONE),
    )
    assert [message.id for message in watched(streams, after=6)] == [7, 8]
    assert [start[0] for start in streams.starts] == [None, "7", "7", "7", "8"]
    assert streams.starts[0][1] == "6"


def test_messages_and_fields_of_a_newer_server_are_ignored(watched: Watch) -> None:
    newer = json.loads(event(7).split("data: ")[1]) | {"novelty": 1}
    text = f'event: novelty\ndata: {{"a": 1}}\n\nid: 7\ndata: {json.dumps(newer)}\n\n' + DONE
    assert [message.id for message in watched(Streams(httpx.Response(200, text=text)))] == [7]


def test_a_message_that_cannot_be_read_is_an_error(watched: Watch) -> None:
    with pytest.raises(tide.UnexpectedAnswerError):
        watched(Streams(httpx.Response(200, text='id: 7\ndata: {"id": 7}\n\n')))


def test_a_token_that_ends_meanwhile_is_an_error(watched: Watch) -> None:
    error = {"message": "Revoked.", "type": "authentication_error", "param": None, "code": "unauthorized"}
    streams = Streams(httpx.Response(200, text=event(7)), httpx.Response(401, json={"error": error}))
    with pytest.raises(tide.AuthenticationError, match="Revoked"):
        watched(streams)


def test_an_outage_has_an_end() -> None:
    now = [0.0]
    feed = JobFeed(lambda last: stream_events("job-1", last), clock=lambda: now[0])
    away = tide.UnreachableError("away")

    def fail_until_it_gives_up() -> None:
        while True:
            now[0] += feed.pause_after(away)

    with pytest.raises(tide.UnreachableError):
        fail_until_it_gives_up()
    assert OUTAGE_SECONDS < now[0] < OUTAGE_SECONDS + 10
    feed.read("")  # a heartbeat: the server is back
    assert feed.pause_after(away) > 0
