"""REST of jobs.

In: HTTP requests about jobs, with a spec, an id or a query. Out: jobs, lists, series and plans as JSON; what
a request changes is in the database.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy.ext.asyncio import AsyncSession

from service.access.authentication import CurrentCaller
from service.api.dependencies import Context, JobId, ReadSession, WriteSession
from service.api.errors import error_responses, error_responses_beside_text
from service.api.paging import After, Limit, page_of
from service.jobs import plan_answer, repository, service
from service.jobs.logs import job_log
from service.jobs.presentation import checkpoint_object, job_object, series_objects
from service.jobs.tables import JobRow
from service.models import repository as models
from tide_core.contracts.job import JobSpec
from tide_core.contracts.plan import Plan, PlanRequest
from tide_core.contracts.resources import Checkpoint, Job, MetricSeriesList, Page
from tide_core.contracts.states import JobState, Phase

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and body give the same job, however often they are posted.",
    ),
]


@router.post(
    "/jobs",
    status_code=201,
    responses=error_responses(409, 422)
    | {200: {"model": Job, "description": "The job of an earlier post with this idempotency key."}},
)
async def create_job(
    context: Context,
    response: Response,
    afterwards: BackgroundTasks,
    spec: JobSpec,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Ask for a distillation. The spec is checked as far as the server can see before it is accepted."""
    submitted = await service.submit(
        context.database, spec, idempotency_key, posted_by=None if caller is None else caller.name
    )
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    if submitted.is_new:
        afterwards.add_task(context.wake)
        return job_object(submitted.job, None)
    response.status_code = 200
    async with context.database.read() as session:
        return await _present(session, submitted.job)


@router.post("/jobs/plan", responses=error_responses(422))
async def plan_job(request: PlanRequest) -> Plan:
    """Say what a job would take of a cluster: memory, work, the split of devices, steps and hours.

    The spec is checked as a posted job's is; nothing is stored and nothing runs.
    """
    return await plan_answer.plan(request)


@router.get("/jobs", responses=error_responses(404, 422))
async def list_jobs(
    session: ReadSession,
    after: After = None,
    limit: Limit = 20,
    status: Annotated[list[JobState] | None, Query(description="Only jobs in one of these states.")] = None,
) -> Page[Job]:
    """Jobs, newest first."""
    rows = await repository.page(session, after=after, limit=limit + 1, states=status or ())
    exported = await models.newest_by_job(session, [row.id for row in rows])
    items = [job_object(row, exported.get(row.id)) for row in rows]
    return page_of(items, [item.id for item in items], limit)


@router.get("/jobs/{job_id}", responses=error_responses(404, 422))
async def get_job(session: ReadSession, job_id: JobId) -> Job:
    """One job."""
    return await _present(session, await repository.get(session, job_id))


@router.post("/jobs/{job_id}/cancel", responses=error_responses(404, 409, 422))
async def cancel_job(
    context: Context, session: WriteSession, afterwards: BackgroundTasks, job_id: JobId
) -> Job:
    """End a job for good; its checkpoints stay."""
    afterwards.add_task(context.wake)
    return await _present(session, await service.cancel(session, job_id))


@router.post("/jobs/{job_id}/pause", responses=error_responses(404, 409, 422))
async def pause_job(
    context: Context, session: WriteSession, afterwards: BackgroundTasks, job_id: JobId
) -> Job:
    """Let a running job save and give its resources back."""
    afterwards.add_task(context.wake)
    return await _present(session, await service.pause(session, job_id))


@router.post("/jobs/{job_id}/resume", responses=error_responses(404, 409, 422))
async def resume_job(
    context: Context, session: WriteSession, afterwards: BackgroundTasks, job_id: JobId
) -> Job:
    """Let a paused job go on from its last checkpoint."""
    afterwards.add_task(context.wake)
    return await _present(session, await service.resume(session, job_id))


@router.get("/jobs/{job_id}/metrics", responses=error_responses(404, 422))
async def list_metrics(
    session: ReadSession,
    job_id: JobId,
    name: Annotated[
        list[str] | None, Query(description="Only these series; give it several times for several.")
    ] = None,
    after_step: Annotated[int, Query(ge=-1, le=2**53, description="Only figures of later steps.")] = -1,
    max_points: Annotated[
        int, Query(ge=4, le=100_000, description="Thin each series for a plot to at most so many points.")
    ] = 1000,
) -> MetricSeriesList:
    """The job's figures by name and step.

    A thinned series keeps its first and last point and the lowest and highest of each stretch between.
    """
    await repository.get(session, job_id)
    names = [entry.replace("\0", "") for entry in name or ()]
    rows = await repository.metric_series(session, job_id, names, after_step=after_step)
    return MetricSeriesList(job_id=job_id, data=series_objects(rows, max_points))


@router.get("/jobs/{job_id}/checkpoints", responses=error_responses(404, 422))
async def list_checkpoints(session: ReadSession, job_id: JobId) -> Page[Checkpoint]:
    """The checkpoints that exist, newest step first; the exported model is one of them."""
    await repository.get(session, job_id)
    items = [checkpoint_object(row) for row in await repository.checkpoints(session, job_id)]
    return page_of(items, [item.id for item in items])


@router.get(
    "/jobs/{job_id}/logs",
    response_class=PlainTextResponse,
    responses=error_responses_beside_text(404, 422, 503),
)
async def get_logs(
    context: Context,
    job_id: JobId,
    phase: Annotated[Phase | None, Query(description="Default: the latest phase that ran.")] = None,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Default: the present attempt.")
    ] = None,
    tail: Annotated[int, Query(ge=1, le=100_000, description="At most so many lines, the last ones.")] = 1000,
) -> str:
    """What the job's process printed, as the cluster kept it."""
    async with context.database.read() as session:
        job = await repository.get(session, job_id)
        runs = await repository.phase_runs(session, job_id, attempt or job.attempt)
    return await job_log(context.log_source, runs, phase, tail)


async def _present(session: AsyncSession, job: JobRow) -> Job:
    exported = await models.newest_by_job(session, [job.id])
    return job_object(job, exported.get(job.id))
