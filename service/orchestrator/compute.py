"""What the control plane asks of a cluster: run jobs, serve applications, say how large it is.

The protocol speaks of submissions and applications, not of Ray: `ray_compute.py` is its one real
implementation and `fake_compute.py` the one for tests and for trying the control plane without a cluster.
Every call may be repeated after any failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tide_core.contracts.errors import InvalidInputError


class ComputeRefusedError(InvalidInputError):
    """The cluster answers and refuses the request: asking again will not help."""

    code = "compute_refused"


class SubmissionStatus(StrEnum):
    """What the cluster says of a submitted job."""

    NOT_FOUND = "not_found"
    """The cluster does not know it, or forgot it with the head that ran it."""
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = frozenset({SubmissionStatus.SUCCEEDED, SubmissionStatus.FAILED, SubmissionStatus.STOPPED})


@dataclass(frozen=True, slots=True)
class Submission:
    """A process to start on the cluster.

    Attributes:
        submission_id: names it; submitting the same id again does nothing.
        entrypoint: shell command.
        environment: variables of the process.
        labels: what people see of it on the cluster.
    """

    submission_id: str
    entrypoint: str
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubmissionState:
    """How a submission stands.

    Attributes:
        status: see `SubmissionStatus`.
        message: the cluster's words, for people.
        exit_code: of the entrypoint; None while it runs or when it died with its node, negative or
            above 128 when a signal ended it.
    """

    status: SubmissionStatus
    message: str = ""
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it ran and has ended."""
        return self.status in ENDED

    @property
    def is_own_failure(self) -> bool:
        """Whether the process ended with an exit code, and not because its node went down.

        A process that was killed alone counts too: on a node that lives on, that was its use of memory.
        """
        return self.status is SubmissionStatus.FAILED and self.exit_code is not None

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended the process."""
        code = self.exit_code
        return code is not None and (code < 0 or code > 128)


class ApplicationStatus(StrEnum):
    """What the cluster says of a serving application."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    """It cannot start: its own code or model is at fault."""
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas an application has; another value keeps those that run.

    Attributes:
        minimum, maximum: bounds; with equal ones the number is fixed.
        policy: ``module:Class``, whose instances say how many replicas are wanted from what these measure;
            the head of the cluster imports it, so it must be installed there.
        arguments: JSON values for the class.
        up_after_seconds, down_after_seconds: how long more, or fewer, must be wanted before it is done.
    """

    minimum: int
    maximum: int
    policy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    up_after_seconds: float = 0.0
    down_after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Application:
    """A serving application as it should be.

    Attributes:
        name: unique in the cluster.
        import_path: ``module:builder`` that makes it from `arguments`.
        arguments: JSON values for the builder; another value restarts the replicas.
        deployment: the deployment whose size `scaling` sets.
        scaling: between how many replicas, and by what.
        node_labels: of the nodes that replicas may run on; empty is any node.
        environment: variables of the replicas.
    """

    name: str
    import_path: str
    arguments: Mapping[str, Any]
    deployment: str
    scaling: Scaling
    cpus_per_replica: float
    gpus_per_replica: float
    node_labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """How an application stands, and which one the cluster was asked for."""

    status: ApplicationStatus
    message: str = ""
    ready_replicas: int = 0
    wanted: Application | None = None
    """What the cluster was last asked to run; None when it cannot be read back."""

    @property
    def is_serving(self) -> bool:
        """Whether it answers: also while further replicas start or one of several is being replaced."""
        if self.status in (ApplicationStatus.STARTING, ApplicationStatus.UNHEALTHY):
            return self.ready_replicas > 0
        return self.status is ApplicationStatus.RUNNING


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """How large the living nodes are, together and the largest one; bytes, 0 without a GPU.

    Attributes:
        labels: of each node.
    """

    nodes: int
    cpus: float
    gpus: float
    largest_node_memory: int
    largest_gpu_memory: int
    labels: tuple[Mapping[str, str], ...] = ()

    def has_node(self, labels: Mapping[str, str]) -> bool:
        """Whether a living node carries all of these labels."""
        return any(labels.items() <= node.items() for node in self.labels)


class Compute(Protocol):
    """A cluster. Every method raises `ComputeUnavailableError` when the cluster does not answer."""

    async def ping(self) -> None:
        """Return when the cluster answers."""

    async def submit(self, submission: Submission) -> None:
        """Start a process; does nothing when its id is known already.

        Raises:
            ComputeRefusedError: the cluster will never take this submission.
        """

    async def status(self, submission_id: str) -> SubmissionState:
        """How a submission stands; NOT_FOUND rather than an exception when it is unknown."""

    async def stop(self, submission_id: str) -> None:
        """Ask a submission to end; does nothing when it is unknown or has ended."""

    async def logs(self, submission_id: str) -> str:
        """What a submission printed so far; empty when it is unknown."""

    async def put_applications(self, applications: Sequence[Application]) -> None:
        """Make these, and no other ones of Tide's, the applications that run.

        Applications that other programs deployed on the cluster stay as they are.
        """

    async def applications(self) -> dict[str, ApplicationState]:
        """All of Tide's applications that the cluster knows, by name."""

    async def resources(self) -> ClusterResources:
        """How large the cluster is."""

    async def close(self) -> None:
        """Give up connections."""
