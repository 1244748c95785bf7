"""What the reconciler asks the cluster for one job: only what the job's next step depends on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.clock import utc_now
from service.db.session import Database
from service.jobs import repository as jobs
from service.orchestrator import pools, snapshots, teacher_size
from service.orchestrator.compute import (
    ApplicationState,
    ApplicationStatus,
    ClusterResources,
    Compute,
    SubmissionState,
)
from service.orchestrator.decide import PHASE_OF_STATE, Observed
from service.settings import Settings
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.placement import Purpose
from tide_core.contracts.states import JobState, Phase, submission_id
from tide_core.contracts.teacher import TeacherPool, phase_needs_teacher, pool_for

_AWAITS_TEACHER = {JobState.PROVISIONING: Phase.TRAIN, JobState.EVALUATING: Phase.EVALUATE}
_ABSENT = ApplicationState(ApplicationStatus.ABSENT)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the cluster says, and of which state of the job it was asked."""

    state: JobState
    attempt: int
    cluster: Observed


class Observer:
    """Asks for one job at a time; what holds for all jobs is asked once a look."""

    def __init__(self, database: Database, compute: Compute, settings: Settings) -> None:
        self._database = database
        self._compute = compute
        self._settings = settings
        self._applications: dict[str, ApplicationState] | None = None
        self._resources: ClusterResources | None = None
        self._active: int | None = None
        self.is_reachable = False

    def begin_look(self, *, is_reachable: bool) -> None:
        """Forget what the last look saw."""
        self.is_reachable = is_reachable
        self._applications = self._resources = self._active = None

    def count_new_job(self) -> None:
        """One more job has started in this look."""
        if self._active is not None:
            self._active += 1

    async def observe(self, job_id: str) -> Observation:
        """What the next step of a job depends on.

        Raises:
            ComputeUnavailableError: the cluster answered at the start of the look and now does not.
        """
        async with self._database.read() as session:
            job = await jobs.get(session, job_id)
            spec = ResolvedJobSpec.model_validate(job.spec)
            if self._active is None:
                self._active = await snapshots.count_active_jobs(session)
            waited = await snapshots.teacher_waited_seconds(session, job_id, now=utc_now())
        has_room = self._active < self._settings.max_active_jobs
        if not self.is_reachable:
            return Observation(job.state, job.attempt, Observed(is_reachable=False, has_room=has_room))
        phase = _AWAITS_TEACHER.get(job.state)
        pool = pool_for(spec) if phase and phase_needs_teacher(spec, phase) else None
        cluster = Observed(
            submissions=await self._submissions(job_id, job.attempt, job.state),
            teacher=await self._teacher(pool) if pool else _ABSENT,
            teacher_waited_seconds=waited,
            teacher_problem=await self._problem(pool) if pool else None,
            teacher_unplaced=await self._explain_missing_node(Purpose.TEACHER, "a teacher") if pool else None,
            shortage=await self._shortage(spec, job.state),
            has_room=has_room,
        )
        return Observation(job.state, job.attempt, cluster)

    async def _submissions(self, job_id: str, attempt: int, state: JobState) -> dict[Phase, SubmissionState]:
        if state is JobState.CANCELLING:
            phases: tuple[Phase, ...] = tuple(Phase)
        else:
            phases = (PHASE_OF_STATE[state],) if state in PHASE_OF_STATE else ()
        return {phase: await self._compute.status(submission_id(job_id, attempt, phase)) for phase in phases}

    async def _teacher(self, pool: TeacherPool) -> ApplicationState:
        if self._applications is None:
            self._applications = await self._compute.applications()
        return self._applications.get(pool.application, _ABSENT)

    async def _problem(self, pool: TeacherPool) -> str | None:
        return await asyncio.to_thread(teacher_size.problem, pool, await self._size())

    async def _explain_missing_node(self, purpose: Purpose, what: str) -> str | None:
        labels = self._settings.node_labels(purpose)
        return pools.explain_missing_node(labels, await self._size(), what) if labels else None

    async def _shortage(self, spec: ResolvedJobSpec, state: JobState) -> str | None:
        if state is JobState.QUEUED:
            return await self._explain_missing_node(Purpose.PREPARATION, "the preparation")
        if state is not JobState.PROVISIONING:
            return None
        size, asked = await self._size(), spec.resources
        cpus, gpus = (
            asked.student_workers * asked.cpus_per_worker,
            asked.student_workers * asked.gpus_per_worker,
        )
        if cpus <= size.cpus and gpus <= size.gpus:
            return await self._explain_missing_node(Purpose.TRAINER, "a trainer")
        return (
            f"The job needs {cpus:g} CPUs and {gpus:g} GPUs, and the whole cluster has {size.cpus:g} and "
            f"{size.gpus:g}: it waits until the cluster grows. Fewer 'resources.student_workers' need less."
        )

    async def _size(self) -> ClusterResources:
        if self._resources is None:
            self._resources = await self._compute.resources()
        return self._resources
