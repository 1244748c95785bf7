"""Doing what was decided: SQL under the fencing number, the cluster by calls that may be repeated."""

from __future__ import annotations

import shlex

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from service.access import attempt_tokens
from service.clock import utc_now
from service.db.session import Database
from service.events import service as events
from service.jobs import repository as jobs
from service.jobs import state_machine
from service.jobs.tables import JobRow
from service.orchestrator import leadership
from service.orchestrator.actions import (
    AcquireLease,
    Action,
    Advance,
    Fail,
    NextAttempt,
    ReleaseLease,
    Stop,
    Submit,
    Wait,
)
from service.orchestrator.compute import Compute, ComputeRefusedError, Submission
from service.orchestrator.leadership import Leadership
from service.orchestrator.tracing_environment import tracing_environment
from service.settings import Settings
from service.teachers import service as teachers
from tide_core.contracts.environment import compute_environment
from tide_core.contracts.errors import ConflictError
from tide_core.contracts.event import PhaseStep, phase_event
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.reporting import ENV_ATTEMPT_TOKEN, ENV_CONTROL_URL
from tide_core.contracts.states import JobState, Phase, submission_id

WORKER_MODULE = "workers.main"
"""What a Ray job runs; it asks the control plane what to do."""

log = structlog.get_logger(__name__)


class Executor:
    """Executes actions on behalf of one leadership."""

    def __init__(self, database: Database, compute: Compute, settings: Settings, held: Leadership) -> None:
        self._database = database
        self._compute = compute
        self._settings = settings
        self._held = held

    async def execute(self, job_id: str, version: int, action: Action) -> None:
        """Do one action.

        Args:
            job_id: whose.
            version: of the job when the action was decided; another one now, and nothing is done.
            action: what `decide` said.

        Raises:
            ConflictError: ``job_changed`` or ``leadership_lost``.
            ComputeUnavailableError: the cluster does not answer; the action comes up again.
        """
        match action:
            case Submit():
                await self._submit(job_id, version, action.phase)
            case Stop():
                await self._stop(job_id, version, action)
            case _:
                async with self._database.write() as session:
                    job = await self._lock(session, job_id, version)
                    await _write(session, job, action)

    async def _lock(self, session: AsyncSession, job_id: str, version: int) -> JobRow:
        await leadership.check(session, self._held)
        job = await jobs.lock(session, job_id)
        if job.version != version:
            raise ConflictError(f"Job {job_id} changed while its next step was decided.", code="job_changed")
        return job

    async def _submit(self, job_id: str, version: int, phase: Phase) -> None:
        async with self._database.write() as session:
            job = await self._lock(session, job_id, version)
            await jobs.ensure_phase_run(session, job_id, job.attempt, phase)
            token = attempt_tokens.issue(session, job_id, job.attempt, phase)
            submission = self._submission(job, phase, token)
        try:
            await self._compute.submit(submission)
        except ComputeRefusedError as error:
            await self.execute(job_id, version, Fail(error.code, error.message))
            return
        async with self._database.write() as session:
            job = await self._lock(session, job_id, version)
            run = await jobs.ensure_phase_run(session, job_id, job.attempt, phase)
            run.submitted_at = utc_now()
            events.append(
                session,
                job_id,
                phase_event(phase, PhaseStep.SUBMITTED),
                f"The phase {phase} of attempt {job.attempt} was handed to the cluster.",
                data={"attempt": job.attempt, "submission_id": submission.submission_id},
            )

    def _submission(self, job: JobRow, phase: Phase, token: str) -> Submission:
        resources = ResolvedJobSpec.model_validate(job.spec).resources
        threads = resources.threads_per_worker or int(resources.cpus_per_worker)
        return Submission(
            submission_id=submission_id(job.id, job.attempt, phase),
            entrypoint=shlex.join([self._settings.worker_python, "-m", WORKER_MODULE]),
            environment=compute_environment(threads)
            | tracing_environment(self._settings.tracing_endpoint)
            | {ENV_CONTROL_URL: self._settings.resolved_control_url, ENV_ATTEMPT_TOKEN: token},
            labels={"tide_job": job.id, "tide_attempt": str(job.attempt), "tide_phase": str(phase)},
        )

    async def _stop(self, job_id: str, version: int, action: Stop) -> None:
        async with self._database.read() as session:
            job = await jobs.get(session, job_id)
        if job.version != version:
            raise ConflictError(f"Job {job_id} changed while its next step was decided.", code="job_changed")
        log.info("submission.stop", job_id=job_id, phase=action.phase, reason=action.reason)
        await self._compute.stop(submission_id(job_id, job.attempt, action.phase))


async def _write(session: AsyncSession, job: JobRow, action: Action) -> None:
    match action:
        case Advance():
            await state_machine.transition(session, job, action.target, action.message)
        case Fail():
            await _fail(session, job, action)
        case NextAttempt():
            if action.target is not None:
                message = f"Attempt {job.attempt} ended: {action.reason.rstrip('.')}."
                await state_machine.transition(session, job, action.target, message)
            await state_machine.begin_next_attempt(session, job, action.end, action.reason)
        case AcquireLease():
            await teachers.acquire_lease(session, job.id, ResolvedJobSpec.model_validate(job.spec))
        case ReleaseLease():
            await teachers.release_lease(session, job.id)
        case Wait() | Submit() | Stop():
            raise AssertionError(f"{action} writes nothing")


async def _fail(session: AsyncSession, job: JobRow, action: Fail) -> None:
    await state_machine.transition(session, job, JobState.FAILED, action.message, error_code=action.code[:64])
    await teachers.release_lease(session, job.id)
