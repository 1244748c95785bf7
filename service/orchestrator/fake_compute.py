"""A cluster in memory: for tests, and for running the control plane without Ray.

It does what it is told and nothing by itself: a test moves submissions and applications on with `finish`,
`set_status`, `set_application` and `lose_head`, and makes calls fail with `fail_next`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from service.orchestrator.compute import (
    Application,
    ApplicationState,
    ApplicationStatus,
    ClusterResources,
    Submission,
    SubmissionState,
    SubmissionStatus,
)
from tide_core.contracts.errors import ComputeUnavailableError

_LAPTOP = ClusterResources(
    nodes=1, cpus=4, gpus=0, largest_node_memory=8 << 30, largest_gpu_memory=0, labels=({},)
)


@dataclass
class _Entry:
    submission: Submission
    state: SubmissionState
    log: str = ""


@dataclass
class FakeCompute:
    """Implements `Compute` in memory.

    Attributes:
        is_reachable: while False, every call raises `ComputeUnavailableError`.
        size: what `resources` answers.
        starts_applications: whether a wanted application runs at once.
        calls: names of the calls made, in order.
        before_call: hook that sees each call's name first and may raise.
    """

    is_reachable: bool = True
    size: ClusterResources = _LAPTOP
    starts_applications: bool = True
    calls: list[str] = field(default_factory=list)
    before_call: Callable[[str], None] | None = None
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _applications: dict[str, ApplicationState] = field(default_factory=dict)
    _failures: dict[str, list[Exception]] = field(default_factory=dict)

    # -- the protocol ------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Return when reachable."""
        self._enter("ping")

    async def submit(self, submission: Submission) -> None:
        """Remember a submission as running."""
        self._enter("submit")
        running = SubmissionState(SubmissionStatus.RUNNING)
        self._entries.setdefault(submission.submission_id, _Entry(submission, running))

    async def status(self, submission_id: str) -> SubmissionState:
        """The state that was set, or NOT_FOUND."""
        self._enter("status")
        entry = self._entries.get(submission_id)
        return entry.state if entry else SubmissionState(SubmissionStatus.NOT_FOUND)

    async def stop(self, submission_id: str) -> None:
        """Mark a living submission as stopped."""
        self._enter("stop")
        entry = self._entries.get(submission_id)
        if entry and not entry.state.has_ended:
            entry.state = SubmissionState(SubmissionStatus.STOPPED)

    async def logs(self, submission_id: str) -> str:
        """The log that was set."""
        self._enter("logs")
        entry = self._entries.get(submission_id)
        return entry.log if entry else ""

    async def put_applications(self, applications: Sequence[Application]) -> None:
        """Forget all others, keep the state of those that stay the same."""
        self._enter("put_applications")
        first = ApplicationStatus.RUNNING if self.starts_applications else ApplicationStatus.STARTING
        known, self._applications = self._applications, {}
        for wanted in applications:
            old = known.get(wanted.name)
            state = old or ApplicationState(first)
            ready = (
                wanted.scaling.minimum if state.status is ApplicationStatus.RUNNING else state.ready_replicas
            )
            self._applications[wanted.name] = replace(state, wanted=wanted, ready_replicas=ready)

    async def applications(self) -> dict[str, ApplicationState]:
        """The applications last put."""
        self._enter("applications")
        return dict(self._applications)

    async def resources(self) -> ClusterResources:
        """The size that was set."""
        self._enter("resources")
        return self.size

    async def close(self) -> None:
        """Nothing to give up."""

    # -- the script --------------------------------------------------------------------------------

    @property
    def submissions(self) -> dict[str, Submission]:
        """Everything submitted since the head last started, by id."""
        return {name: entry.submission for name, entry in self._entries.items()}

    def finish(self, submission_id: str, *, exit_code: int | None = 0, message: str = "") -> None:
        """End a submission; an exit code of None means that its node took it along."""
        succeeded = exit_code == 0
        status = SubmissionStatus.SUCCEEDED if succeeded else SubmissionStatus.FAILED
        self._entries[submission_id].state = SubmissionState(status, message, exit_code)

    def set_status(self, submission_id: str, status: SubmissionStatus) -> None:
        """Put a submission into a state."""
        self._entries[submission_id].state = SubmissionState(status)

    def set_log(self, submission_id: str, text: str) -> None:
        """Set what a submission printed."""
        self._entries[submission_id].log = text

    def set_application(self, name: str, status: ApplicationStatus, message: str = "") -> None:
        """Put an application into a state."""
        ready = 1 if status is ApplicationStatus.RUNNING else 0
        self._applications[name] = replace(
            self._applications[name], status=status, message=message, ready_replicas=ready
        )

    def lose_head(self) -> None:
        """Forget everything, as a Ray head does that is started anew."""
        self._entries.clear()
        self._applications.clear()

    def fail_next(self, call: str, error: Exception) -> None:
        """Make the next call of this name raise, before it does anything."""
        self._failures.setdefault(call, []).append(error)

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        if self.before_call is not None:
            self.before_call(call)
        if self._failures.get(call):
            raise self._failures[call].pop(0)
        if not self.is_reachable:
            raise ComputeUnavailableError("The fake cluster was told not to answer.")
