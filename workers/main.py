"""Entry of every Ray job: `python -m workers.main`.

In: the address of the control plane and the token of one attempt and phase, in the environment. Out: the
phase's work, a last report on how it ended, and an exit status.

It asks the control plane which phase to run, runs it, and reports how it ended. A phase reports by itself
while it works (see `workers.reporting`); only its last report is sent from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import structlog

from tide_core.contracts.errors import InvalidInputError, RetryableScoreError, TideError
from tide_core.contracts.reporting import AnyReport, AttemptBrief, Failed, Finished
from tide_core.contracts.states import Phase
from tide_core.tracing import (
    ATTEMPT_ATTRIBUTE,
    ENV_TRACEPARENT,
    ENV_TRACING_ENDPOINT,
    JOB_ATTRIBUTE,
    Attribute,
    Tracing,
)
from workers.cluster import WorkerLostError
from workers.reporting.control import AttemptFencedError, ControlPlane
from workers.reporting.trackers import open_reporter

log = structlog.get_logger(__name__)

CLOSING_SECONDS = 120.0
RETRYABLE = (RetryableScoreError, WorkerLostError)

PhaseFunction = Callable[[AttemptBrief], dict[str, Any]]


def main() -> int:
    """Run the phase of this Ray job; the exit code says whether it ended well."""
    try:
        control = ControlPlane.from_environment()
        brief = control.fetch_brief()
        control.close()
    except InvalidInputError as error:
        print(error.message, file=sys.stderr)
        return 2
    except AttemptFencedError as error:
        log.warning("attempt.fenced", reason=error.message)
        return 1
    structlog.contextvars.bind_contextvars(
        job_id=brief.job_id, attempt=brief.attempt, phase=brief.phase.value
    )
    tracing = _open_tracing()
    facts: dict[str, Attribute] = {JOB_ATTRIBUTE: brief.job_id, ATTEMPT_ATTRIBUTE: brief.attempt}
    with tracing.span(
        f"phase {brief.phase}", parent=os.environ.get(ENV_TRACEPARENT), kind="consumer", attributes=facts
    ) as span:
        last_report = run_phase(brief, phase_function(brief.phase))
        if span is not None and isinstance(last_report, Failed):
            span.fail(f"{last_report.code}: {last_report.message}")
        with tracing.span("deliver the last report"):
            deliver_last(last_report)
    tracing.close()
    return 0 if isinstance(last_report, Finished) else 1


def _open_tracing() -> Tracing:
    """Tracing as the control plane asked for it; off where the packages are not installed."""
    endpoint = os.environ.get(ENV_TRACING_ENDPOINT)
    try:
        return Tracing("tide-worker", endpoint)
    except InvalidInputError as error:
        log.warning("tracing.off", reason=error.message)
        return Tracing("tide-worker", None)


def phase_function(phase: Phase) -> PhaseFunction:
    """What does the work of a phase; imported when it is needed, since start-up time counts."""
    match phase:
        case Phase.PREPARE:
            from workers.preparation.driver import run_preparation

            return run_preparation
        case Phase.TRAIN:
            from workers.student.driver import run_training

            return run_training
        case Phase.EVALUATE:
            from workers.evaluation.driver import run_evaluation

            return run_evaluation


def run_phase(brief: AttemptBrief, function: PhaseFunction) -> Finished | Failed:
    """The phase's outcome; traces go to the job's log and never to users."""
    try:
        return Finished(result=function(brief))
    except TideError as error:
        log.error("phase.failed", code=error.code, param=error.param, reason=error.message, exc_info=True)
        return Failed(code=error.code, message=error.message, retryable=isinstance(error, RETRYABLE))
    except Exception as error:
        log.error("phase.crashed", kind=type(error).__name__, exc_info=True)
        return Failed(
            code="internal_error",
            message="The worker met an unexpected error; the job's log has the details.",
            retryable=True,
        )


def deliver_last(report: AnyReport) -> None:
    """Deliver the last report. The brief is fetched again: the phase has used up sequence numbers."""
    try:
        control = ControlPlane.from_environment()
        with open_reporter(control.fetch_brief(), control) as reporter:
            reporter.send(report)
            if not reporter.flush(CLOSING_SECONDS):
                log.error("phase.unheard", report=report.model_dump(mode="json"))
    except TideError as error:
        log.error("phase.unheard", reason=error.message, report=report.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(main())
