"""A job's log, fetched from the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from service.jobs.tables import PhaseRunRow
from service.orchestrator.compute import Compute, ComputeUnavailableError
from tide_core.contracts.errors import NotFoundError
from tide_core.contracts.states import Phase, submission_id


async def job_log(
    compute: Compute | None, runs: Sequence[PhaseRunRow], phase: Phase | None, tail: int
) -> str:
    """The last lines of what a phase printed.

    Args:
        compute: the cluster that ran it.
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
    if compute is None:
        raise ComputeUnavailableError("This control plane is not connected to a cluster.")
    run = chosen[-1]
    text = await compute.logs(submission_id(run.job_id, run.attempt, run.phase))
    return "".join(text.splitlines(keepends=True)[-tail:])
