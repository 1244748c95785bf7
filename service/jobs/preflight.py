"""What is checked before a job is accepted: a mistake is reported at once, and nothing is stored.

In: a posted spec. Out: the resolved spec with absolute paths, or the first error with its field.

In: a job spec as it was posted. Out: the resolved spec, or an error that names the field at fault.

Only what lies on this machine is looked at. Hub names and URLs are checked by the preparation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.jobs.data_sources import check_source
from service.jobs.locations import local_path
from service.jobs.model_folders import (
    check_student_architecture,
    check_teacher_architecture,
    check_weights,
    read_model_type,
)
from service.jobs.tokenizers import check_student_tokenizer, check_teacher_tokenizer, detect_pipeline
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import (
    DataSpec,
    EvaluationSpec,
    JobSpec,
    ResolvedJobSpec,
    StudentSpec,
    TeacherSpec,
    resolve,
)
from tide_core.contracts.objective import Pipeline


@dataclass(frozen=True)
class _Side:
    """A model of the job, as far as it can be seen from here."""

    location: str
    tokenizer: Path | None
    """Folder of its tokenizer, when it is local."""
    architecture: str | None = None


def accept(spec: JobSpec) -> ResolvedJobSpec:
    """Check a posted spec against this machine's files and resolve it; reads disks, so run it in a thread.

    Returns:
        The spec with every default filled in and every local path absolute.

    Raises:
        InvalidInputError: with code, field and what to do about it.
    """
    teacher = _check_teacher(spec.teacher)
    student = _check_student(spec.student)
    data = _with_checked_sources(spec.data)
    evaluation = _with_checked_task(spec.evaluation)
    pipeline = _pipeline(spec.pipeline, student, teacher)
    located = spec.model_copy(
        update={
            "teacher": spec.teacher.model_copy(update={"model": teacher.location}),
            "student": _located_student(spec.student, student),
            "data": data,
            "evaluation": evaluation,
        }
    )
    return resolve(located, pipeline=pipeline, teacher_architecture=teacher.architecture)


def _check_teacher(spec: TeacherSpec) -> _Side:
    param = "teacher.model"
    folder = local_path(spec.model, param)
    if folder is None:
        return _Side(spec.model, None)
    model_type = read_model_type(folder, param)
    architecture = check_teacher_architecture(model_type, spec.architecture, param)
    check_weights(folder, param)
    check_teacher_tokenizer(folder, param)
    return _Side(str(folder), folder, architecture)


def _check_student(spec: StudentSpec) -> _Side:
    if spec.model is None:
        return _check_fresh_student(spec)
    folder = local_path(spec.model, "student.model")
    location = spec.model if folder is None else str(folder)
    if folder is not None:
        check_student_architecture(read_model_type(folder, "student.model"), "student.model")
        check_weights(folder, "student.model")
    if spec.tokenizer is not None:
        return _Side(location, _check_tokenizer_folder(spec))
    if folder is not None:
        check_student_tokenizer(folder, "student.model", may_add_mask_token=spec.add_mask_token)
    return _Side(location, folder)


def _check_fresh_student(spec: StudentSpec) -> _Side:
    assert spec.config is not None
    model_type = spec.config.get("model_type")
    if model_type is not None:
        check_student_architecture(str(model_type), "student.config.model_type")
    return _Side("", _check_tokenizer_folder(spec))


def _check_tokenizer_folder(spec: StudentSpec) -> Path | None:
    assert spec.tokenizer is not None
    folder = local_path(spec.tokenizer, "student.tokenizer")
    if folder is not None:
        check_student_tokenizer(
            folder,
            "student.tokenizer",
            may_add_mask_token=spec.add_mask_token,
            mask_token_id=_mask_token_id(spec),
        )
    return folder


def _mask_token_id(spec: StudentSpec) -> int | None:
    value = (spec.config or {}).get("mask_token_id")
    return value if isinstance(value, int) else None


def _located_student(spec: StudentSpec, side: _Side) -> StudentSpec:
    location: dict[str, str] = {}
    if spec.model is not None:
        location["model"] = side.location
    if spec.tokenizer is not None and side.tokenizer is not None:
        location["tokenizer"] = str(side.tokenizer)
    return spec.model_copy(update=location)


def _with_checked_sources(data: DataSpec) -> DataSpec:
    sources = tuple(
        check_source(source, f"data.sources.{number}") for number, source in enumerate(data.sources)
    )
    held_out = tuple(
        check_source(source, f"data.held_out.sources.{number}")
        for number, source in enumerate(data.held_out.sources)
    )
    return data.model_copy(
        update={"sources": sources, "held_out": data.held_out.model_copy(update={"sources": held_out})}
    )


def _with_checked_task(evaluation: EvaluationSpec) -> EvaluationSpec:
    if evaluation.exact_match is None:
        return evaluation
    source = check_source(evaluation.exact_match.source, "evaluation.exact_match.source")
    task = evaluation.exact_match.model_copy(update={"source": source})
    return evaluation.model_copy(update={"exact_match": task})


def _pipeline(asked: str, student: _Side, teacher: _Side) -> Pipeline:
    if student.tokenizer is None or teacher.tokenizer is None:
        if asked == "auto":
            raise InvalidInputError(
                "The pipeline can only be detected where both tokenizers are on the server. Set 'pipeline' "
                "to 'cross_tokenizer' or 'shared_tokenizer'.",
                code="pipeline_unknown",
                param="pipeline",
            )
        return Pipeline(asked)
    fitting, agreeing, needed = detect_pipeline(student.tokenizer, teacher.tokenizer)
    if asked == "auto":
        return fitting
    if asked == Pipeline.SHARED_TOKENIZER and fitting is Pipeline.CROSS_TOKENIZER:
        raise InvalidInputError(
            f"Student and teacher do not share a vocabulary: the first {agreeing} ids agree, but the "
            f"student's text needs {needed}. Set 'pipeline' to 'cross_tokenizer' (or 'auto').",
            code="vocabularies_differ",
            param="pipeline",
        )
    return Pipeline(asked)
