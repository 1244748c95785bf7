"""The train phase: one Ray Train run an attempt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tide_core.contracts.errors import TideError
from tide_core.contracts.reporting import AttemptBrief, Progress
from tide_core.contracts.states import Phase
from workers.cluster import (
    connect,
    lost_worker,
    own_error,
    worker_environment,
    worker_resources,
    worker_threads,
)
from workers.reporting.control import ControlPlane
from workers.reporting.trackers import open_reporter
from workers.student.initial import build_initial_student

TrainFunction = Callable[[dict[str, str]], dict[str, Any] | None]


def run_training(brief: AttemptBrief) -> dict[str, Any]:
    """Train on the cluster; the result is what rank 0 concluded.

    Raises:
        TideError: what a trainer raised; of several, the first that is ours.
    """
    with open_reporter(brief) as reporter:
        reporter.send(Progress(phase=Phase.TRAIN, stage="starting trainers", completed=0))
        build_initial_student(brief.spec, brief.folder)
    # From here on rank 0 speaks for the attempt; it starts from the numbers that are taken by now.
    control = ControlPlane.from_environment()
    current = control.fetch_brief()
    control.close()
    return fit(current)


def fit(brief: AttemptBrief, train: TrainFunction | None = None) -> dict[str, Any]:
    """Run Ray Train's workers for an attempt; the result is what rank 0 concluded.

    Args:
        brief: the attempt.
        train: what each worker calls with its configuration; without it the training.

    Raises:
        TideError: what a trainer raised; of several, the first that is ours.
    """
    # Ray Train looks after its workers every two seconds by default, and reads this when it is imported; a
    # short run would wait for the last look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Tide does not act on a node's notice that it is about to go: one process fewer to start for each run.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    connect()
    resources = brief.spec.resources
    with tempfile.TemporaryDirectory(prefix="tide-ray-train-") as scratch:
        trainer = TorchTrainer(
            train or _train,
            train_loop_config={"brief": brief.model_dump_json()},
            torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.student_workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=worker_resources(resources),
                label_selector=brief.node_labels or None,
            ),
            run_config=RunConfig(
                # States are saved by our own store, so Ray's folder holds nothing that must last.
                name=f"{brief.job_id}-{brief.attempt}",
                storage_path=str(Path(scratch)),
                # A lost attempt is the reconciler's to repeat, a node that was taken away included: by itself
                # Ray Train would begin the run again within the attempt, without end.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                worker_runtime_env=worker_environment(worker_threads(resources)),
            ),
        )
        try:
            result = trainer.fit()
        except Exception as error:
            raise own_error(error) or lost_worker(error) or error from error
    if not isinstance(result.return_value, dict):
        raise TideError("The first trainer ended without a result.", code="no_training_result")
    return result.return_value


def _train(config: dict[str, str]) -> dict[str, Any] | None:
    """What Ray Train calls; Ray's controller reads it too, and has no need of what a trainer imports."""
    from workers.student.worker import train_on_worker

    return train_on_worker(config)
