"""The pool keeper's pass: the cluster runs the teachers that jobs lease, and SQL says how they are.

In: pools and leases in SQL, and the applications that the cluster knows. Out: the set of applications that it
should run, and each pool's state. `pools` decides; the reconciler calls the pass at the end of each look.

Locks: none while the cluster is asked; the states are written in one transaction that holds the leader's
row.
Invariant: a pool runs while a job holds a lease on it, and lingers for a bounded time after; a set is put
only where it differs from what the cluster was last asked for, so running replicas are not restarted.
Failures: the cluster does not answer: the pass ends, and the next look begins it again. It lost all pools:
the leased ones are put again. Another control plane leads: nothing is written. No node fits: the pool's
message says which label is missing, and its jobs wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from service.clock import utc_now
from service.db.session import Database
from service.orchestrator import leadership, pools, snapshots
from service.orchestrator.compute import Application, ApplicationState, Compute
from service.orchestrator.leadership import Leadership
from service.settings import Settings
from service.teachers import repository as teachers
from service.teachers import service as teacher_service
from service.teachers.tables import TeacherRow
from tide_core.contracts.placement import Purpose
from tide_core.contracts.teacher import PoolState

_LONGEST_MESSAGE = 2000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Change:
    """What SQL should say of a pool."""

    application: str
    state: PoolState
    message: str | None
    ready_replicas: int


class PoolKeeper:
    """One pass over all pools."""

    def __init__(self, database: Database, compute: Compute, settings: Settings) -> None:
        self._database = database
        self._compute = compute
        self._rules = pools.PoolRules(
            storage=settings.resolved_storage,
            linger=timedelta(seconds=settings.teacher_linger_seconds),
            queue_delay_seconds=settings.teacher_queue_delay_seconds,
            grow_after_seconds=settings.teacher_grow_seconds,
            shrink_after_seconds=settings.teacher_shrink_seconds,
            node_labels=settings.node_labels(Purpose.TEACHER),
        )

    async def sync(self, held: Leadership) -> None:
        """Deploy what is wanted, take down what is not, record the states.

        Raises:
            ComputeUnavailableError: the cluster does not answer.
            LeadershipLostError: another control plane took over.
        """
        async with self._database.read() as session:
            known = await snapshots.read_pools(session)
        if not known:
            return  # never start the serving system of a cluster that needs no teacher
        observed = await self._compute.applications()
        wanted = pools.choose_applications(known, observed, now=utc_now(), rules=self._rules)
        if pools.must_put(wanted, observed):
            log.info("teachers.deploy", applications=[application.name for application in wanted])
            await self._compute.put_applications(wanted)
            observed = await self._compute.applications()
        await self._record(wanted, observed, held)

    async def _missing_node(
        self, wanted: Sequence[Application], observed: Mapping[str, ApplicationState]
    ) -> str | None:
        """Why pools that do not serve cannot start anywhere; None when they can, or all of them serve."""
        states = [observed.get(application.name) for application in wanted]
        if not self._rules.node_labels or all(state and state.is_serving for state in states):
            return None
        return pools.explain_missing_node(
            self._rules.node_labels, await self._compute.resources(), "a teacher"
        )

    async def _record(
        self, wanted: Sequence[Application], observed: Mapping[str, ApplicationState], held: Leadership
    ) -> None:
        names = {application.name for application in wanted}
        missing = await self._missing_node(wanted, observed)
        async with self._database.read() as session:
            rows = await teachers.all_pools(session)
        changes = [
            _change(row, observed.get(row.application), row.application in names, missing) for row in rows
        ]
        pending = [change for change in changes if change is not None]
        if not pending:
            return
        async with self._database.write() as session:
            await leadership.check(session, held)
            for change in pending:
                await teacher_service.set_state(
                    session,
                    change.application,
                    change.state,
                    message=change.message,
                    ready_replicas=change.ready_replicas,
                )


def _change(
    row: TeacherRow, state: ApplicationState | None, is_wanted: bool, missing: str | None
) -> _Change | None:
    is_serving = state is not None and state.is_serving
    said = state.message if state else ""
    message = missing if missing is not None and is_wanted and not is_serving else said
    new = _Change(
        application=row.application,
        state=pools.pool_state(state, is_desired=is_wanted),
        message=message[:_LONGEST_MESSAGE] or None,
        ready_replicas=state.ready_replicas if state else 0,
    )
    old = _Change(row.application, row.state, row.message, row.ready_replicas)
    return None if new == old else new
