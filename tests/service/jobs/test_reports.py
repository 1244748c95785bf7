"""What workers report is stored exactly once, in order, and only while their attempt lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from service.access import attempt_tokens
from service.db.session import Database
from service.jobs import repository
from service.jobs.outcomes import AttemptEnd, PhaseOutcome
from service.jobs.state_machine import begin_next_attempt, transition
from service.teachers import service as teachers
from tests.support.coverage_reports import coverage
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.reporting import (
    STOPPED,
    AnyReport,
    AttemptBrief,
    CheckpointDeleted,
    CheckpointSaved,
    DatasetPrepared,
    Failed,
    Finished,
    Metrics,
    Note,
    Progress,
    Report,
    ReportBatch,
    TeacherAttested,
)
from tide_core.contracts.states import JobState, Phase

PostJob = Callable[..., Awaitable[dict[str, Any]]]


@dataclass
class Worker:
    """A worker of one attempt, speaking HTTP as the real one does."""

    client: httpx.AsyncClient
    database: Database
    job_id: str
    token: str

    async def send(self, *bodies: AnyReport, first: int) -> httpx.Response:
        reports = tuple(
            Report(sequence=first + number, time=datetime.now(UTC), body=body)
            for number, body in enumerate(bodies)
        )
        return await self.post(ReportBatch(reports=reports))

    async def post(self, batch: ReportBatch) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return await self.client.post(
            "/internal/v1/reports", content=batch.model_dump_json(), headers=headers
        )

    async def brief(self) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return await self.client.get("/internal/v1/attempt", headers=headers)

    async def get(self, part: str = "") -> Any:
        return (await self.client.get(f"/v1/jobs/{self.job_id}{part}")).json()

    async def move(self, *states: JobState) -> None:
        for state in states:
            async with self.database.write() as session:
                job = await repository.lock(session, self.job_id)
                await transition(session, job, state, f"now {state}")


@pytest.fixture
async def worker(client: httpx.AsyncClient, post_job: PostJob, database: Database) -> Worker:
    """The trainer of a running job."""
    job_id = (await post_job())["id"]
    async with database.write() as session:
        token = attempt_tokens.issue(session, job_id, 1, Phase.TRAIN)
    made = Worker(client, database, job_id, token)
    await made.move(JobState.PREPARING, JobState.PROVISIONING, JobState.RUNNING)
    return made


def _steps(*steps: int) -> list[Metrics]:
    return [Metrics(step=step, values={"loss": 10.0 / step}) for step in steps]


async def test_the_brief_says_what_to_do(worker: Worker, database: Database) -> None:
    async with database.write() as session:
        job = await repository.lock(session, worker.job_id)
        lease = await teachers.acquire_lease(session, job.id, ResolvedJobSpec.model_validate(job.spec))
    await worker.send(
        DatasetPrepared(
            location="/prepared/x",
            content_hash="x",
            rows=3,
            held_out_rows=1,
            rejected={},
            coverage=coverage(),
        ),
        first=1,
    )
    answer = await worker.brief()
    assert answer.status_code == 200
    brief = AttemptBrief.model_validate(answer.json())
    assert (brief.job_id, brief.attempt, brief.phase) == (worker.job_id, 1, Phase.TRAIN)
    # At its default the deadline is left out: workers of the version before do not know it.
    assert "score_deadline_seconds" not in answer.json()
    impatient = brief.model_copy(update={"score_deadline_seconds": 5.0})
    assert AttemptBrief.model_validate_json(impatient.model_dump_json()) == impatient
    assert brief.prepared == "/prepared/x"
    assert brief.teacher is not None
    assert (brief.teacher.application, brief.teacher.fingerprint) == (lease.application, None)
    assert brief.last_sequence == 1
    assert brief.spec.variant == "tide_cross"


async def test_a_token_is_needed_and_its_hash_alone_is_kept(worker: Worker, database: Database) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {worker.token}"}):
        answer = await worker.client.get("/internal/v1/attempt", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    async with database.engine.connect() as connection:
        rows = (await connection.exec_driver_sql("SELECT * FROM attempt_tokens")).all()
    assert len(rows) == 1
    assert worker.token not in str(rows)


async def test_reports_sent_again_are_stored_once(worker: Worker) -> None:
    for _ in range(3):
        answer = await worker.send(*_steps(1, 2), Note(code="hello", message="once"), first=1)
        assert answer.json() == {"acknowledged": 3, "stop_requested": False}
    overlapping = await worker.send(Note(code="hello", message="once"), *_steps(3), first=3)
    assert overlapping.json()["acknowledged"] == 4
    (loss,) = (await worker.get("/metrics"))["data"]
    assert (loss["steps"], loss["values"]) == ([1, 2, 3], [10.0, 5.0, 10.0 / 3])
    events = (await worker.get("/events"))["data"]
    assert [event["type"] for event in events].count("hello") == 1


async def test_reports_sent_at_once_are_stored_once(worker: Worker) -> None:
    """A worker that timed out sends again while its first request still runs."""
    notes = [Note(code=f"note-{number}", message="x") for number in range(1, 11)]
    answers = await asyncio.gather(*(worker.send(*notes[:size], first=1) for size in [10, 3, 7, 10, 1] * 4))
    assert {answer.status_code for answer in answers} == {200}
    events = (await worker.get("/events"))["data"]
    noted = [event["type"] for event in events if event["type"].startswith("note-")]
    assert noted == [f"note-{number}" for number in range(1, 11)]


async def test_a_number_that_was_given_up_does_not_hold_up_the_rest(worker: Worker) -> None:
    await worker.send(*_steps(1), first=1)
    assert (await worker.send(*_steps(3), first=3)).json()["acknowledged"] == 3
    assert (await worker.send(*_steps(2), first=2)).json()["acknowledged"] == 3
    (loss,) = (await worker.get("/metrics"))["data"]
    assert loss["steps"] == [1, 3]


async def test_progress_is_the_latest_one(worker: Worker) -> None:
    early = Progress(phase=Phase.TRAIN, stage="training", completed=1, total=10, eta_seconds=9)
    late = Progress(phase=Phase.TRAIN, stage="training", completed=4, total=10, eta_seconds=float("inf"))
    await worker.send(early, late, first=1)
    progress = (await worker.get())["progress"]
    assert (progress["completed"], progress["total"], progress["eta_seconds"]) == (4, 10, None)
    assert progress["updated_at"]


async def test_figures_that_are_not_finite_are_left_out_and_told(worker: Worker) -> None:
    body = Metrics(step=7, values={"loss": float("nan"), "norm": float("inf"), "rate": 0.5})
    assert (await worker.send(body, first=1)).status_code == 200
    (only,) = (await worker.get("/metrics"))["data"]
    assert only["name"] == "rate"
    told = (await worker.get("/events"))["data"][-1]
    assert (told["type"], told["level"], told["data"]["names"]) == (
        "metrics.non_finite",
        "warning",
        ["loss", "norm"],
    )


async def test_a_step_that_is_trained_again_replaces_its_figure(worker: Worker, database: Database) -> None:
    await worker.send(*_steps(1, 2, 3), first=1)
    async with database.write() as session:
        job = await repository.lock(session, worker.job_id)
        await begin_next_attempt(session, job, AttemptEnd.PLATFORM_LOSS, "lost")
        worker.token = attempt_tokens.issue(session, worker.job_id, 2, Phase.TRAIN)
    again = Metrics(step=3, values={"loss": 99.0})
    await worker.send(again, again, first=1)
    (loss,) = (await worker.get("/metrics"))["data"]
    assert (loss["steps"], loss["values"]) == ([1, 2, 3], [10.0, 5.0, 99.0])


async def test_checkpoints_come_and_go(worker: Worker) -> None:
    await worker.send(
        CheckpointSaved(step=10, location="/c/10", bytes=5),
        CheckpointSaved(step=20, location="/c/20", bytes=6),
        CheckpointDeleted(step=10, location="/c/10"),
        CheckpointSaved(step=20, location="/m", bytes=4, is_export=True),
        first=1,
    )
    found = (await worker.get("/checkpoints"))["data"]
    assert {(entry["location"], entry["is_export"]) for entry in found} == {("/c/20", False), ("/m", True)}
    job = await worker.get()
    assert (job["model"]["location"], job["model"]["step"], job["model"]["bytes"]) == ("/m", 20, 4)
    models = (await worker.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == [job["model"]["id"]]
    types = [event["type"] for event in (await worker.get("/events"))["data"]][-4:]
    assert types == ["checkpoint.saved", "checkpoint.saved", "checkpoint.deleted", "model.exported"]


async def test_a_prepared_data_set_is_shared_by_jobs(
    worker: Worker, post_job: PostJob, database: Database
) -> None:
    report = DatasetPrepared(
        location="/p/h",
        content_hash="h",
        rows=8,
        held_out_rows=2,
        rejected={"too_long": 3},
        coverage=coverage(),
    )
    await worker.send(report, first=1)
    second_id = (await post_job())["id"]
    async with database.write() as session:
        token = attempt_tokens.issue(session, second_id, 1, Phase.PREPARE)
    second = Worker(worker.client, database, second_id, token)
    await second.send(report.model_copy(update={"reused": True}), first=1)
    (dataset,) = (await worker.client.get("/v1/datasets")).json()["data"]
    assert (dataset["content_hash"], dataset["rows"], dataset["rejected"]) == ("h", 8, {"too_long": 3})
    assert dataset["coverage"]["share"] == 0.9
    assert dataset["coverage"]["student_lengths"] == {"1": 20, "2": 10}
    assert dataset["coverage"]["student_straddling"] == 2
    (event,) = [e for e in (await worker.get("/events"))["data"] if e["type"] == "data.prepared"]
    assert "90.0% of the answers' bytes" in event["message"]
    assert event["data"]["coverage"] == dataset["coverage"]
    for owner in (worker, second):
        assert (await owner.get())["dataset"] == "h"


@pytest.mark.parametrize("is_older", [False, True], ids=["this_version", "the_version_before"])
async def test_the_teacher_that_was_attested_first_is_the_jobs_teacher(
    worker: Worker, database: Database, is_older: bool
) -> None:
    async with database.write() as session:
        job = await repository.lock(session, worker.job_id)
        await teachers.acquire_lease(session, job.id, ResolvedJobSpec.model_validate(job.spec))
    older = Note(code="teacher.attested", message="weights-a")
    await worker.send(older if is_older else TeacherAttested(fingerprint="weights-a"), first=1)
    await worker.send(TeacherAttested(fingerprint="weights-b"), first=2)
    assert (await worker.get())["teacher_fingerprint"] == "weights-a"
    (teacher,) = (await worker.client.get("/v1/teachers")).json()["data"]
    assert teacher["fingerprint"] == "weights-b"
    assert teacher["leases"][0]["job_id"] == worker.job_id
    assert (await worker.brief()).json()["teacher"]["fingerprint"] == "weights-a"
    told = [event for event in (await worker.get("/events"))["data"] if event["type"] == "teacher.attested"]
    assert {event["message"] for event in told} == {"weights-a", "weights-b"}


@pytest.mark.parametrize(
    ("body", "outcome", "event"),
    [
        (Finished(result={"steps": 3}), PhaseOutcome.FINISHED, "train.finished"),
        (Finished(result={STOPPED: True}), PhaseOutcome.STOPPED, "train.stopped"),
        (Failed(code="loss_nan", message="NaN", retryable=False), PhaseOutcome.FAILED, "train.failed"),
    ],
)
async def test_a_phase_ends_once(
    worker: Worker, database: Database, body: AnyReport, outcome: PhaseOutcome, event: str
) -> None:
    answer = await worker.send(body, Note(code="too", message="late"), first=1)
    assert answer.json()["acknowledged"] == 1
    assert (await worker.send(body, first=1)).json()["acknowledged"] == 1, "a repetition is acknowledged"
    late = await worker.send(Note(code="too", message="late"), first=2)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "phase_ended")
    async with database.read() as session:
        run = await repository.phase_run(session, worker.job_id, 1, Phase.TRAIN)
    assert run is not None
    assert (run.outcome, run.last_sequence) == (outcome, 1)
    assert (await worker.get("/events"))["data"][-1]["type"] == event


async def test_the_report_of_the_evaluation_is_the_jobs_result(worker: Worker, database: Database) -> None:
    await worker.move(JobState.EVALUATING)
    async with database.write() as session:
        worker.token = attempt_tokens.issue(session, worker.job_id, 1, Phase.EVALUATE)
    await worker.send(Finished(result={"nelbo": 1.5, "broken": float("nan"), "text": "a\0b"}), first=1)
    assert (await worker.get())["result"] == {"nelbo": 1.5, "broken": None, "text": "a�b"}


async def test_an_attempt_that_was_given_up_is_fenced_off(worker: Worker, database: Database) -> None:
    await worker.send(*_steps(1), first=1)
    async with database.write() as session:
        job = await repository.lock(session, worker.job_id)
        await begin_next_attempt(session, job, AttemptEnd.PLATFORM_LOSS, "the node seemed dead")
    for answer in (
        await worker.send(*_steps(2), first=2),
        await worker.post(ReportBatch(reports=())),
        await worker.brief(),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "attempt_ended")
    assert (await worker.send(*_steps(1), first=1)).status_code == 200, "a repetition is acknowledged"
    (loss,) = (await worker.get("/metrics"))["data"]
    assert loss["steps"] == [1]


async def test_a_token_issued_too_late_is_refused(worker: Worker, database: Database) -> None:
    """A reconciler that lost its lead may still issue a token for the attempt that it knew."""
    async with database.write() as session:
        job = await repository.lock(session, worker.job_id)
        await begin_next_attempt(session, job, AttemptEnd.PLATFORM_LOSS, "the node seemed dead")
        worker.token = attempt_tokens.issue(session, worker.job_id, 1, Phase.TRAIN)
    for answer in (await worker.send(*_steps(1), first=1), await worker.brief()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "attempt_ended")


async def test_a_finished_job_takes_no_reports(worker: Worker) -> None:
    await worker.move(JobState.SUCCEEDED)
    answer = await worker.send(*_steps(1), first=1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "attempt_ended")


async def test_a_sign_of_life_learns_that_it_is_to_stop(worker: Worker) -> None:
    nothing = ReportBatch(reports=())
    assert (await worker.post(nothing)).json() == {"acknowledged": 0, "stop_requested": False}
    await worker.client.post(f"/v1/jobs/{worker.job_id}/pause")
    assert (await worker.post(nothing)).json() == {"acknowledged": 0, "stop_requested": True}


async def test_series_are_chosen_continued_and_thinned(worker: Worker) -> None:
    bodies = [Metrics(step=step, values={"loss": float(step % 7), "other": 1.0}) for step in range(1, 201)]
    bodies[100] = Metrics(step=101, values={"loss": 1000.0, "other": 1.0})
    await worker.send(*bodies, first=1)
    (loss,) = (await worker.get("/metrics?name=loss&max_points=20"))["data"]
    assert loss["count"] == 200
    assert len(loss["steps"]) <= 20
    assert loss["steps"] == sorted(loss["steps"])
    assert (loss["steps"][0], loss["steps"][-1]) == (1, 200)
    assert 1000.0 in loss["values"], "a spike is not lost"
    newer = (await worker.get("/metrics?after_step=198"))["data"]
    assert [(series["name"], series["steps"]) for series in newer] == [
        ("loss", [199, 200]),
        ("other", [199, 200]),
    ]
