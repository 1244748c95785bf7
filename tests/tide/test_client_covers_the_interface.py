"""The clients and the OpenAPI document say the same: every operation, every parameter, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tide
from tests.support.job_objects import SPEC, job_object
from tide.async_client import AsyncJobHandle
from tide.client import JobHandle

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
EXCEPTIONS = {("GET", "/metrics"): "Prometheus reads it, in its own text format."}
"""Operations that no client method covers, each with its reason."""
HEADERS_OF_THE_TRANSPORT = {("GET", "/v1/jobs/{job_id}/events/stream"): {"last-event-id"}}
"""Sent when a connection broke, which does not happen here; `test_feed` looks at it."""
ARGUMENTS: dict[str, Any] = {
    "spec": SPEC,
    "idempotency_key": "key",
    "job_id": "job-1",
    "teacher_id": "teacher-1",
    "content_hash": "abc",
    "model_id": "model-1",
    "status": ["running", "queued"],
    "page_size": 7,
    "request": {"spec": SPEC},
    "names": ("loss",),
    "after_step": 3,
    "max_points": 10,
    "phase": "train",
    "attempt": 2,
    "tail": 5,
    "timeout": 1.0,
    "checks": ("database",),
}
Operation = tuple[str, str]
Sent = dict[Operation, tuple[set[str], set[str]]]
"""Operation -> names of the query parameters and of the headers that were sent."""


def documented() -> Sent:
    found: Sent = {}
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            found[(method.upper(), path)] = (
                {each["name"] for each in parameters if each["in"] == "query"},
                {each["name"].lower() for each in parameters if each["in"] == "header"},
            )
    return found


def operation_of(request: httpx.Request) -> Operation:
    """The documented operation that a request is; a path without names wins."""
    for path in sorted(DOCUMENT["paths"], key=lambda path: path.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path):
            return request.method, path
    raise AssertionError(f"{request.method} {request.url.path} is not in docs/openapi.json")


class Recorder:
    """Answers every request with 404, and notes what it was."""

    def __init__(self) -> None:
        self.sent: Sent = {}
        ordinary = httpx.Client().build_request("POST", "http://tide", json={}).headers
        self._ordinary = {name.lower() for name in ordinary} | {"authorization"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        queries, headers = self.sent.setdefault(operation_of(request), (set(), set()))
        queries |= set(request.url.params)
        headers |= {name.lower() for name in request.headers} - self._ordinary
        error = {"message": "No.", "type": "not_found_error", "param": None, "code": "not_found"}
        return httpx.Response(404, json={"error": error})


RESOURCES = ("jobs", "teachers", "datasets", "models")
LOCAL = {"close", "url", "with_token", "is_ended"}
"""Members that send nothing."""


def members(client: Any, handle: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public method of a client, its resources, and a job."""
    for owner in (client, *(getattr(client, name) for name in RESOURCES)):
        for name in vars(type(owner)):
            if not name.startswith("_") and name not in LOCAL:
                yield f"{type(owner).__name__}.{name}", getattr(owner, name)
    for name in vars(type(handle)):
        if not name.startswith(("_", "model_")) and name not in LOCAL:
            yield f"{type(handle).__name__}.{name}", getattr(handle, name)


def invoke(name: str, method: Callable[..., Any]) -> Any:
    positional, named = [], {}
    for parameter in inspect.signature(method).parameters.values():
        is_event_id = parameter.name == "after" and name.endswith((".watch", ".events"))
        value = 4 if is_event_id else ARGUMENTS.get(parameter.name, "after-1")
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional += list(value)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        else:
            positional.append(value)
    return method(*positional, **named)


def send_all() -> Sent:
    recorder = Recorder()
    client = tide.Client("http://tide", "tide_x", transport=httpx.MockTransport(recorder))
    for name, method in members(client, client.jobs._bind(job_object())):
        with pytest.raises(tide.MissingResourceError):
            _consume(invoke(name, method))
    return recorder.sent


def _consume(answer: Any) -> None:
    """An iterator sends its first request when its first item is asked for; anything else has sent it."""
    next(answer)


async def send_all_async() -> Sent:
    recorder = Recorder()
    client = tide.AsyncClient("http://tide", "tide_x", transport=httpx.MockTransport(recorder))
    for name, method in members(client, client.jobs._bind(job_object())):
        answer = invoke(name, method)
        with pytest.raises(tide.MissingResourceError):
            await (anext(answer) if isinstance(answer, AsyncIterator) else answer)
    return recorder.sent


@pytest.mark.parametrize("send", [send_all, lambda: asyncio.run(send_all_async())], ids=["sync", "async"])
def test_every_operation_and_parameter_is_covered_and_no_other_is_sent(send: Callable[[], Sent]) -> None:
    sent, expected = send(), documented()
    assert set(sent) == set(expected) - set(EXCEPTIONS)
    for operation, (queries, headers) in sent.items():
        asked, known = expected[operation]
        assert queries == asked, operation
        assert headers | HEADERS_OF_THE_TRANSPORT.get(operation, set()) == known, operation


def test_exceptions_exist() -> None:
    assert set(EXCEPTIONS) <= set(documented())


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    pairs = [(tide.Client("http://x"), tide.AsyncClient("http://x"))]
    pairs += [(getattr(pairs[0][0], name), getattr(pairs[0][1], name)) for name in RESOURCES]
    classes = [(type(one), type(other)) for one, other in pairs] + [(JobHandle, AsyncJobHandle)]
    for blocking, awaiting in classes:
        ours = {name for name in vars(blocking) if not name.startswith(("_", "model_"))}
        assert ours == {name for name in vars(awaiting) if not name.startswith(("_", "model_"))}
        for name in ours - LOCAL:
            one, other = getattr(blocking, name), getattr(awaiting, name)
            assert _arguments(one) == _arguments(other), name
            said = (inspect.getdoc(other) or "").replace("`AsyncJobs.", "`Jobs.")
            assert inspect.getdoc(one) == said, name


def _arguments(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(method).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]
