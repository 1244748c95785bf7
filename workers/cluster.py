"""What the phases ask of Ray: to connect, resources and environment of a process, and what an error means."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from tide_core.contracts.environment import ALLOCATOR_ENVIRONMENT, compute_environment
from tide_core.contracts.errors import TideError
from tide_core.contracts.job import Resources
from tide_core.contracts.reporting import NODE_LOST

NODE_DIED = "its node has died"
"""Ray's own words in an actor's error, which says in no other way that the node died with the actor. A test
looks for them in the installed Ray."""


class WorkerLostError(TideError):
    """A process that worked for this phase is gone (a node, memory, a kill): another try may work."""

    code = "worker_lost"


class NodeLostError(WorkerLostError):
    """A whole node is gone with the processes on it: not the job's fault."""

    code = NODE_LOST


def connect() -> None:
    """Join the cluster that this Ray job runs on (once a process)."""
    import ray

    if not ray.is_initialized():
        # A Ray job has RAY_ADDRESS in its environment; elsewhere a local cluster is started.
        ray.init(log_to_driver=True, logging_level=logging.WARNING, configure_logging=False)


def own_error(error: BaseException) -> TideError | None:
    """The `TideError` that Ray wrapped, or None when there is none."""
    return next((found for found in _unwrap(error) if isinstance(found, TideError)), None)


def lost_worker(error: BaseException) -> WorkerLostError | None:
    """The loss of a process that Ray reports, as an error of Tide; None when the error is something else."""
    from ray.exceptions import RayError, RayTaskError

    # A RayTaskError is an exception of our own code; every other error of Ray is a process or a node.
    losses = [
        found
        for found in _unwrap(error)
        if isinstance(found, RayError) and not isinstance(found, RayTaskError)
    ]
    if any(_is_nodes_death(loss) for loss in losses):
        return NodeLostError("A worker of this phase was lost: its node went away or cannot be reached.")
    if losses:
        return WorkerLostError(
            f"A worker of this phase was lost ({type(losses[0]).__name__}): its memory ran out, or it was "
            "killed."
        )
    return None


def _is_nodes_death(loss: BaseException) -> bool:
    from ray.exceptions import ActorUnavailableError, NodeDiedError, RayActorError

    if isinstance(loss, RayActorError) and loss.preempted:  # the node's owner had announced its end
        return True
    # Unavailable: the connection broke, and no report of the process's death came for a second. A node that
    # lives sends one at once.
    is_unheard = isinstance(loss, (NodeDiedError, ActorUnavailableError))
    return is_unheard or NODE_DIED in str(loss)


def _unwrap(error: BaseException) -> Iterator[BaseException]:
    """An error with everything that Ray and Python wrapped in it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None) or {}
        # Ray Train finds most losses when it checks a worker's health, and wraps the loss once more.
        checked = getattr(current, "health_check_failure", None)
        waiting += [*failures.values(), getattr(current, "cause", None), checked, current.__cause__]


def worker_threads(resources: Resources) -> int:
    """Intra-op threads of one trainer."""
    return resources.threads_per_worker or max(1, int(resources.cpus_per_worker))


def worker_resources(resources: Resources) -> dict[str, float]:
    """What one trainer takes of the cluster, in Ray's names."""
    wanted = {"CPU": resources.cpus_per_worker}
    return wanted | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})


def worker_environment(threads: int) -> dict[str, Any]:
    """Ray's runtime environment of a process that computes.

    An allocator setting of this process's own environment, which the cluster's owner may have set, is kept.
    """
    kept = {name: os.environ[name] for name in ALLOCATOR_ENVIRONMENT if name in os.environ}
    return {"env_vars": compute_environment(threads) | kept}
