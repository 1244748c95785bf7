"""The client that blocks: `tide.Client`.

In: the address of a control plane and a token. Out: its resources as typed objects. What a request looks like
stands in `operations`, how it is sent and sent again in `transport`; the methods here join the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import PrivateAttr

from tide import operations
from tide.connecting import find_token, find_url
from tide.transport.connection import Connection
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


class Client:
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        patience = Patience(retries=retries)
        self._open(
            Connection(
                find_url(url), find_token(token), timeout=timeout, patience=patience, transport=transport
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of the control plane."""
        return self._connection.url

    def close(self) -> None:
        """Close the connections, also those of copies that `with_token` made."""
        self._connection.close()

    def with_token(self, token: str | None) -> Self:
        """A client that sends another token over the same connections; None sends no token."""
        copy = type(self).__new__(type(self))
        copy._open(self._connection.with_token(token))
        return copy

    def health(self) -> Health:
        """Say whether the server's process answers."""
        return self._connection.call(operations.get_health())

    def ready(self, *checks: CheckName) -> Readiness:
        """Say whether jobs can be taken and run, and what is missing; ``checks`` looks at these alone."""
        return self._connection.call(operations.get_readiness(checks))

    def _open(self, connection: Connection) -> None:
        self._connection = connection
        self.jobs = Jobs(connection)
        self.teachers = Teachers(connection)
        self.datasets = Datasets(connection)
        self.models = Models(connection)


class JobHandle(Job):
    """A job as it was when it was fetched, and what can be done with it."""

    _jobs: Jobs = PrivateAttr()

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.status in TERMINAL_STATES

    def refresh(self) -> JobHandle:
        """Fetch the job as it is now."""
        return self._jobs.get(self.id)

    def wait(self, timeout: float | None = None) -> JobHandle:
        """See `Jobs.wait`."""
        return self._jobs.wait(self.id, timeout)

    def watch(self, *, after: int = 0) -> Iterator[Event | JobProgress]:
        """See `Jobs.watch`."""
        return self._jobs.watch(self.id, after=after)

    def cancel(self) -> JobHandle:
        """End the job for good; its checkpoints stay."""
        return self._jobs.cancel(self.id)

    def pause(self) -> JobHandle:
        """Save the running job and give its resources back."""
        return self._jobs.pause(self.id)

    def resume(self) -> JobHandle:
        """Let the paused job go on from its last checkpoint."""
        return self._jobs.resume(self.id)

    def metrics(self, *names: str, after_step: int = -1, max_points: int = 1000) -> MetricSeriesList:
        """See `Jobs.metrics`."""
        return self._jobs.metrics(self.id, *names, after_step=after_step, max_points=max_points)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """List the checkpoints that exist, newest step first."""
        return self._jobs.checkpoints(self.id)

    def logs(self, *, phase: Phase | str | None = None, attempt: int | None = None, tail: int = 1000) -> str:
        """See `Jobs.logs`."""
        return self._jobs.logs(self.id, phase=phase, attempt=attempt, tail=tail)

    def events(self, *, after: int = 0, page_size: int = operations.PAGE_SIZE) -> Iterator[Event]:
        """See `Jobs.events`."""
        return self._jobs.events(self.id, after=after, page_size=page_size)


class Jobs:
    """`client.jobs`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, spec: JobSpec | Mapping[str, Any], *, idempotency_key: str | None = None) -> JobHandle:
        """Post a job.

        Args:
            spec: the job; see docs/job-spec.md.
            idempotency_key: the same key and spec give the same job, however often they are posted. None
                makes a new key, so that this one call posts one job even when it is sent again.
        """
        return self._bind(self._connection.call(operations.create_job(spec, idempotency_key)))

    def get(self, job_id: str) -> JobHandle:
        """Fetch one job."""
        return self._bind(self._connection.call(operations.get_job(job_id)))

    def list(
        self,
        *,
        status: Sequence[JobState | str] = (),
        after: str | None = None,
        page_size: int = operations.PAGE_SIZE,
    ) -> Iterator[JobHandle]:
        """List jobs, newest first; a page is fetched when its first job is asked for.

        Args:
            status: only jobs in one of these states.
            after: id of a job; begin after it.
            page_size: jobs for each request, at most 100.
        """
        jobs = self._connection.list_items(
            lambda last: operations.list_jobs(last or after, limit=page_size, status=status)
        )
        return (self._bind(job) for job in jobs)

    def cancel(self, job_id: str) -> JobHandle:
        """End a job for good; its checkpoints stay."""
        return self._bind(self._connection.call(operations.cancel_job(job_id)))

    def pause(self, job_id: str) -> JobHandle:
        """Save a running job and give its resources back."""
        return self._bind(self._connection.call(operations.pause_job(job_id)))

    def resume(self, job_id: str) -> JobHandle:
        """Let a paused job go on from its last checkpoint."""
        return self._bind(self._connection.call(operations.resume_job(job_id)))

    def plan(self, request: PlanRequest | Mapping[str, Any]) -> Plan:
        """Say what a job would take of a cluster; nothing is stored and nothing runs."""
        return self._connection.call(operations.plan_job(request))

    def metrics(
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
        return self._connection.call(call)

    def checkpoints(self, job_id: str) -> Iterator[Checkpoint]:
        """List the checkpoints that exist, newest step first."""
        return self._connection.list_items(lambda _last: operations.list_checkpoints(job_id))

    def logs(
        self, job_id: str, *, phase: Phase | str | None = None, attempt: int | None = None, tail: int = 1000
    ) -> str:
        """Fetch what the processes of a job printed.

        Args:
            job_id: the job.
            phase: prepare, train or evaluate; None is the latest that ran.
            attempt: None is the present one.
            tail: lines at most, the last ones.
        """
        return self._connection.call(operations.read_logs(job_id, phase=phase, attempt=attempt, tail=tail))

    def events(
        self, job_id: str, *, after: int = 0, page_size: int = operations.PAGE_SIZE
    ) -> Iterator[Event]:
        """List the events of a job so far, oldest first.

        Args:
            job_id: the job.
            after: only events with a larger id.
            page_size: events for each request, at most 100.
        """
        return self._connection.list_items(
            lambda last: operations.list_events(job_id, last or after, limit=page_size)
        )

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event | JobProgress]:
        """Follow a job until it has ended: its events from the first one on, and its progress as it changes.

        A broken connection is opened again after the last event; the server may be away for two minutes.

        Args:
            job_id: the job.
            after: only events with a larger id.
        """
        return self._connection.follow(
            JobFeed(lambda last: operations.stream_events(job_id, last, after=after))
        )

    def wait(self, job_id: str, timeout: float | None = None) -> JobHandle:
        """Wait until a job has succeeded, failed or was cancelled; the server may be away for two minutes.

        Args:
            job_id: the job. While it is paused it does not end.
            timeout: seconds; None waits as long as it takes.

        Raises:
            WaitTimeoutError: the job has not ended in this time.
        """
        outage = Patience(retries=None, seconds=OUTAGE_SECONDS)
        steps = wait_for_end(operations.get_job(job_id), self._connection.url, outage, timeout)
        return self._bind(self._connection.run(steps))

    def _bind(self, job: Job) -> JobHandle:
        handle = JobHandle.model_construct(**dict(job))
        handle._jobs = self
        return handle


class Teachers:
    """`client.teachers`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Iterator[Teacher]:
        """List the teacher pools and the jobs that use them, oldest first."""
        return self._connection.list_items(lambda _last: operations.list_teachers())

    def get(self, teacher_id: str) -> Teacher:
        """Fetch one teacher pool."""
        return self._connection.call(operations.get_teacher(teacher_id))


class Datasets:
    """`client.datasets`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, *, after: str | None = None, page_size: int = operations.PAGE_SIZE) -> Iterator[Dataset]:
        """List prepared data sets, newest first."""
        return self._connection.list_items(
            lambda last: operations.list_datasets(last or after, limit=page_size)
        )

    def get(self, content_hash: str) -> Dataset:
        """Fetch one prepared data set."""
        return self._connection.call(operations.get_dataset(content_hash))


class Models:
    """`client.models`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, *, after: str | None = None, page_size: int = operations.PAGE_SIZE) -> Iterator[Model]:
        """List exported models, newest first."""
        return self._connection.list_items(
            lambda last: operations.list_models(last or after, limit=page_size)
        )

    def get(self, model_id: str) -> Model:
        """Fetch one exported model."""
        return self._connection.call(operations.get_model(model_id))
