"""What workers call, with the token of their attempt."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Request

from service.access import attempt_tokens
from service.access.bearer_tokens import read_bearer_token
from service.api.dependencies import Context, ReadSession, WriteSession
from service.api.errors import error_responses
from service.jobs import repository
from service.jobs.briefing import attempt_brief
from service.jobs.reports import store
from tide_core.contracts.errors import ConflictError, UnauthorizedError
from tide_core.contracts.reporting import AttemptBrief, Failed, Finished, ReportBatch, ReportReceipt
from tide_core.contracts.states import TERMINAL_STATES

router = APIRouter(prefix="/internal/v1", include_in_schema=False)


def _read_attempt_token(request: Request) -> str:
    token = read_bearer_token(request)
    if token is None:
        raise UnauthorizedError("Send the attempt's token as 'Authorization: Bearer <token>'.")
    return token


AttemptToken = Annotated[str, Depends(_read_attempt_token)]


@router.get("/attempt", responses=error_responses(401, 409))
async def get_attempt(context: Context, session: ReadSession, token: AttemptToken) -> AttemptBrief:
    """All that the attempt's worker needs to know."""
    identity = await attempt_tokens.identify(session, token)
    job = await repository.get(session, identity.job_id)
    if identity.is_revoked or identity.attempt != job.attempt or job.state in TERMINAL_STATES:
        raise ConflictError(
            f"Attempt {identity.attempt} of job {job.id} has ended. Stop.", code="attempt_ended"
        )
    return await attempt_brief(session, job, identity.phase, context.settings)


@router.post("/reports", responses=error_responses(401, 409, 422))
async def post_reports(
    context: Context,
    session: WriteSession,
    afterwards: BackgroundTasks,
    token: AttemptToken,
    batch: ReportBatch,
) -> ReportReceipt:
    """Store a batch of reports; sending it again changes nothing."""
    if any(isinstance(report.body, Finished | Failed) for report in batch.reports):
        afterwards.add_task(context.wake)
    return await store(session, await attempt_tokens.identify(session, token), batch)
