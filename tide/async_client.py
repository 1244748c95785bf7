"""The client for `asyncio`: `tide.AsyncClient`, method for method the twin of `tide.client`.

In: the address of a control plane and a token. Out: its resources as typed objects. What a request looks like
stands in `operations`, how it is sent and sent again in `transport`; the methods here join the two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import PrivateAttr

from tide import operations
from tide.connecting import find_token, find_url
from tide.transport.connection import AsyncConnection
from tide.transport.feed import OUTAGE_SECONDS, JobFeed
from tide.transport.patience import Patience
from tide.transport.steps import wait_for_end
from tide_core.contracts.event import Event
from tide_core.contracts.job import JobSpec
from tide_core.contracts.plan import Plan, PlanRequest
from tide_core.contracts.resources import (
    CheckName,
    Checkpoint,
    Dataset,
    Health,
    Job,
    JobProgress,
    MetricSeriesList,
    Model,
    Readiness,
    Teacher,
)
from tide_core.contracts.states import TERMINAL_STATES, JobState, Phase


class AsyncClient:
    """A control plane and what it keeps. Use it as a context manager, or call `close`.

    Every method raises a subclass of `tide.ApiError` when the request does not succeed. Requests that may be
    sent again are: after a broken connection and the statuses 429, 502, 503 and 504.

    Args:
        url: address; None takes `TIDE_URL`, then that of the `tide up` of this folder, then
            http://127.0.0.1:8700.
        token: None takes `TIDE_TOKEN`; without one, no token is sent.
        timeout: seconds of silence after which a request has failed.
        retries: how often a request is sent again.
        transport: for tests: what sends requests instead of the network.

    Raises:
        InvalidInputError: ``bad_url`` or ``bad_token``.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        patience = Patience(retries=retries)
        self._open(
            AsyncConnection(
                find_url(url), find_token(token), timeout=timeout, patience=patience, transport=transport
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The address of the control plane."""
        return self._connection.url

    async def close(self) -> None:
        """Close the connections, also those of copies that `with_token` made."""
        await self._connection.close()

    def with_token(self, token: str | None) -> Self:
        """A client that sends another token over the same connections; None sends no token."""
        copy = type(self).__new__(type(self))
        copy._open(self._connection.with_token(token))
        return copy

    async def health(self) -> Health:
        """Say whether the server's process answers."""
        return await self._connection.call(operations.get_health())

    async def ready(self, *checks: CheckName) -> Readiness:
        """Say whether jobs can be taken and run, and what is missing; ``checks`` looks at these alone."""
        return await self._connection.call(operations.get_readiness(checks))

    def _open(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.jobs = AsyncJobs(connection)
        self.teachers = AsyncTeachers(connection)
        self.datasets = AsyncDatasets(connection)
        self.models = AsyncModels(connection)


class AsyncJobHandle(Job):
    """A job as it was when it was fetched, and what can be done with it."""

    _jobs: AsyncJobs = PrivateAttr()

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.status in TERMINAL_STATES

    async def refresh(self) -> AsyncJobHandle:
        """Fetch the job as it is now."""
        return await self._jobs.get(self.id)

    async def wait(self, timeout: float | None = None) -> AsyncJobHandle:  # noqa: ASYNC109
        """See `AsyncJobs.wait`."""
        return await self._jobs.wait(self.id, timeout)

    def watch(self, *, after: int = 0) -> AsyncIterator[Event | JobProgress]:
        """See `AsyncJobs.watch`."""
        return self._jobs.watch(self.id, after=after)

    async def cancel(self) -> AsyncJobHandle:
        """End the job for good; its checkpoints stay."""
        return await self._jobs.cancel(self.id)

    async def pause(self) -> AsyncJobHandle:
        """Save the running job and give its resources back."""
        return await self._jobs.pause(self.id)

    async def resume(self) -> AsyncJobHandle:
        """Let the paused job go on from its last checkpoint."""
        return await self._jobs.resume(self.id)

    async def metrics(self, *names: str, after_step: int = -1, max_points: int = 1000) -> MetricSeriesList:
        """See `AsyncJobs.metrics`."""
        return await self._jobs.metrics(self.id, *names, after_step=after_step, max_points=max_points)

    def checkpoints(self) -> AsyncIterator[Checkpoint]:
        """List the checkpoints that exist, newest step first."""
        return self._jobs.checkpoints(self.id)

    async def logs(
        self, *, phase: Phase | str | None = None, attempt: int | None = None, tail: int = 1000
    ) -> str:
        """See `AsyncJobs.logs`."""
        return await self._jobs.logs(self.id, phase=phase, attempt=attempt, tail=tail)

    def events(self, *, after: int = 0, page_size: int = operations.PAGE_SIZE) -> AsyncIterator[Event]:
        """See `AsyncJobs.events`."""
        return self._jobs.events(self.id, after=after, page_size=page_size)


class AsyncJobs:
    """`client.jobs`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self, spec: JobSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> AsyncJobHandle:
        """Post a job.

        Args:
            spec: the job; see docs/job-spec.md.
            idempotency_key: the same key and spec give the same job, however often they are posted. None
                makes a new key, so that this one call posts one job even when it is sent again.
        """
        return self._bind(await self._connection.call(operations.create_job(spec, idempotency_key)))

    async def get(self, job_id: str) -> AsyncJobHandle:
        """Fetch one job."""
        return self._bind(await self._connection.call(operations.get_job(job_id)))

    def list(
        self,
        *,
        status: Sequence[JobState | str] = (),
        after: str | None = None,
        page_size: int = operations.PAGE_SIZE,
    ) -> AsyncIterator[AsyncJobHandle]:
        """List jobs, newest first; a page is fetched when its first job is asked for.

        Args:
            status: only jobs in one of these states.
            after: id of a job; begin after it.
            page_size: jobs for each request, at most 100.
        """
        jobs = self._connection.list_items(
            lambda last: operations.list_jobs(last or after, limit=page_size, status=status)
        )
        return (self._bind(job) async for job in jobs)

    async def cancel(self, job_id: str) -> AsyncJobHandle:
        """End a job for good; its checkpoints stay."""
        return self._bind(await self._connection.call(operations.cancel_job(job_id)))

    async def pause(self, job_id: str) -> AsyncJobHandle:
        """Save a running job and give its resources back."""
        return self._bind(await self._connection.call(operations.pause_job(job_id)))

    async def resume(self, job_id: str) -> AsyncJobHandle:
        """Let a paused job go on from its last checkpoint."""
        return self._bind(await self._connection.call(operations.resume_job(job_id)))

    async def plan(self, request: PlanRequest | Mapping[str, Any]) -> Plan:
        """Say what a job would take of a cluster; nothing is stored and nothing runs."""
        return await self._connection.call(operations.plan_job(request))

    async def metrics(
        self, job_id: str, *names: str, after_step: int = -1, max_points: int = 1000
    ) -> MetricSeriesList:
        """Fetch the figures of a job by name and step.

        Args:
            job_id: the job.
            names: only these series.
            after_step: only figures of later steps.
            max_points: points of each series, at most; the first, the last and the extremes stay.
        """
        call = operations.list_metrics(job_id, names, after_step=after_step, max_points=max_points)
        return await self._connection.call(call)

    def checkpoints(self, job_id: str) -> AsyncIterator[Checkpoint]:
        """List the checkpoints that exist, newest step first."""
        return self._connection.list_items(lambda _last: operations.list_checkpoints(job_id))

    async def logs(
        self, job_id: str, *, phase: Phase | str | None = None, attempt: int | None = None, tail: int = 1000
    ) -> str:
        """Fetch what the processes of a job printed.

        Args:
            job_id: the job.
            phase: prepare, train or evaluate; None is the latest that ran.
            attempt: None is the present one.
            tail: lines at most, the last ones.
        """
        return await self._connection.call(
            operations.read_logs(job_id, phase=phase, attempt=attempt, tail=tail)
        )

    def events(
        self, job_id: str, *, after: int = 0, page_size: int = operations.PAGE_SIZE
    ) -> AsyncIterator[Event]:
        """List the events of a job so far, oldest first.

        Args:
            job_id: the job.
            after: only events with a larger id.
            page_size: events for each request, at most 100.
        """
        return self._connection.list_items(
            lambda last: operations.list_events(job_id, last or after, limit=page_size)
        )

    def watch(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event | JobProgress]:
        """Follow a job until it has ended: its events from the first one on, and its progress as it changes.

        A broken connection is opened again after the last event; the server may be away for two minutes.

        Args:
            job_id: the job.
            after: only events with a larger id.
        """
        return self._connection.follow(
            JobFeed(lambda last: operations.stream_events(job_id, last, after=after))
        )

    async def wait(
        self,
        job_id: str,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncJobHandle:
        """Wait until a job has succeeded, failed or was cancelled; the server may be away for two minutes.

        Args:
            job_id: the job. While it is paused it does not end.
            timeout: seconds; None waits as long as it takes.

        Raises:
            WaitTimeoutError: the job has not ended in this time.
        """
        outage = Patience(retries=None, seconds=OUTAGE_SECONDS)
        steps = wait_for_end(operations.get_job(job_id), self._connection.url, outage, timeout)
        return self._bind(await self._connection.run(steps))

    def _bind(self, job: Job) -> AsyncJobHandle:
        handle = AsyncJobHandle.model_construct(**dict(job))
        handle._jobs = self
        return handle


class AsyncTeachers:
    """`client.teachers`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def list(self) -> AsyncIterator[Teacher]:
        """List the teacher pools and the jobs that use them, oldest first."""
        return self._connection.list_items(lambda _last: operations.list_teachers())

    async def get(self, teacher_id: str) -> Teacher:
        """Fetch one teacher pool."""
        return await self._connection.call(operations.get_teacher(teacher_id))


class AsyncDatasets:
    """`client.datasets`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def list(
        self, *, after: str | None = None, page_size: int = operations.PAGE_SIZE
    ) -> AsyncIterator[Dataset]:
        """List prepared data sets, newest first."""
        return self._connection.list_items(
            lambda last: operations.list_datasets(last or after, limit=page_size)
        )

    async def get(self, content_hash: str) -> Dataset:
        """Fetch one prepared data set."""
        return await self._connection.call(operations.get_dataset(content_hash))


class AsyncModels:
    """`client.models`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def list(
        self, *, after: str | None = None, page_size: int = operations.PAGE_SIZE
    ) -> AsyncIterator[Model]:
        """List exported models, newest first."""
        return self._connection.list_items(
            lambda last: operations.list_models(last or after, limit=page_size)
        )

    async def get(self, model_id: str) -> Model:
        """Fetch one exported model."""
        return await self._connection.call(operations.get_model(model_id))
