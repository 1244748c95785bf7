"""The student before training: one folder of the job that all trainers and the evaluation start from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tide_core.checkpoints.special_tokens import find_mask_token, require_mask_token
from tide_core.contracts.job import ResolvedJobSpec, StudentSpec
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


def student_tokenizer(student: StudentSpec, scratch: Path) -> Path:
    """A local tokenizer folder of the student with a mask token, added in `scratch` where it may be.

    Raises:
        TokenizerError: there is no mask token and none is to be added.
    """
    from tide_core.checkpoints.mask_addition import ensure_mask_token
    from tide_core.models.export import copy_tokenizer

    location = student.tokenizer or student.model
    assert location is not None
    folder = materialise_tokenizer(location, None if student.tokenizer else student.revision)
    mask = find_mask_token(folder) if student.add_mask_token else require_mask_token(folder)
    if mask is not None and mask.text:
        return folder
    copy_tokenizer(folder, scratch)
    ensure_mask_token(folder, scratch)
    return scratch
