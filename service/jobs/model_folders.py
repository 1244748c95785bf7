"""What can be seen of a model folder without loading it: architecture, weights, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.job import TeacherSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

TEACHER_ARCHITECTURES = frozenset(get_args(TeacherSpec.model_fields["architecture"].annotation)) - {"auto"}
STUDENT_PREFIX = "a2d-"
STUDENT_FAMILIES = frozenset({"qwen3", "qwen2", "llama"})


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
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE}. Give the folder that "
            "save_pretrained() wrote.",
            code="not_a_model_folder",
            param=param,
        )
    return _read_object(path, param)


def check_teacher_architecture(model_type: str, asked: str, param: str) -> str:
    """The teacher's architecture, from its config and from what the user asked for.

    Raises:
        CheckpointError: ``unknown_architecture`` or ``architecture_mismatch``.
    """
    if model_type not in TEACHER_ARCHITECTURES:
        raise _unknown(model_type, TEACHER_ARCHITECTURES, param)
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
    if model_type.removeprefix(STUDENT_PREFIX) not in STUDENT_FAMILIES:
        students = {STUDENT_PREFIX + family for family in STUDENT_FAMILIES}
        raise _unknown(model_type, STUDENT_FAMILIES | students, param)


def check_weights(folder: Path, param: str) -> None:
    """See that all safetensors files of a folder are there.

    Raises:
        CheckpointError: ``pickle_weights`` or ``checkpoint_incomplete``.
    """
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        names = _read_object(index, param).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} has no 'weight_map'.", param=param)
        absent = sorted({str(name) for name in names.values() if not (folder / str(name)).is_file()})
        if absent:
            raise CheckpointError(
                f"{index} lists files that are not there: {', '.join(absent[:5])}. Fetch them again.",
                code="checkpoint_incomplete",
                param=param,
            )
        return
    if (folder / WEIGHTS_FILE).is_file():
        return
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise CheckpointError(
            f"{folder} holds pickled weights only, and opening a pickle runs its code. Save the model as "
            "safetensors: save_pretrained(..., safe_serialization=True).",
            code="pickle_weights",
            param=param,
        )
    raise CheckpointError(
        f"{folder} holds neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX}.",
        code="checkpoint_incomplete",
        param=param,
    )


def _unknown(model_type: str, known: frozenset[str] | set[str], param: str) -> CheckpointError:
    return CheckpointError(
        f"Models of the architecture {model_type!r} are not supported here; known are "
        f"{', '.join(sorted(known))}.",
        code="unknown_architecture",
        param=param,
    )


def _read_object(path: Path, param: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.", param=param) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object.", param=param)
    return value
