"""The evaluation itself: loads start, student and the way to the teacher, measures, writes the report.

In: an attempt's brief and the trained student in storage. Out: `report.json`, `sequences.npz`, and reports of
the held-out figures. What is measured is the evaluators' (`tide_core/evaluation/registry.py`).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.reporting import AttemptBrief, Metrics, TeacherAttested
from tide_core.contracts.scores import Layout
from tide_core.contracts.states import Phase
from tide_core.data.shards import PreparedDataset
from tide_core.evaluation.evaluator import START, STUDENT, Findings, Scene, name_measures
from tide_core.evaluation.registry import evaluators_of
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.models.loading import lm_head_weight
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.precision import autocast_dtype
from workers.cluster import worker_threads
from workers.evaluation.report import build_report, training_facts, write_report
from workers.preparation.location import open_prepared
from workers.reporting.reporter import ProgressMeter, Reporter
from workers.reporting.trackers import open_reporter
from workers.scores.opening import open_transport
from workers.storage import materialise_model


def evaluate_on_worker(brief: AttemptBrief) -> dict[str, Any]:
    """The whole phase in a Ray task: connects to control plane and teacher, and evaluates."""
    torch.set_num_threads(worker_threads(brief.spec.resources))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as stack:
        reporter = stack.enter_context(open_reporter(brief))
        return evaluate(brief, device, reporter, open_transport(brief, stack, device))


def evaluate(
    brief: AttemptBrief, device: torch.device, reporter: Reporter, transport: ScoreTransport | None
) -> dict[str, Any]:
    """Run the evaluators that the job asks for, report, and write the report; without Ray, for tests too.

    Args:
        brief: the attempt, with prepared data and an exported model.
        device: where the students compute.
        reporter: hears progress and the figures.
        transport: the way to the teacher, or None to leave it out.
    """
    began = time.monotonic()
    dataset = _open_dataset(brief)
    scene = _set_scene(brief, dataset, device, transport)
    if transport is not None:
        reporter.send(TeacherAttested(fingerprint=transport.describe().fingerprint))
    findings: dict[str, Findings] = {}
    for evaluator in evaluators_of(brief.spec):
        meter = ProgressMeter(reporter, Phase.EVALUATE, evaluator.stage, None, unit=evaluator.unit)
        findings[evaluator.name] = evaluator.run(scene, meter.update)
    report = build_report(brief, findings, _sizes(scene, dataset, transport))
    report["seconds"] = time.monotonic() - began
    write_report(brief, report, findings)
    measures = {measure: value for found in findings.values() for measure, value in found.measures.items()}
    reporter.send(Metrics(step=_trained_steps(brief), values=name_measures(measures)))
    return report


def _open_dataset(brief: AttemptBrief) -> PreparedDataset:
    if brief.prepared is None:
        raise InvalidInputError("This attempt has no prepared data.", param="prepared")
    return open_prepared(brief.prepared)


def _set_scene(
    brief: AttemptBrief, dataset: PreparedDataset, device: torch.device, transport: ScoreTransport | None
) -> Scene:
    spec = brief.spec
    dtype = autocast_dtype(spec.hyperparameters, device) or torch.float32
    export = materialise_model(brief.folder.model)
    folders = {STUDENT: export}
    if spec.evaluation.baselines:
        folders = {START: materialise_model(brief.folder.initial), STUDENT: export}
    students = {
        name: BlockDiffusionStudent.from_pretrained(folder, dtype=dtype, device=device)
        for name, folder in folders.items()
    }
    teacher, teacher_folder = None, None
    if transport is not None:
        teacher_folder = materialise_model(spec.teacher.model, spec.teacher.revision)
        head = lm_head_weight(teacher_folder, dtype).to(device)
        teacher = TeacherAccess(
            transport=transport,
            head=head,
            layout=Layout(spec.teacher.attention),
            shared_vocab=min(dataset.manifest.shared_vocab, students[STUDENT].vocab_size, head.shape[0]),
            job_id=brief.job_id,
            weight=brief.teacher.job_weight if brief.teacher else 1.0,
        )
    held_out = dataset.held_out[: spec.data.held_out.limit]
    return Scene(spec, students, export, held_out, teacher, teacher_folder)


def _sizes(scene: Scene, dataset: PreparedDataset, transport: ScoreTransport | None) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "student_parameters": sum(parameter.numel() for parameter in scene.students[STUDENT].parameters()),
        "training_sequences": len(dataset.train),
    }
    if transport is not None:
        description = transport.describe()
        sizes["teacher_parameters"] = description.parameters
        sizes["teacher_weight_bytes"] = description.weight_bytes
    return sizes


def _trained_steps(brief: AttemptBrief) -> int:
    """The step at which the final figures belong on a curve."""
    return int(training_facts(brief).get("steps", 0))
