"""The kinds of applications that Tide puts on Ray Serve: what its control plane and its workers agree on.

In: nothing. Out: one `ApplicationKind` for each kind. The control plane deploys by it
(`service/orchestrator/pools.py`), the workers build by it (`workers/applications.py`). Import paths, names
and arguments of a running application must not change: Serve replaces its replicas when they do.

A new kind is an entry of `APPLICATION_KINDS` with a contract for its arguments, and a module of `workers`
with its `build` and its replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tide_core.contracts.base import Contract
from tide_core.contracts.teacher import TEACHER_DEPLOYMENT, TEACHER_PREFIX, TeacherPool

Arguments = TypeVar("Arguments", bound=Contract)

_STORAGE = "storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationKind(Generic[Arguments]):
    """One kind of application.

    Attributes:
        prefix: how the names of its applications begin.
        import_path: ``module:builder``, which Serve imports and calls with the application's arguments.
        deployment: name of the one deployment in it.
        scaling_policy: ``module:class``, which Serve asks for the number of replicas.
        arguments: the contract of what the builder takes.
        environment: variables of its replicas, beside those of every process that computes.
        max_ongoing_requests: that Serve hands to a replica at once.
        max_queued_requests: that wait in each client's process, beyond those; one more is refused.
        health_check_period_seconds: between two calls of a replica's ``check_health``.
        health_check_timeout_seconds: after which a check that does not answer has failed.
    """

    prefix: str
    import_path: str
    deployment: str
    scaling_policy: str
    arguments: type[Arguments]
    environment: dict[str, str] = field(default_factory=dict)
    max_ongoing_requests: int
    max_queued_requests: int
    health_check_period_seconds: float
    health_check_timeout_seconds: float

    def pack(self, arguments: Arguments, storage: str) -> dict[str, Any]:
        """The JSON values that the builder gets, with the root of the storage."""
        return arguments.model_dump(mode="json") | {_STORAGE: storage}

    def unpack(self, packed: Mapping[str, Any]) -> Arguments:
        """What `pack` was given; the storage may be missing.

        Raises:
            pydantic.ValidationError: these are not this kind's arguments.
        """
        return self.arguments.model_validate(
            {name: value for name, value in packed.items() if name != _STORAGE}
        )


TEACHERS = ApplicationKind(
    prefix=TEACHER_PREFIX,
    import_path="workers.teachers.app:build",
    deployment=TEACHER_DEPLOYMENT,
    scaling_policy="workers.teachers.scaling:QueueDelayPolicy",
    arguments=TeacherPool,
    environment={
        # Scoring is asynchronous and never holds up the event loop, so it needs no thread of its own; the hop
        # to it and back costs every request a fifth of a millisecond.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    },
    # The engine batches what is there and refuses what is too much, so Serve should let requests through.
    max_ongoing_requests=512,
    max_queued_requests=1024,
    # A check costs nothing, and a replica that died is missed only at the next one.
    health_check_period_seconds=2.0,
    health_check_timeout_seconds=60.0,
)
"""A teacher's pool: answers score requests of all jobs that lease it."""

APPLICATION_KINDS: tuple[ApplicationKind[Any], ...] = (TEACHERS,)


def is_ours(application: str) -> bool:
    """Whether an application on the cluster is one of Tide's, by its name."""
    return application.startswith(tuple(kind.prefix for kind in APPLICATION_KINDS))
