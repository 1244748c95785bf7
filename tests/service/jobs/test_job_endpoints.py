"""REST of jobs, as a client meets it: posting, paging, idempotency, cancelling, pausing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select

from service.db.session import Database
from service.jobs import repository
from service.jobs.state_machine import transition
from service.jobs.tables import AttemptRow, IdempotencyKeyRow, JobRow
from tide_core.contracts.job import JobSpec
from tide_core.contracts.states import JobState

PostJob = Callable[..., Awaitable[dict[str, Any]]]


async def _walk(database: Database, job_id: str, *states: JobState) -> None:
    for state in states:
        async with database.write() as session:
            job = await repository.lock(session, job_id)
            code = "broken" if state is JobState.FAILED else None
            await transition(session, job, state, f"now {state}", error_code=code)


TO_RUNNING = (JobState.PREPARING, JobState.PROVISIONING, JobState.RUNNING)


async def test_a_posted_job_is_stored_resolved_and_found(
    client: httpx.AsyncClient, job_body: dict[str, Any]
) -> None:
    answer = await client.post("/v1/jobs", json=job_body)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["status"], job["attempt"]) == ("job", "queued", 1)
    assert (job["pipeline"], job["variant"]) == ("cross_tokenizer", "tide_cross")
    assert [term["type"] for term in job["spec"]["objective"]] == ["cross_entropy", "reverse_calm"]
    assert job["spec"]["data"]["teacher_length"] == 1024
    assert job["spec"]["teacher"]["architecture"] == "llada2_moe"
    assert job["error"] is job["progress"] is job["result"] is job["model"] is None
    assert job["created_at"].endswith("Z")
    for path in (f"/v1/jobs/{job['id']}", f"/jobs/{job['id']}"):
        assert (await client.get(path)).json() == job
    events = (await client.get(f"/v1/jobs/{job['id']}/events")).json()["data"]
    assert [(event["type"], event["job_id"]) for event in events] == [("job.queued", job["id"])]


async def test_the_spec_of_a_job_can_be_posted_again(client: httpx.AsyncClient, post_job: PostJob) -> None:
    first = await post_job()
    again = await client.post("/v1/jobs", json=first["spec"])
    assert again.status_code == 201
    assert again.json()["spec"] == first["spec"]
    JobSpec.model_validate(first["spec"])


async def test_jobs_are_paged_newest_first(client: httpx.AsyncClient, post_job: PostJob) -> None:
    newest_first = [(await post_job())["id"] for _ in range(5)][::-1]
    found: list[str] = []
    after: dict[str, str] = {}
    for expected_more in (True, True, False):
        page = (await client.get("/v1/jobs", params={"limit": 2, **after})).json()
        assert page["object"] == "list"
        assert page["has_more"] is expected_more
        ids = [job["id"] for job in page["data"]]
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        found += ids
        after = {"after": page["last_id"]}
    assert found == newest_first
    empty = (await client.get("/v1/jobs", params=after)).json()
    assert (empty["data"], empty["has_more"], empty["last_id"]) == ([], False, None)
    whole = (await client.get("/v1/jobs?limit=5")).json()
    assert (len(whole["data"]), whole["has_more"]) == (5, False), "a page that is just full is the last one"
    assert (await client.get("/v1/jobs?after=job-none")).json()["error"]["code"] == "job_not_found"
    for limit in (0, 101):
        assert (await client.get(f"/v1/jobs?limit={limit}")).status_code == 422


async def test_jobs_are_chosen_by_state(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    waiting, running = (await post_job())["id"], (await post_job())["id"]
    await _walk(database, running, *TO_RUNNING)
    chosen = (await client.get("/v1/jobs?status=running&status=paused")).json()["data"]
    assert [job["id"] for job in chosen] == [running]
    assert waiting in [job["id"] for job in (await client.get("/v1/jobs?status=queued")).json()["data"]]


async def test_one_key_makes_one_job(
    client: httpx.AsyncClient, job_body: dict[str, Any], database: Database
) -> None:
    headers = {"Idempotency-Key": "one"}
    first = await client.post("/v1/jobs", json=job_body, headers=headers)
    again = await client.post("/v1/jobs", json=job_body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    other = await client.post("/v1/jobs", json=job_body | {"seed": 7}, headers=headers)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert other.json()["error"]["param"] == "Idempotency-Key"
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(JobRow)) == 1


async def test_posts_with_one_key_at_once_make_one_job(
    client: httpx.AsyncClient, job_body: dict[str, Any], database: Database
) -> None:
    answers = await asyncio.gather(
        *(client.post("/v1/jobs", json=job_body, headers={"Idempotency-Key": "k"}) for _ in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    async with database.read() as session:
        for table in (JobRow, AttemptRow, IdempotencyKeyRow):
            assert await session.scalar(select(func.count()).select_from(table)) == 1


async def test_a_repeated_post_gives_its_job_even_when_the_data_is_gone(
    client: httpx.AsyncClient, job_body: dict[str, Any], tmp_path: Any
) -> None:
    first = await client.post("/v1/jobs", json=job_body, headers={"Idempotency-Key": "k"})
    (tmp_path / "rows.jsonl").unlink()
    again = await client.post("/v1/jobs", json=job_body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


async def test_a_refused_job_leaves_nothing_behind(
    client: httpx.AsyncClient, job_body: dict[str, Any], database: Database
) -> None:
    body = job_body | {"teacher": {"model": "/nowhere"}}
    answer = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 422
    async with database.read() as session:
        for table in (JobRow, AttemptRow, IdempotencyKeyRow):
            assert await session.scalar(select(func.count()).select_from(table)) == 0
    assert (await client.post("/v1/jobs", json=job_body, headers={"Idempotency-Key": "k"})).status_code == 201


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"teachr": 1}, "teachr", "unknown_field"),
        ({"seed": "many"}, "seed", "invalid_value"),
        ({"objective": [{"type": "calm", "weihgt": 2}]}, "objective.0.weihgt", "unknown_field"),
        ({"objective": [{"type": "magic"}]}, "objective.0", "invalid_value"),
        ({"objective": "magic"}, "objective", "invalid_value"),
        ({"teacher": {"model": "x", "architecture": "gpt7"}}, "teacher.architecture", "invalid_value"),
        ({"data": {"student_length": 8}}, "data.sources", "missing_field"),
        ({"student": {"block_size": 4}}, "student", "invalid_value"),
        ({"hyperparameters": {"learning_rate": -1}}, "hyperparameters.learning_rate", "invalid_value"),
        ({"metadata": {"a": "x\0y"}}, "metadata.a", "invalid_value"),
    ],
)
async def test_a_malformed_body_is_refused_with_the_field_that_is_wrong(
    client: httpx.AsyncClient, job_body: dict[str, Any], changes: dict[str, Any], param: str, code: str
) -> None:
    answer = await client.post("/v1/jobs", json=job_body | changes)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"sources": []}}, "data.sources: the list should have at least 1 entry, not 0"),
        ({"teacher": None}, "teacher: input should be an object with named fields"),
        ({"data": {"sources": "rows.jsonl"}}, "data.sources: input should be a list"),
        ({"student": {"config": []}}, "student.config: input should be an object with named fields"),
    ],
)
async def test_a_refusal_speaks_of_lists_and_objects_not_of_types_of_python(
    client: httpx.AsyncClient, job_body: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    answer = await client.post("/v1/jobs", json=job_body | changes)
    assert answer.json()["error"]["message"] == message


async def test_bad_json_and_a_missing_body_are_refused_in_the_envelope(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    broken = await client.post("/v1/jobs", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["error"]["code"]) == (422, "invalid_json")
    nothing = await client.post("/v1/jobs")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (422, "missing_field")
    infinite = await client.post(
        "/v1/jobs", content=b'{"hyperparameters": {"learning_rate": Infinity}}', headers=headers
    )
    assert infinite.status_code == 422


async def test_cancelling(client: httpx.AsyncClient, post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    for _ in range(2):
        answer = await client.post(f"/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    await _walk(database, job_id, JobState.CANCELLED)
    late = await client.post(f"/v1/jobs/{job_id}/cancel")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "job_finished")
    types = [event["type"] for event in (await client.get(f"/jobs/{job_id}/events")).json()["data"]]
    assert types == ["job.queued", "job.cancelling", "job.cancelled"]


async def test_pausing_and_resuming(client: httpx.AsyncClient, post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    early = await client.post(f"/v1/jobs/{job_id}/pause")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "transition_not_allowed")
    await _walk(database, job_id, *TO_RUNNING)
    assert (await client.post(f"/v1/jobs/{job_id}/resume")).status_code == 409
    for _ in range(2):
        assert (await client.post(f"/v1/jobs/{job_id}/pause")).json()["status"] == "pausing"
    await _walk(database, job_id, JobState.PAUSED)
    resumed = (await client.post(f"/v1/jobs/{job_id}/resume")).json()
    assert (resumed["status"], resumed["attempt"]) == ("provisioning", 2)


async def test_a_failure_is_shown(client: httpx.AsyncClient, post_job: PostJob, database: Database) -> None:
    job_id = (await post_job())["id"]
    await _walk(database, job_id, JobState.FAILED)
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (job["status"], job["error"]) == ("failed", {"code": "broken", "message": "now failed"})
    assert job["finished_at"] is not None


async def test_what_is_not_there_is_said_so(client: httpx.AsyncClient) -> None:
    paths = ["jobs/job-none", "teachers/none", "datasets/none", "models/none"]
    paths += [
        f"jobs/job-none/{part}" for part in ("events", "events/stream", "metrics", "checkpoints", "logs")
    ]
    for path in paths:
        answer = await client.get(f"/v1/{path}")
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"].endswith("_not_found")
    assert (await client.get("/v1/nothing")).json()["error"]["code"] == "no_such_route"
    assert (await client.put("/v1/jobs")).json()["error"]["code"] == "method_not_allowed"
    assert (await client.get("/v1/jobs/%00")).status_code == 422


async def test_every_answer_carries_a_request_id(client: httpx.AsyncClient) -> None:
    given = await client.get("/v1/jobs", headers={"X-Request-Id": "mine-1"})
    assert given.headers["X-Request-Id"] == "mine-1"
    made = [(await client.get("/v1/jobs/job-none")).headers["X-Request-Id"] for _ in range(2)]
    assert made[0] != made[1]
    unfit = await client.get("/v1/jobs", headers={"X-Request-Id": "a b\tc"})
    assert unfit.headers["X-Request-Id"].startswith("req-")


async def test_an_unexpected_failure_tells_nothing_of_the_insides(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("service.jobs.endpoints.repository.get", explode)
    answer = await client.get("/v1/jobs/job-1")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["X-Request-Id"]


async def test_logs_need_a_phase_that_began_and_a_cluster(
    client: httpx.AsyncClient, post_job: PostJob, database: Database
) -> None:
    job_id = (await post_job())["id"]
    assert (await client.get(f"/v1/jobs/{job_id}/logs")).json()["error"]["code"] == "log_not_found"
