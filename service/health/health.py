"""Is everything there that the control plane needs?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import get_args

from sqlalchemy import text

from service.health.sources import Sources
from tide_core.contracts.resources import Check, CheckName, Readiness

ALL_CHECKS: frozenset[CheckName] = frozenset(get_args(CheckName))
_PATIENCE_SECONDS = 5.0
_RECONCILER_PATIENCE_SECONDS = 30.0


async def readiness(sources: Sources, wanted: frozenset[CheckName] = ALL_CHECKS) -> Readiness:
    """Look at the database, the reconciler and the cluster (or some of them), at the same time."""
    probes: dict[CheckName, Callable[[Sources], Awaitable[str | None]]] = {
        "database": _database_answers,
        "reconciler": _reconciler_works,
        "ray": _ray_answers,
    }
    looks = [_check(name, probe(sources)) for name, probe in probes.items() if name in wanted]
    checks = list(await asyncio.gather(*looks))
    is_ready = all(check.is_ready for check in checks)
    return Readiness(status="ready" if is_ready else "not_ready", checks=checks)


async def _check(name: CheckName, probe: Awaitable[str | None]) -> Check:
    try:
        problem = await asyncio.wait_for(probe, _PATIENCE_SECONDS)
    except TimeoutError:
        problem = f"no answer within {_PATIENCE_SECONDS:g} seconds"
    except Exception as error:  # whatever it is, readiness reports it instead of failing itself
        problem = f"{type(error).__name__}: {error}"
    return Check(name=name, is_ready=problem is None, message=problem)


async def _database_answers(sources: Sources) -> str | None:
    async with sources.database.read() as session:
        await session.execute(text("SELECT 1"))
    return None


async def _reconciler_works(sources: Sources) -> str | None:
    if sources.loop is None:
        return "this control plane runs no reconciler"
    silence = sources.loop.seconds_since_look
    patience = max(_RECONCILER_PATIENCE_SECONDS, 10 * sources.look_interval_seconds)
    return None if silence < patience else f"its last look ended {silence:.0f} seconds ago"


async def _ray_answers(sources: Sources) -> str | None:
    if sources.cluster is None:
        return "this control plane is not connected to a cluster"
    await sources.cluster.ping()
    return None
