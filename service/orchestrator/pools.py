"""Which teacher applications should run, and what their state means for the pools in SQL. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from service.orchestrator.compute import Application, ApplicationState, ApplicationStatus
from service.orchestrator.environment import compute_environment
from tide_core.contracts.teacher import TEACHER_DEPLOYMENT, PoolState, TeacherPool

IMPORT_PATH = "workers.teachers.app:build"
"""What Ray Serve imports to build a teacher's application."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool as SQL knows it.

    Attributes:
        leased_replicas: what each live lease asks for; empty when nobody holds one.
        last_used_at: when the last lease was taken or given back.
    """

    pool: TeacherPool
    state: PoolState
    leased_replicas: tuple[int, ...]
    last_used_at: datetime


def is_wanted(snapshot: PoolSnapshot, *, now: datetime, linger: timedelta) -> bool:
    """A pool is wanted while leased, and for a while longer if it works: the next job may want it."""
    if snapshot.leased_replicas:
        return True
    return snapshot.state is PoolState.READY and now - snapshot.last_used_at < linger


def desired(
    pools: Sequence[PoolSnapshot],
    observed: Mapping[str, ApplicationState],
    *,
    now: datetime,
    linger: timedelta,
    storage: str,
) -> list[Application]:
    """The applications that should run, by name."""
    wanted = [snapshot for snapshot in pools if is_wanted(snapshot, now=now, linger=linger)]
    made = [_application(snapshot, observed, storage) for snapshot in wanted]
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


def _application(
    snapshot: PoolSnapshot, observed: Mapping[str, ApplicationState], storage: str
) -> Application:
    pool = snapshot.pool
    running = observed.get(pool.application)
    before = running.wanted if running is not None else None
    # Other CPUs or GPUs a replica would restart the replicas under the jobs that use them: the lease that
    # brought the pool up decides. The number of replicas follows the leases.
    cpus = before.cpus_per_replica if before else pool.cpus_per_replica
    gpus = before.gpus_per_replica if before else pool.gpus_per_replica
    idle = before.replicas if before else 1
    return Application(
        name=pool.application,
        import_path=IMPORT_PATH,
        arguments=_arguments(pool, cpus, gpus, storage),
        deployment=TEACHER_DEPLOYMENT,
        replicas=max(snapshot.leased_replicas, default=idle),
        cpus_per_replica=cpus,
        gpus_per_replica=gpus,
        environment=compute_environment(int(cpus)),
    )


def _arguments(pool: TeacherPool, cpus: float, gpus: float, storage: str) -> dict[str, Any]:
    # Always one replica here: the size is set beside the arguments, whose change would restart them all.
    constant = pool.model_copy(update={"replicas": 1, "cpus_per_replica": cpus, "gpus_per_replica": gpus})
    return constant.model_dump(mode="json") | {"storage": storage}
