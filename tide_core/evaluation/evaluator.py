"""What an evaluator is: it measures the models of one job in one way.

In: a `Scene`. Out: `Findings`, which the report, the curves and paired comparisons are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.figures import HELD_OUT, Measure
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.data.samples import PreparedSample
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.models.student import BlockDiffusionStudent

START, STUDENT, TEACHER = "start", "student", "teacher"
"""Names of the models of a report: the student before training, after it, and the teacher."""

OnProgress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


def ignore_progress(done: int, total: int) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Scene:
    """What the evaluators of one job work on.

    Attributes:
        spec: the resolved job.
        students: by name: `STUDENT`, and `START` where baselines are asked for; on their device.
        student_folder: tokenizer and template of the students.
        held_out: prepared sequences that were not trained on.
        teacher: the way to the teacher; None where no evaluator asks it.
        teacher_folder: its tokenizer and template.
    """

    spec: ResolvedJobSpec
    students: Mapping[str, BlockDiffusionStudent]
    student_folder: Path
    held_out: Sequence[PreparedSample]
    teacher: TeacherAccess | None = None
    teacher_folder: Path | None = None


@dataclass(frozen=True)
class Findings:
    """What an evaluator found.

    Attributes:
        figures: of each model, JSON values for ``models`` in the report.
        columns: of each model, arrays of one number an item, for paired comparisons.
        measures: the student's figures on its curves.
        facts: JSON values about what was measured on, in the report under the evaluator's name.
    """

    figures: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Mapping[str, NDArray[np.float64]]]
    measures: Mapping[Measure, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Evaluator(Protocol):
    """Measures the models of a scene."""

    @property
    def name(self) -> str:
        """Its name in the registry and in the report."""
        ...

    @property
    def stage(self) -> str:
        """What is being done, in a word, beside the progress bar."""
        ...

    @property
    def unit(self) -> str:
        """What its progress counts."""
        ...

    def is_asked_for(self, spec: ResolvedJobSpec) -> bool:
        """Whether a job's evaluation has it run."""
        ...

    def asks_teacher(self, spec: ResolvedJobSpec) -> bool:
        """Whether it has questions to the teacher; the job then holds a lease while it is evaluated."""
        ...

    def run(self, scene: Scene, on_progress: OnProgress = ignore_progress) -> Findings:
        """Measure. A scene without a teacher leaves out what needs one."""
        ...


def name_measures(measures: Mapping[Measure, float]) -> dict[str, float]:
    """Figures by the names of their series, such as ``held_out/nelbo_per_token``."""
    return {HELD_OUT.of(measure): value for measure, value in measures.items()}
