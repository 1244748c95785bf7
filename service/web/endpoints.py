"""The page: server-rendered, refreshed by fragments, works without internet.

In: requests of a browser. Out: HTML of jobs, curves and teachers, whole pages and fragments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from sqlalchemy.ext.asyncio import AsyncSession

from service.api.dependencies import ReadSession
from service.jobs import repository as jobs
from service.jobs.presentation import checkpoint_object, job_object
from service.models import repository as models
from service.teachers import repository as teachers
from service.teachers.endpoints import teacher_object
from service.web import views
from tide_core.contracts.resources import Job

FOLDER = Path(__file__).parent
PAGE_LENGTH = 50
templates = Jinja2Templates(directory=FOLDER / "templates")
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def install(app: FastAPI) -> None:
    """Add the page and its static files to the application."""
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    app.include_router(router)


def is_page(path: str) -> bool:
    """Whether a person opens this path in a browser, which cannot send a token along."""
    return path == "/" or path.startswith("/ui/jobs/")


def sign_in_page(request: Request) -> Response:
    """Asks for a token; the page then fetches itself with it (static/session.js)."""
    headers = {"WWW-Authenticate": "Bearer"}
    return templates.TemplateResponse(request, "sign_in.html", status_code=401, headers=headers)


@router.get("/")
async def index(request: Request, session: ReadSession) -> HTMLResponse:
    """All jobs, their curves and the teachers."""
    found = await _jobs(session)
    return templates.TemplateResponse(
        request,
        "index.html",
        {
            "jobs": [views.to_job_card(job) for job in found],
            "overview_charts": [asdict(chart) for chart in views.overview_charts(found)],
            "teachers": await _teachers(session),
        },
    )


@router.get("/ui/jobs/{job_id}")
async def job_page(request: Request, session: ReadSession, job_id: str) -> HTMLResponse:
    """One job."""
    job = await _job(session, job_id)
    context = await _job_context(session, job)
    context["charts"] = [asdict(chart) for chart in views.job_charts(job)]
    return templates.TemplateResponse(request, "job.html", context)


@router.get("/ui/fragments/jobs")
async def jobs_fragment(request: Request, session: ReadSession) -> HTMLResponse:
    """The table of jobs."""
    shown = [views.to_job_card(job) for job in await _jobs(session)]
    return templates.TemplateResponse(request, "fragments/jobs.html", {"jobs": shown})


@router.get("/ui/fragments/jobs/{job_id}")
async def job_fragment(request: Request, session: ReadSession, job_id: str) -> HTMLResponse:
    """State, progress and checkpoints of one job."""
    context = await _job_context(session, await _job(session, job_id))
    return templates.TemplateResponse(request, "fragments/job.html", context)


@router.get("/ui/fragments/teachers")
async def teachers_fragment(request: Request, session: ReadSession) -> HTMLResponse:
    """The table of teachers."""
    context = {"teachers": await _teachers(session)}
    return templates.TemplateResponse(request, "fragments/teachers.html", context)


async def _jobs(session: AsyncSession) -> Sequence[Job]:
    rows = await jobs.page(session, after=None, limit=PAGE_LENGTH)
    return [job_object(row, None) for row in rows]


async def _job(session: AsyncSession, job_id: str) -> Job:
    return job_object(
        await jobs.get(session, job_id), (await models.newest_by_job(session, [job_id])).get(job_id)
    )


async def _job_context(session: AsyncSession, job: Job) -> dict[str, object]:
    checkpoints = [checkpoint_object(row) for row in await jobs.checkpoints(session, job.id)]
    return {
        "job": views.to_job_card(job),
        "checkpoints": [views.to_checkpoint_card(checkpoint) for checkpoint in checkpoints],
    }


async def _teachers(session: AsyncSession) -> list[views.TeacherCard]:
    leases = await teachers.live_leases(session)
    return [views.to_teacher_card(teacher_object(row, leases)) for row in await teachers.all_pools(session)]
