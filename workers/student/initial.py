"""The student before training: one folder of the job that all trainers and the evaluation start from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.job_folder import JobFolder
from workers.storage import exists, local_path, materialise_model, materialise_tokenizer, publish_folder


def build_initial_student(spec: ResolvedJobSpec, folder: JobFolder) -> str:
    """Convert or initialise the student, once a job; gives the folder's location.

    A causal model keeps its weights ("A2D"), a student is copied, a config is initialised from the job's
    seed. A later attempt finds the folder of the first.

    Raises:
        CheckpointError: the source is incomplete or cannot become a student.
        TokenizerError: there is no mask token and none is to be added.
    """
    location = folder.initial
    if exists(location):
        return location
    target = local_path(location)
    if target is not None:
        _build(spec, target)
        return location
    with tempfile.TemporaryDirectory(prefix="tide-initial-") as scratch:
        _build(spec, Path(scratch) / "student")
        publish_folder(Path(scratch) / "student", location)
    return location


def _build(spec: ResolvedJobSpec, target: Path) -> None:
    from tide_core.models.conversion import convert, initialise

    student = spec.student
    if student.model is not None:
        source = materialise_model(student.model, student.revision)
        convert(source, target, add_mask_token=student.add_mask_token, block_size=student.block_size)
        return
    assert student.config is not None
    assert student.tokenizer is not None
    initialise(
        {**student.config, "block_size": student.block_size},
        materialise_tokenizer(student.tokenizer),
        target,
        seed=spec.seed,
        add_mask_token=student.add_mask_token,
    )
