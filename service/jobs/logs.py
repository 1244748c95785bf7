"""A job's log, fetched from the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.dependencies import LogSource
from service.jobs.tables import PhaseRunRow
from tide_core.contracts.errors import ComputeUnavailableError, NotFoundError
from tide_core.contracts.states import Phase, submission_id


async def job_log(
    source: LogSource | None, runs: Sequence[PhaseRunRow], phase: Phase | None, tail: int
) -> str:
    """The last lines of what a phase printed.

    Args:
        source: keeps the log; None without a cluster.
        runs: the phases of one attempt, in the order in which they began.
        phase: which one; None for the latest.
        tail: at most so many lines.

    Raises:
        NotFoundError: ``log_not_found``: no such phase has begun.
        ComputeUnavailableError: the cluster does not answer.
    """
    chosen = [run for run in runs if phase is None or run.phase is phase]
    if not chosen:
        raise NotFoundError("No such phase of this attempt has begun; it has no log.", code="log_not_found")
    if source is None:
        raise ComputeUnavailableError("This control plane is not connected to a cluster.")
    run = chosen[-1]
    text = await source.logs(submission_id(run.job_id, run.attempt, run.phase))
    return "".join(text.splitlines(keepends=True)[-tail:])
