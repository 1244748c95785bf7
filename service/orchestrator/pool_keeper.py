"""Makes the wanted teachers the ones that the cluster runs, and notes in SQL how they are."""

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
        self._settings = settings

    async def sync(self, held: Leadership) -> None:
        """Deploy what is wanted, take down what is not, record the states.

        Raises:
            ComputeUnavailableError: the cluster does not answer.
            LeadershipLostError: another control plane took over.
        """
        async with self._database.read() as session:
            known = await snapshots.of_pools(session)
        if not known:
            return  # never start the serving system of a cluster that needs no teacher
        observed = await self._compute.applications()
        wanted = pools.desired(
            known,
            observed,
            now=utc_now(),
            linger=timedelta(seconds=self._settings.teacher_linger_seconds),
            storage=self._settings.resolved_storage,
        )
        if pools.must_put(wanted, observed):
            log.info("teachers.deploy", applications=[application.name for application in wanted])
            await self._compute.put_applications(wanted)
            observed = await self._compute.applications()
        await self._record(wanted, observed, held)

    async def _record(
        self, wanted: Sequence[Application], observed: Mapping[str, ApplicationState], held: Leadership
    ) -> None:
        names = {application.name for application in wanted}
        async with self._database.read() as session:
            rows = await teachers.all_pools(session)
        changes = [_change(row, observed.get(row.application), row.application in names) for row in rows]
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


def _change(row: TeacherRow, state: ApplicationState | None, is_wanted: bool) -> _Change | None:
    new = _Change(
        application=row.application,
        state=pools.pool_state(state, is_desired=is_wanted),
        message=(state.message[:_LONGEST_MESSAGE] or None) if state else None,
        ready_replicas=state.ready_replicas if state else 0,
    )
    old = _Change(row.application, row.state, row.message, row.ready_replicas)
    return None if new == old else new
