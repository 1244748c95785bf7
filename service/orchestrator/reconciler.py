"""The reconciler's loop: observe, decide, act, until the cluster does what SQL says should be done.

In: jobs and pools in SQL, and what the cluster says of them. Out: transitions, submissions, leases,
applications.

Locks: one control plane leads, by the row of its lease (`leadership`); each write holds that row and the
job's row, and checks the fencing number and the job's version. No lock is held while the cluster is asked.
Invariant: the loop keeps no state that matters. Every action may be done twice, and the process may die
between any two lines: the next look finds what was done and goes on from there.
Failures: the cluster does not answer: wait, and look again. Another control plane leads: write nothing. A
job changed meanwhile: decide again at the next look. One job's step raises: log it and go on with the other
jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import get_args

import structlog
from sqlalchemy.exc import IntegrityError

from service.clock import utc_now
from service.db.session import Database
from service.jobs import repository as jobs
from service.observability.metrics import ACTIONS, LOOK_SECONDS
from service.orchestrator import leadership, snapshots
from service.orchestrator.actions import Action, Wait
from service.orchestrator.compute import Compute
from service.orchestrator.decide import Limits, decide
from service.orchestrator.execution import Executor
from service.orchestrator.leadership import Leadership, LeadershipLostError
from service.orchestrator.observation import Observer
from service.orchestrator.pool_keeper import PoolKeeper
from service.settings import Settings
from tide_core.contracts.errors import ComputeUnavailableError, ConflictError
from tide_core.contracts.states import JobState
from tide_core.tracing import ATTEMPT_ATTRIBUTE, JOB_ATTRIBUTE, Attribute, Tracing

ROLE = "reconciler"
_STEPS_PER_LOOK = 12
"""Bound on the actions for one job in one look: two rules that contradict each other must not loop."""

log = structlog.get_logger(__name__)

for _action in get_args(Action):  # from 0 on: a first action is a rise too
    if _action is not Wait:
        ACTIONS.labels(_action.__name__)


class Reconciler:
    """One loop over all jobs and pools.

    Args:
        database: where the truth is.
        compute: the cluster.
        settings: intervals, limits, addresses that workers are told.
        tracing: makes a span of every action, in the trace of the request that posted the job.
    """

    def __init__(
        self, database: Database, compute: Compute, settings: Settings, tracing: Tracing | None = None
    ) -> None:
        self._tracing = tracing or Tracing("tide-control-plane", None)
        self._database = database
        self._compute = compute
        self._settings = settings
        self._holder = leadership.make_holder()
        self._observer = Observer(database, compute, settings)
        self._pools = PoolKeeper(database, compute, settings)
        self._leadership: Leadership | None = None
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._looked_at = utc_now()
        self._limits = Limits(
            teacher_start=settings.teacher_start_timeout_seconds,
            teacher_loss=settings.teacher_loss_timeout_seconds,
            pause=settings.pause_timeout_seconds,
        )

    @property
    def is_leading(self) -> bool:
        """Whether this control plane is the one that acts."""
        return self._leadership is not None

    @property
    def seconds_since_look(self) -> float:
        """Time since the last look ended; large when the loop is stuck or was never started."""
        return (utc_now() - self._looked_at).total_seconds()

    def wake(self) -> None:
        """Look now instead of at the end of the interval."""
        self._wake.set()

    def stop(self) -> None:
        """Let :meth:`run` end after its present look: cut off, that would leave a transaction half-way."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Look, pause, and again, until stopped or cancelled; then let the next one lead at once."""
        try:
            while not self._is_stopping:
                await self._look_and_survive()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._settings.reconcile_interval_seconds)
                self._wake.clear()
        finally:
            await self.step_down()

    async def look(self) -> None:
        """One look at everything: all jobs, then the pools."""
        self._leadership = await self._lead()
        if self._leadership is None:
            return
        executor = Executor(self._database, self._compute, self._settings, self._leadership)
        self._observer.begin_look(is_reachable=await self._is_reachable())
        async with self._database.read() as session:
            ids = await snapshots.find_jobs_with_work(session)
        for job_id in ids:
            await self._bring_on(job_id, executor)
        if self._observer.is_reachable:
            await self._pools.sync(self._leadership)

    async def _look_and_survive(self) -> None:
        try:
            with LOOK_SECONDS.time():
                await self.look()
            self._looked_at = utc_now()
        except ComputeUnavailableError as error:
            log.warning("cluster.unavailable", reason=error.message)
            self._looked_at = utc_now()
        except LeadershipLostError:
            log.warning("leadership.lost", holder=self._holder)
        except Exception:
            log.exception("reconciler.look_failed")

    async def _lead(self) -> Leadership | None:
        lifetime = timedelta(seconds=max(5.0, 5 * self._settings.reconcile_interval_seconds))
        try:
            async with self._database.write() as session:
                return await leadership.acquire(session, ROLE, self._holder, now=utc_now(), lifetime=lifetime)
        except IntegrityError:  # another control plane took the role in the same moment
            return None

    async def step_down(self) -> None:
        """Let the next control plane lead at once; does nothing where this one does not lead."""
        held, self._leadership = self._leadership, None
        if held is not None:
            async with self._database.write() as session:
                await leadership.release(session, held, now=utc_now())

    async def _is_reachable(self) -> bool:
        try:
            await self._compute.ping()
        except ComputeUnavailableError as error:
            log.warning("cluster.unavailable", reason=error.message)
            return False
        return True

    async def _bring_on(self, job_id: str, executor: Executor) -> None:
        """Do what can be done for one job now; a failure here does not stop the work on other jobs."""
        try:
            done: Action | None = None
            for _ in range(_STEPS_PER_LOOK):
                action = await self._step(job_id, executor, done)
                if isinstance(action, Wait):
                    return
                done = action or done
            log.error("reconciler.no_rest", job_id=job_id, steps=_STEPS_PER_LOOK)
        except ComputeUnavailableError as error:
            log.warning("cluster.unavailable", job_id=job_id, reason=error.message)
        except LeadershipLostError:
            raise
        except ConflictError as error:  # a cancel or a report was faster: look again next time
            log.info("reconciler.overtaken", job_id=job_id, reason=error.message)
        except Exception:
            log.exception("reconciler.job_failed", job_id=job_id)

    async def _step(self, job_id: str, executor: Executor, done: Action | None) -> Action | None:
        """One action for one job; a `Wait` where there is nothing to do until the next look.

        The same action twice in a row has not changed anything yet: a process takes its time to stop.
        None means that the job moved on while the cluster was asked.
        """
        observed = await self._observer.observe(job_id)
        # What SQL knows is read after the cluster was asked: a submission that has ended delivered its
        # reports before it ended, so a lost one is never taken for a finished one or the reverse.
        async with self._database.read() as session:
            job = await jobs.get(session, job_id)
            version, attempt = job.version, job.attempt
            snapshot = await snapshots.read_job(session, job, now=utc_now())
        if (attempt, job.state) != (observed.attempt, observed.state):
            return None  # it moved on meanwhile: observe again
        action = decide(snapshot, observed.cluster, self._limits)
        if isinstance(action, Wait):
            return action
        if action == done:
            return Wait(f"{action!r} has no effect yet")
        log.info("reconciler.action", job_id=job_id, attempt=attempt, state=job.state, action=repr(action))
        facts: dict[str, Attribute] = {
            JOB_ATTRIBUTE: job_id,
            ATTEMPT_ATTRIBUTE: attempt,
            "tide.state": str(job.state),
        }
        name = f"reconcile {type(action).__name__}"
        with self._tracing.span(name, parent=job.traceparent, attributes=facts):
            await executor.execute(job_id, version, action)
        ACTIONS.labels(type(action).__name__).inc()
        if job.state is JobState.QUEUED:
            self._observer.count_new_job()
        return action
