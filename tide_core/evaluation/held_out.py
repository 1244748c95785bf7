"""Held-out figures: NELBO, accuracy and divergence from the teacher, of every model on the same questions.

In: a scene with held-out sequences. Out: one tally of sums a sequence for each model, and the ratios of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tide_core.contracts.figures import Measure
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.labels import IGNORED_LABEL
from tide_core.contracts.objective import Pipeline
from tide_core.evaluation.evaluator import STUDENT, TEACHER, Findings, OnProgress, Scene, ignore_progress
from tide_core.evaluation.held_out_set import HeldOutSet, held_out_set, is_content, is_teacher_content
from tide_core.evaluation.passes import PassCounter, run_chunk_pass, run_nelbo_pass, run_teacher_pass
from tide_core.evaluation.tally import Column, Tally
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.models.student import BlockDiffusionStudent


class HeldOutFigures:
    """The evaluator of held-out figures; every evaluation runs it."""

    name = "held_out"
    stage = "measuring"
    unit = "questions"

    def is_asked_for(self, spec: ResolvedJobSpec) -> bool:
        """Always: an evaluation is first of all this."""
        return spec.evaluation.enabled

    def asks_teacher(self, spec: ResolvedJobSpec) -> bool:
        """For the students' divergence from it, or for its own figures."""
        return spec.evaluation.teacher_kl or spec.evaluation.baselines

    def run(self, scene: Scene, on_progress: OnProgress = ignore_progress) -> Findings:
        """Figures of students and teacher; the teacher's are left out where baselines are.

        Raises:
            InvalidInputError: there is no held-out sequence.
            ScoreError: the teacher could not answer.
        """
        evaluation = scene.spec.evaluation
        mask_token_id = scene.students[STUDENT].mask_token_id
        held_out = held_out_set(scene.spec, scene.held_out, scene.student_folder, mask_token_id)
        tallies = measure(
            held_out,
            scene.students,
            scene.teacher,
            with_divergence=evaluation.teacher_kl,
            on_progress=on_progress,
        )
        if not evaluation.baselines:
            tallies.pop(TEACHER, None)
        figures = {name: tally.figures() for name, tally in tallies.items()}
        return Findings(
            figures={name: {m.value: v for m, v in found.items()} for name, found in figures.items()},
            columns={
                name: {column.value: values for column, values in tally.columns.items()}
                for name, tally in tallies.items()
            },
            measures=add_nelbo(figures[STUDENT]),
            facts={
                "sequences": len(held_out.samples),
                "timesteps": held_out.noise.count,
                "content_bytes": float(held_out.content_bytes.sum()),
            },
        )


def add_nelbo(figures: Mapping[Measure, float]) -> dict[Measure, float]:
    """Held-out figures with the NELBO also under the name that curves of running jobs have."""
    found = dict(figures)
    if Measure.NELBO_PER_TOKEN in found:
        found[Measure.NELBO] = found[Measure.NELBO_PER_TOKEN]
    return found


def measure(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess | None,
    *,
    with_divergence: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Tally]:
    """Figures of students and teacher on the held-out sequences.

    Args:
        held_out: sequences and noise.
        students: by name, such as "start" and "student".
        teacher: None leaves the teacher out.
        with_divergence: also measure each student's divergence from the teacher.
        on_progress: called with (questions done, questions in all).

    Returns:
        A tally a model; the teacher's under "teacher".
    """
    tallies = {name: _student_tally(held_out) for name in students}
    is_cross = held_out.pipeline is Pipeline.CROSS_TOKENIZER
    passes = 1 if teacher is None or not is_cross else 2 + with_divergence
    counter = PassCounter(passes * len(held_out.samples) * held_out.noise.count, on_progress)
    if teacher is not None:
        tallies[TEACHER] = _teacher_tally(held_out)
    run_nelbo_pass(held_out, students, None if is_cross else teacher, tallies, counter, with_divergence)
    if teacher is not None and is_cross:
        run_teacher_pass(held_out, teacher, tallies[TEACHER], counter)
        if with_divergence:
            run_chunk_pass(held_out, students, teacher, tallies, counter)
    return tallies


def _student_tally(held_out: HeldOutSet) -> Tally:
    tally = Tally(len(held_out.samples))
    trained = [float((sample.labels != IGNORED_LABEL).sum()) for sample in held_out.samples]
    tally.set(Column.TOKENS, np.array(trained))
    tally.set(Column.CONTENT_TOKENS, np.array([float(is_content(s).sum()) for s in held_out.samples]))
    tally.set(Column.CONTENT_BYTES, held_out.content_bytes)
    return tally


def _teacher_tally(held_out: HeldOutSet) -> Tally:
    tally = Tally(len(held_out.samples))
    tally.set(Column.CONTENT_BYTES, held_out.content_bytes)
    tally.set(Column.CONTENT_TOKENS, np.array([float(is_teacher_content(s).sum()) for s in held_out.samples]))
    return tally
