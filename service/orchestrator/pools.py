"""Which teacher applications should run, and what their state means for the pools in SQL. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.orchestrator.compute import (
    Application,
    ApplicationState,
    ApplicationStatus,
    ClusterResources,
    Scaling,
)
from tide_core.contracts.environment import compute_environment
from tide_core.contracts.serving import TEACHERS
from tide_core.contracts.teacher import PoolState, TeacherPool


@dataclass(frozen=True, slots=True)
class LeasedReplicas:
    """How many replicas a live lease asks for, and up to how many it lets the pool grow."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool as SQL knows it.

    Attributes:
        leases: what each live lease asks for; empty when no job holds one.
        last_used_at: when the last lease was taken or given back.
    """

    pool: TeacherPool
    leases: tuple[LeasedReplicas, ...]
    last_used_at: datetime


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What holds for all pools.

    Attributes:
        storage: root of the storage.
        linger: how long a pool that works stays up after its last lease.
        queue_delay_seconds: mean wait of requests above which a pool grows, where it may.
        grow_after_seconds, shrink_after_seconds: how long that, or its opposite, must last.
        node_labels: of the nodes that teachers may run on; empty is any node.
    """

    storage: str
    linger: timedelta
    queue_delay_seconds: float
    grow_after_seconds: float
    shrink_after_seconds: float
    node_labels: Mapping[str, str] = field(default_factory=dict)


def is_wanted(
    snapshot: PoolSnapshot, state: ApplicationState | None, now: datetime, rules: PoolRules
) -> bool:
    """A pool is wanted while leased, and for a while longer if it serves: the next job may need it.

    A pool that does not serve has nothing to keep warm: without a lease it is not started again after the
    cluster lost it.
    """
    if snapshot.leases:
        return True
    is_serving = state is not None and state.is_serving
    return is_serving and now - snapshot.last_used_at < rules.linger


def choose_applications(
    pools: Sequence[PoolSnapshot],
    observed: Mapping[str, ApplicationState],
    *,
    now: datetime,
    rules: PoolRules,
) -> list[Application]:
    """The applications that should run, by name."""
    wanted = [pool for pool in pools if is_wanted(pool, observed.get(pool.pool.application), now, rules)]
    made = [_application(pool, observed.get(pool.pool.application), rules) for pool in wanted]
    return sorted(made, key=lambda application: application.name)


def must_put(applications: Sequence[Application], observed: Mapping[str, ApplicationState]) -> bool:
    """Whether the cluster was asked for anything else than these."""
    asked = {
        name: state.wanted
        for name, state in observed.items()
        if state.status is not ApplicationStatus.DELETING
    }
    return asked != {application.name: application for application in applications}


def pool_state(state: ApplicationState | None, *, is_desired: bool) -> PoolState:
    """What an application's state means for its pool."""
    if state is None or state.status is ApplicationStatus.ABSENT:
        return PoolState.STARTING if is_desired else PoolState.STOPPED
    if not is_desired or state.status is ApplicationStatus.DELETING:
        return PoolState.STOPPING if not is_desired else PoolState.STARTING
    if state.is_serving:
        return PoolState.READY
    if state.status is ApplicationStatus.STARTING:
        return PoolState.STARTING
    return PoolState.UNHEALTHY


def explain_missing_node(labels: Mapping[str, str], cluster: ClusterResources, what: str) -> str | None:
    """Why no node may run something that asks for labels; None when one may. A cluster may grow later."""
    if not labels or cluster.has_node(labels):
        return None
    wanted = ", ".join(f"{name}={value}" for name, value in labels.items())
    return (
        f"No node of the cluster carries the label {wanted}, which {what} needs: add such a node (a worker "
        "group of this purpose, or 'ray start --labels'), or turn 'place_by_purpose' off."
    )


def _application(snapshot: PoolSnapshot, running: ApplicationState | None, rules: PoolRules) -> Application:
    pool = snapshot.pool
    before = running.wanted if running is not None else None
    # Other CPUs or GPUs a replica would restart the replicas under the jobs that use them: the lease that
    # brought the pool up decides. The number of replicas follows the leases.
    cpus = before.cpus_per_replica if before else pool.cpus_per_replica
    gpus = before.gpus_per_replica if before else pool.gpus_per_replica
    return Application(
        name=pool.application,
        import_path=TEACHERS.import_path,
        arguments=_arguments(pool, cpus, gpus, rules.storage),
        deployment=TEACHERS.deployment,
        scaling=_scaling(snapshot.leases, before, rules),
        cpus_per_replica=cpus,
        gpus_per_replica=gpus,
        node_labels=rules.node_labels,
        environment=compute_environment(int(cpus)) | TEACHERS.environment,
    )


def _scaling(leases: Sequence[LeasedReplicas], before: Application | None, rules: PoolRules) -> Scaling:
    # An idle pool keeps its bounds: within them it shrinks by itself, and the next job finds it as it was.
    idle = (before.scaling.minimum, before.scaling.maximum) if before else (1, 1)
    minimum = max((lease.minimum for lease in leases), default=idle[0])
    return Scaling(
        minimum=minimum,
        maximum=max(minimum, max((lease.maximum for lease in leases), default=idle[1])),
        policy=TEACHERS.scaling_policy,
        arguments={"target_seconds": rules.queue_delay_seconds},
        up_after_seconds=rules.grow_after_seconds,
        down_after_seconds=rules.shrink_after_seconds,
    )


def _arguments(pool: TeacherPool, cpus: float, gpus: float, storage: str) -> dict[str, Any]:
    # Always one replica here: the size is set beside the arguments, whose change would restart them all.
    constant = pool.model_copy(update={"replicas": 1, "cpus_per_replica": cpus, "gpus_per_replica": gpus})
    return TEACHERS.pack(constant, storage)
