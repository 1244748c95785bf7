"""The evaluation itself: loads start, student and the way to the teacher, measures, writes the report.

In: an attempt's brief and the trained student in storage. Out: `report.json`, `sequences.npz`, and reports of
the held-out figures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ExactMatchTask
from tide_core.contracts.reporting import AttemptBrief, Metrics, TeacherAttested
from tide_core.contracts.scores import Layout
from tide_core.contracts.states import Phase
from tide_core.data.shards import PreparedDataset
from tide_core.models.loading import lm_head_weight
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.precision import autocast_dtype
from workers.cluster import worker_threads
from workers.evaluation.exact_match import (
    THRESHOLD,
    Matches,
    PromptSide,
    Task,
    compared,
    read_tasks,
    student_matches,
)
from workers.evaluation.held_out import TEACHER, HeldOutSet, TeacherAccess, held_out_set, measure
from workers.evaluation.report import build_report, training_facts, write_report
from workers.evaluation.tally import Tally
from workers.evaluation.teacher_sampling import sample_teacher
from workers.preparation.location import open_prepared
from workers.reporting.opening import open_reporter
from workers.reporting.reporter import ProgressMeter, Reporter
from workers.scores.opening import open_transport
from workers.storage import materialise_model

log = structlog.get_logger(__name__)

START, STUDENT = "start", "student"


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
    """Measure, report and write the report; without Ray, so that tests may call it.

    Args:
        brief: the attempt, with prepared data and an exported model.
        device: where the students compute.
        reporter: hears progress and the figures.
        transport: the way to the teacher, or None to leave it out.
    """
    began = time.monotonic()
    scene = _scene(brief, device, transport)
    if transport is not None:
        reporter.send(TeacherAttested(fingerprint=transport.describe().fingerprint))
    tallies = _held_out_figures(brief, scene, reporter)
    tasks, matches = _exact_matches(brief, scene, reporter)
    report = build_report(brief, scene.held_out, tallies, matches, tasks, _sizes(scene, transport))
    report["seconds"] = time.monotonic() - began
    write_report(brief, report, tallies, matches)
    reporter.send(Metrics(step=_trained_steps(brief), values=_flat(report["models"])))
    return report


@dataclass(frozen=True)
class _Scene:
    """What an evaluation works on."""

    dataset: PreparedDataset
    held_out: HeldOutSet
    students: Mapping[str, BlockDiffusionStudent]
    teacher: TeacherAccess | None
    student_folder: Path
    teacher_folder: Path | None


def _scene(brief: AttemptBrief, device: torch.device, transport: ScoreTransport | None) -> _Scene:
    spec = brief.spec
    if brief.prepared is None:
        raise InvalidInputError("This attempt has no prepared data.", param="prepared")
    dataset = open_prepared(brief.prepared)
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
        teacher = _teacher_access(
            brief, dataset, students[STUDENT], transport, lm_head_weight(teacher_folder, dtype).to(device)
        )
    held_out = held_out_set(
        spec, dataset.held_out[: spec.data.held_out.limit], export, students[STUDENT].mask_token_id
    )
    return _Scene(dataset, held_out, students, teacher, export, teacher_folder)


def _teacher_access(
    brief: AttemptBrief,
    dataset: PreparedDataset,
    student: BlockDiffusionStudent,
    transport: ScoreTransport,
    head: torch.Tensor,
) -> TeacherAccess:
    return TeacherAccess(
        transport=transport,
        head=head,
        layout=Layout(brief.spec.teacher.attention),
        shared_vocab=min(dataset.manifest.shared_vocab, student.vocab_size, head.shape[0]),
        job_id=brief.job_id,
        weight=brief.teacher.job_weight if brief.teacher else 1.0,
    )


def _held_out_figures(brief: AttemptBrief, scene: _Scene, reporter: Reporter) -> dict[str, Tally]:
    meter = ProgressMeter(reporter, Phase.EVALUATE, "measuring", None, unit="questions")
    evaluation = brief.spec.evaluation
    tallies = measure(
        scene.held_out,
        scene.students,
        scene.teacher,
        with_divergence=evaluation.teacher_kl,
        on_progress=meter.update,
    )
    if not evaluation.baselines:
        tallies.pop(TEACHER, None)
    return tallies


def _exact_matches(
    brief: AttemptBrief, scene: _Scene, reporter: Reporter
) -> tuple[list[Task], dict[str, Matches]]:
    """Exact match of every model, where the job has a task for it."""
    spec = brief.spec.evaluation.exact_match
    if spec is None:
        return [], {}
    tasks = read_tasks(spec)
    has_teacher = scene.teacher is not None and brief.spec.evaluation.baselines
    rounds = len(scene.students) + has_teacher
    meter = ProgressMeter(reporter, Phase.EVALUATE, "sampling", rounds * len(tasks), unit="answers")
    side = PromptSide(scene.student_folder, brief.spec.data.template)
    matches = {}
    for number, (name, student) in enumerate(scene.students.items()):
        before = number * len(tasks)
        matches[name] = student_matches(
            student,
            side,
            tasks,
            max_new_tokens=spec.max_new_tokens,
            block_size=brief.spec.student.block_size,
            on_progress=lambda done, before=before: meter.update(before + done),  # type: ignore[misc]
        )
    if scene.teacher is not None and has_teacher:
        matches[TEACHER] = _teacher_matches(brief, scene, scene.teacher, spec, tasks)
        meter.update(rounds * len(tasks))
    return tasks, matches


def _teacher_matches(
    brief: AttemptBrief, scene: _Scene, teacher: TeacherAccess, spec: ExactMatchTask, tasks: Sequence[Task]
) -> Matches:
    assert scene.teacher_folder is not None
    side = PromptSide(scene.teacher_folder, brief.spec.data.template)
    answers = sample_teacher(
        teacher,
        [side.prompt_ids(task) for task in tasks],
        max_new_tokens=spec.max_new_tokens,
        block_size=brief.spec.student.block_size,
        threshold=THRESHOLD,
        mask_token_id=side.mask_token_id,
        eos_token_ids=side.eos_token_ids,
    )
    return compared(tasks, [side.text(ids) for ids in answers])


def _sizes(scene: _Scene, transport: ScoreTransport | None) -> dict[str, Any]:
    student = scene.students[STUDENT]
    sizes: dict[str, Any] = {
        "student_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "training_sequences": len(scene.dataset.train),
    }
    if transport is not None:
        description = transport.describe()
        sizes["teacher_parameters"] = description.parameters
        sizes["teacher_weight_bytes"] = description.weight_bytes
    return sizes


def _trained_steps(brief: AttemptBrief) -> int:
    """The step at which the final figures belong on a curve."""
    return int(training_facts(brief).get("steps", 0))


def _flat(models: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The student's figures as metrics: `held_out/nelbo_per_token` and so on."""
    figures = models[STUDENT]
    values = {f"held_out/{name}": value for name, value in figures.items() if isinstance(value, float)}
    if "exact_match" in figures:
        values["held_out/exact_match"] = figures["exact_match"]["rate"]
    if "nelbo_per_token" in figures:
        values["held_out/nelbo"] = figures["nelbo_per_token"]
    return values
