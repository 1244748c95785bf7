"""One trainer: loads what training needs, trains, and on rank 0 exports. Runs in a Ray Train worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.reporting import STOPPED, AttemptBrief, CheckpointSaved, TeacherAttested
from tide_core.contracts.scores import Want
from tide_core.contracts.teacher import TeacherDescription, want_of
from tide_core.data.batches import training_plan
from tide_core.data.shards import PreparedDataset
from tide_core.evaluation.evaluator import STUDENT, name_measures
from tide_core.evaluation.held_out import add_nelbo, measure
from tide_core.evaluation.held_out_set import held_out_set
from tide_core.models.loading import lm_head_weight
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.collective import Alone, Collective, ProcessGroup
from tide_core.training.digest import spec_digest
from tide_core.training.distiller import Distillation, recipe_of_pair
from tide_core.training.precision import autocast_dtype
from tide_core.training.sharding import gather_student, shard
from workers.cluster import worker_threads
from workers.preparation.location import open_prepared
from workers.reporting.reporter import Reporter
from workers.reporting.trackers import open_reporter
from workers.scores.opening import open_transport
from workers.storage import materialise_model
from workers.student.checkpoint import CheckpointStore
from workers.student.export import export_student, model_card
from workers.student.loop import Outcome, Run, train
from workers.student.manifest import write_manifest

log = structlog.get_logger(__name__)


def train_on_worker(config: dict[str, str]) -> dict[str, Any] | None:
    """What Ray Train calls on every trainer; rank 0 gives the result of the phase."""
    import ray.train
    import ray.train.torch

    brief = AttemptBrief.model_validate_json(config["brief"])
    torch.set_num_threads(worker_threads(brief.spec.resources))
    device = ray.train.torch.get_device()
    size = ray.train.get_context().get_world_size()
    collective: Collective = ProcessGroup(device) if size > 1 else Alone()
    with ExitStack() as stack:
        reporter: Reporter | None = None
        if collective.rank == 0:
            reporter = stack.enter_context(open_reporter(brief))
        return run_trainer(brief, collective, device, reporter, open_transport(brief, stack, device))


def run_trainer(
    brief: AttemptBrief,
    collective: Collective,
    device: torch.device,
    reporter: Reporter | None,
    transport: ScoreTransport | None,
) -> dict[str, Any] | None:
    """Train the job's student on this trainer; without Ray, so that tests may call it.

    Args:
        brief: the attempt, with prepared data.
        collective: this trainer among the others.
        device: where the student computes.
        reporter: on rank 0 alone.
        transport: the way to the teacher, when a term asks it.

    Returns:
        On rank 0 the phase's result, elsewhere None.
    """
    began = time.monotonic()
    dataset = _dataset(brief)
    initial = materialise_model(brief.folder.initial)
    autocast = autocast_dtype(brief.spec.hyperparameters, device)
    student = _student(brief.spec, initial, device, autocast)
    teacher = _attest_teacher(transport, reporter)
    distillation = Distillation(
        spec=brief.spec,
        recipe=recipe_of_pair(
            brief.spec,
            dataset,
            student,
            initial,
            teacher_vocab=None if teacher is None else teacher.vocab_size,
            job_id=brief.job_id,
            lease=brief.teacher,
        ),
        plan=training_plan(dataset, brief.spec),
        student=student,
        teacher_head=_teacher_head(brief.spec, autocast or torch.float32, student.device),
        autocast=autocast,
        collective=collective,
    )
    run = Run(
        distillation=distillation,
        spec_digest=spec_digest(brief.spec, dataset.manifest.content_hash),
        transport=transport,
        reporter=reporter,
        store=CheckpointStore(brief.folder.checkpoints, brief.spec.checkpoints.keep),
        probe=_probe(brief.spec, dataset, student, initial),
    )
    ready = time.monotonic()
    log.info("training.ready", rank=collective.rank, device=str(device), seconds=ready - began)
    outcome = train(run)
    seconds = time.monotonic() - ready
    trained = None if outcome.is_stopped else gather_student(student, collective.rank)
    if reporter is None:
        return None
    if trained is None:
        return {STOPPED: True, "steps": outcome.state.step}
    fingerprint = teacher.fingerprint if teacher else None
    return _conclude(
        brief,
        replace(run, distillation=replace(distillation, student=trained)),
        outcome,
        reporter,
        device=str(device),
        fingerprint=fingerprint,
        seconds=seconds,
    )


def _student(
    spec: ResolvedJobSpec, folder: Path, device: torch.device, compute: torch.dtype | None
) -> BlockDiffusionStudent:
    """The student before training, whole or in parts on this trainer's device."""
    is_split = spec.resources.sharding == "fsdp"
    student = BlockDiffusionStudent.from_pretrained(
        folder, dtype=torch.float32, device="cpu" if is_split else device
    )
    if is_split:
        shard(student, device, compute)
    return student


def _conclude(
    brief: AttemptBrief,
    run: Run,
    outcome: Outcome,
    reporter: Reporter,
    *,
    device: str,
    fingerprint: str | None,
    seconds: float,
) -> dict[str, Any]:
    """Export, manifest and result, on rank 0; `run` holds the trained student in one piece."""
    steps = outcome.state.step
    location = brief.folder.model
    card = model_card(brief.spec, brief.job_id, steps=steps, teacher_fingerprint=fingerprint)
    # In what it was trained in: the numbers beyond bfloat16 mean nothing when the forward never saw them.
    autocast = run.distillation.autocast
    student = run.student.to(autocast or torch.float32)
    size = export_student(student, materialise_model(brief.folder.initial), location, card)
    reporter.send(CheckpointSaved(step=steps, location=location, bytes=size, is_export=True))
    facts = {
        "training": {
            "steps": steps,
            "seconds_of_this_attempt": seconds,
            "workers": run.distillation.collective.size,
            "sharding": brief.spec.resources.sharding,
            "device": device,
            "autocast": str(autocast).removeprefix("torch.") if autocast else "none",
            "spec_digest": run.spec_digest,
            "speeds": vars(outcome.speeds),
        },
        "teacher_fingerprint": fingerprint,
        "export": location,
    }
    write_manifest(brief, **facts)
    return {STOPPED: False, "steps": steps, "seconds": seconds, "export": location, "bytes": size}


def _dataset(brief: AttemptBrief) -> PreparedDataset:
    if brief.prepared is None:
        raise InvalidInputError(
            "This attempt has no prepared data: the prepare phase comes first.", param="prepared"
        )
    return open_prepared(brief.prepared)


def _probe(
    spec: ResolvedJobSpec, dataset: PreparedDataset, student: BlockDiffusionStudent, tokenizer: Path
) -> Callable[[BlockDiffusionStudent], dict[str, float]] | None:
    """The held-out measurement during training; the teacher is not asked for it."""
    if not spec.evaluation.enabled or spec.evaluation.every_steps is None or not len(dataset.held_out):
        return None
    samples = dataset.held_out[: spec.data.held_out.limit]
    held_out = held_out_set(spec, samples, tokenizer, student.mask_token_id)

    def probe(model: BlockDiffusionStudent) -> dict[str, float]:
        figures = measure(held_out, {STUDENT: model}, None)[STUDENT].figures()
        return name_measures(add_nelbo(figures))

    return probe


def _attest_teacher(transport: ScoreTransport | None, reporter: Reporter | None) -> TeacherDescription | None:
    """Ask the teacher who it is before the first question; later answers of another one are refused."""
    if transport is None:
        return None
    description = transport.describe()
    if reporter is not None:
        reporter.send(TeacherAttested(fingerprint=description.fingerprint))
    return description


def _teacher_head(spec: ResolvedJobSpec, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The frozen head that turns hidden states into logits, for a trainer that asks for them."""
    if want_of(spec) is not Want.HIDDEN:
        return None
    return lm_head_weight(materialise_model(spec.teacher.model, spec.teacher.revision), dtype).to(device)
