"""What can be seen of a model folder without loading it: architecture and weights.

In: a folder on this machine and the spec's field that names it. Out: what its headers say, or an error that
names the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tide_core.checkpoints import headers
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import causal_types, student_types, teacher_types


def read_model_type(folder: Path, param: str) -> str:
    """``model_type`` of a folder's config.json.

    Raises:
        CheckpointError: ``not_a_model_folder`` or ``bad_checkpoint``.
    """
    return str(read_config(folder, param).get("model_type"))


def read_config(folder: Path, param: str) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Raises:
        CheckpointError: ``not_a_model_folder`` or ``bad_checkpoint``.
    """
    if not (folder / headers.CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no {headers.CONFIG_NAME}. Give the folder that "
            "save_pretrained() wrote.",
            code="not_a_model_folder",
            param=param,
        )
    with _errors_about(param):
        return headers.read_config(folder)


def check_teacher_architecture(model_type: str, asked: str, param: str) -> str:
    """The teacher's architecture, from its config and from what the user asked for.

    Raises:
        CheckpointError: ``unknown_architecture`` or ``architecture_mismatch``.
    """
    if model_type not in teacher_types():
        raise _unknown_architecture(model_type, teacher_types(), param)
    if asked not in ("auto", model_type):
        raise CheckpointError(
            f"The teacher's config.json says {model_type!r}, the job says {asked!r}. Leave "
            "teacher.architecture at 'auto' or correct it.",
            code="architecture_mismatch",
            param="teacher.architecture",
        )
    return model_type


def check_student_architecture(model_type: str, param: str) -> None:
    """Accept block-diffusion students and the causal families that become one.

    Raises:
        CheckpointError: ``unknown_architecture``.
    """
    known = (*causal_types(), *student_types())
    if model_type not in known:
        raise _unknown_architecture(model_type, known, param)


def check_weights(folder: Path, param: str) -> None:
    """See that all safetensors files of a folder are there.

    Raises:
        CheckpointError: ``pickle_weights`` or ``checkpoint_incomplete``.
    """
    with _errors_about(param):
        headers.weight_files(folder)


@contextmanager
def _errors_about(param: str) -> Iterator[None]:
    """Errors of the files, told of the spec's field that names the folder."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.message, code=error.code, param=param) from error


def _unknown_architecture(model_type: str, known: Iterable[str], param: str) -> CheckpointError:
    return CheckpointError(
        f"Models of the architecture {model_type!r} are not supported here; known are "
        f"{', '.join(sorted(known))}.",
        code="unknown_architecture",
        param=param,
    )
