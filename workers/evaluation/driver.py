"""The evaluate phase: on a worker with the resources of a trainer, never on the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tide_core.contracts.reporting import AttemptBrief
from workers.cluster import connect, lost_worker, own_error, worker_environment, worker_threads

EvaluateFunction = Callable[[str], dict[str, Any]]


def run_evaluation(brief: AttemptBrief, evaluate: EvaluateFunction | None = None) -> dict[str, Any]:
    """Evaluate on the cluster; the result is the report.

    Args:
        brief: the attempt.
        evaluate: what the worker calls with the brief as JSON; without it the evaluation.

    Raises:
        TideError: what the evaluation raised.
    """
    import ray

    connect()
    resources = brief.spec.resources
    task = ray.remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        label_selector=brief.node_labels or None,
        # A lost task is a lost attempt, and that is the reconciler's to repeat.
        max_retries=0,
        runtime_env=worker_environment(worker_threads(resources)),
    )(evaluate or _evaluate)
    try:
        report: dict[str, Any] = ray.get(task.remote(brief.model_dump_json()))
    except Exception as error:
        raise own_error(error) or lost_worker(error) or error from error
    return report


def _evaluate(brief_json: str) -> dict[str, Any]:
    from workers.evaluation.worker import evaluate_on_worker

    return evaluate_on_worker(AttemptBrief.model_validate_json(brief_json))
