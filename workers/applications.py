"""What all applications on Ray Serve have in common: from a kind and its replica's class to what Serve runs.

In: an `ApplicationKind` of the contracts, the class of its replicas and their size. Out: the application that
the kind's ``build`` gives to Serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from tide_core.contracts.serving import ApplicationKind

if TYPE_CHECKING:
    from ray.serve import Application


class Replica(Protocol):
    """What Serve calls on every replica, beside what its clients call."""

    async def check_health(self) -> None:
        """Called every few seconds; an exception replaces the replica."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called every few seconds: the figures that the kind's scaling policy reads."""


def make_application(
    kind: ApplicationKind[Any],
    replica: type[Replica],
    *arguments: object,
    replicas: int = 1,
    cpus: float,
    gpus: float = 0.0,
) -> Application:
    """The application of one deployment, with the kind's settings.

    Args:
        kind: which one.
        replica: class of the replicas.
        arguments: of its constructor.
        replicas: how many, unless the deployed configuration says otherwise.
        cpus: of each replica.
        gpus: of each replica.
    """
    from ray import serve

    deployment: Any = serve.deployment(
        replica,
        name=kind.deployment,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=kind.max_ongoing_requests,
        max_queued_requests=kind.max_queued_requests,
        health_check_period_s=kind.health_check_period_seconds,
        health_check_timeout_s=kind.health_check_timeout_seconds,
        # A line a request would be a line a training step.
        logging_config={"enable_access_log": False},
    )
    application: Application = deployment.bind(*arguments)
    return application
