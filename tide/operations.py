"""The operations of the REST interface, one function each, as `docs/openapi.json` describes them.

In: typed arguments. Out: a `Call`, which either kind of client sends. A test holds this module to the
document: each operation and each of its query parameters is here, and nothing else.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from tide.transport.call import Call, Query, encode_json, read_as, read_text
from tide_core.contracts.event import Event
from tide_core.contracts.job import JobSpec
from tide_core.contracts.plan import Plan, PlanRequest
from tide_core.contracts.resources import (
    CheckName,
    Checkpoint,
    Dataset,
    Health,
    Job,
    MetricSeriesList,
    Model,
    Page,
    Readiness,
    Teacher,
)
from tide_core.contracts.states import JobState, Phase

After = str | int | None
Resource = TypeVar("Resource", bound=BaseModel)
PAGE_SIZE = 100


def create_job(spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Call[Job]:
    """Post a job. Without a key of the caller's it gets one of its own, so that it may be sent again."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/jobs", read_as(Job), headers=headers, content=encode_json(spec))


def get_job(job_id: str) -> Call[Job]:
    """One job."""
    return Call("GET", "/v1/jobs/{job_id}", read_as(Job), {"job_id": job_id})


def list_jobs(
    after: After, *, limit: int = PAGE_SIZE, status: Sequence[JobState | str] = ()
) -> Call[Page[Job]]:
    """A page of jobs, newest first."""
    states = tuple(JobState(state).value for state in status)
    return Call(
        "GET", "/v1/jobs", read_as(Page[Job]), query={"after": after, "limit": limit, "status": states}
    )


def cancel_job(job_id: str) -> Call[Job]:
    """End a job for good."""
    return _steer(job_id, "cancel")


def pause_job(job_id: str) -> Call[Job]:
    """Save a running job and give its resources back."""
    return _steer(job_id, "pause")


def resume_job(job_id: str) -> Call[Job]:
    """Let a paused job go on."""
    return _steer(job_id, "resume")


def plan_job(request: PlanRequest | Mapping[str, Any]) -> Call[Plan]:
    """Ask what a job would take; nothing is stored."""
    content = encode_json(request)
    return Call("POST", "/v1/jobs/plan", read_as(Plan), content=content, is_repeatable=False)


def list_metrics(
    job_id: str, names: Sequence[str] = (), *, after_step: int = -1, max_points: int = 1000
) -> Call[MetricSeriesList]:
    """The figures of a job by name and step."""
    query: Query = {"name": tuple(names), "after_step": after_step, "max_points": max_points}
    return Call(
        "GET", "/v1/jobs/{job_id}/metrics", read_as(MetricSeriesList), {"job_id": job_id}, query=query
    )


def list_checkpoints(job_id: str) -> Call[Page[Checkpoint]]:
    """The checkpoints of a job, newest step first."""
    return Call("GET", "/v1/jobs/{job_id}/checkpoints", read_as(Page[Checkpoint]), {"job_id": job_id})


def read_logs(
    job_id: str, *, phase: Phase | str | None = None, attempt: int | None = None, tail: int = 1000
) -> Call[str]:
    """What the processes of a job printed."""
    query: Query = {"phase": None if phase is None else str(phase), "attempt": attempt, "tail": tail}
    return Call("GET", "/v1/jobs/{job_id}/logs", read_text, {"job_id": job_id}, query=query)


def list_events(job_id: str, after: After, *, limit: int = PAGE_SIZE) -> Call[Page[Event]]:
    """A page of a job's events, oldest first."""
    query: Query = {"after": after, "limit": limit}
    return Call("GET", "/v1/jobs/{job_id}/events", read_as(Page[Event]), {"job_id": job_id}, query=query)


def stream_events(job_id: str, last_event_id: int | None, *, after: int = 0) -> Call[httpx.Response]:
    """Open the live stream of a job's events after the last one that is known."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return Call(
        "GET",
        "/v1/jobs/{job_id}/events/stream",
        lambda response: response,
        {"job_id": job_id},
        query={"after": after or None},
        headers=headers,
    )


def list_teachers() -> Call[Page[Teacher]]:
    """All teacher pools, oldest first."""
    return Call("GET", "/v1/teachers", read_as(Page[Teacher]))


def get_teacher(teacher_id: str) -> Call[Teacher]:
    """One teacher pool."""
    return Call("GET", "/v1/teachers/{teacher_id}", read_as(Teacher), {"teacher_id": teacher_id})


def list_datasets(after: After, *, limit: int = PAGE_SIZE) -> Call[Page[Dataset]]:
    """A page of prepared data sets, newest first."""
    return Call("GET", "/v1/datasets", read_as(Page[Dataset]), query={"after": after, "limit": limit})


def get_dataset(content_hash: str) -> Call[Dataset]:
    """One prepared data set."""
    return Call("GET", "/v1/datasets/{content_hash}", read_as(Dataset), {"content_hash": content_hash})


def list_models(after: After, *, limit: int = PAGE_SIZE) -> Call[Page[Model]]:
    """A page of exported models, newest first."""
    return Call("GET", "/v1/models", read_as(Page[Model]), query={"after": after, "limit": limit})


def get_model(model_id: str) -> Call[Model]:
    """One exported model."""
    return Call("GET", "/v1/models/{model_id}", read_as(Model), {"model_id": model_id})


def get_health() -> Call[Health]:
    """Whether the server's process answers."""
    return Call("GET", "/healthz", read_as(Health))


def get_readiness(checks: Sequence[CheckName] = ()) -> Call[Readiness]:
    """Whether jobs can be taken and run. That they cannot is an answer too, with status 503."""
    return Call(
        "GET", "/readyz", read_as(Readiness), query={"check": tuple(checks)}, accepted=frozenset({503})
    )


def _steer(job_id: str, verb: str) -> Call[Job]:
    path = f"/v1/jobs/{{job_id}}/{verb}"
    return Call("POST", path, read_as(Job), {"job_id": job_id}, is_repeatable=False)
