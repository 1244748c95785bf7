"""What the control plane must know of tokenizers, remembered for as long as their files do not change."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from tide_core.alignment.bytes import token_table
from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.checkpoints.headers import CONFIG_NAME
from tide_core.checkpoints.special_tokens import (
    confirm_mask_id,
    find_mask_token,
    require_eos_token,
    require_mask_token,
)
from tide_core.checkpoints.tokenizer_folder import NAMES_FILE, SETTINGS_FILE, TOKENIZER_FILE, load_tokenizer
from tide_core.contracts.errors import TokenizerError
from tide_core.contracts.objective import Pipeline

_FILES = (TOKENIZER_FILE, SETTINGS_FILE, NAMES_FILE, CONFIG_NAME)

Stamp = tuple[tuple[str, int, int], ...]
"""Name, modification time and size of the files that decide a tokenizer."""


def check_student_tokenizer(
    folder: Path, param: str, *, may_add_mask_token: bool, mask_token_id: int | None = None
) -> None:
    """See that a student's tokenizer has what the method needs.

    Args:
        folder: model or tokenizer folder.
        param: path of the field, for errors.
        may_add_mask_token: a mask token is added where there is none.
        mask_token_id: what a config that is not in the folder says.

    Raises:
        TokenizerError: ``tokenizer_not_found``, ``tokenizer_without_mask_token``,
            ``tokenizer_without_eos_token``, or another fault of the files.
    """
    _raise_again(_fault(str(folder), _stamp(folder), not may_add_mask_token, True, mask_token_id), param)


def check_teacher_tokenizer(folder: Path, param: str) -> None:
    """See that a teacher's tokenizer has a mask token.

    Raises:
        TokenizerError: as for the student.
    """
    _raise_again(_fault(str(folder), _stamp(folder), True, False, None), param)


def detect_pipeline(student: Path, teacher: Path) -> tuple[Pipeline, int, int]:
    """Which pipeline fits two tokenizers.

    The tokenizers count as shared when every content token of the student (all but its added tokens) is the
    same bytes under the same id to the teacher.

    Returns:
        The pipeline, how many leading ids agree, and how many must agree for a shared vocabulary.
    """
    agreeing, needed = _agreement(str(student), _stamp(student), str(teacher), _stamp(teacher))
    is_shared = agreeing >= needed
    return (Pipeline.SHARED_TOKENIZER if is_shared else Pipeline.CROSS_TOKENIZER), agreeing, needed


def _stamp(folder: Path) -> Stamp:
    found = []
    for name in _FILES:
        path = folder / name
        if path.is_file():
            facts = path.stat()
            found.append((name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


# The caches hold answers, not tokenizers: those are tens of megabytes each.
@lru_cache(maxsize=256)
def _fault(
    folder: str, stamp: Stamp, needs_mask: bool, needs_eos: bool, mask_token_id: int | None
) -> tuple[str, str] | None:
    """Code and message of what is wrong with a tokenizer folder, or None."""
    try:
        tokenizer = load_tokenizer(folder)
        # Contradictions are refused also where a mask may be added.
        find = require_mask_token if needs_mask else find_mask_token
        mask = find(folder, tokenizer)
        if mask is not None:
            confirm_mask_id(mask_token_id, mask)
        if needs_eos:
            require_eos_token(folder, tokenizer)
    except TokenizerError as error:
        return error.code, error.message
    return None


@lru_cache(maxsize=256)
def _agreement(student: str, student_stamp: Stamp, teacher: str, teacher_stamp: Stamp) -> tuple[int, int]:
    student_tokenizer, teacher_tokenizer = load_tokenizer(student), load_tokenizer(teacher)
    agreeing = shared_vocabulary_size(student_tokenizer, teacher_tokenizer)
    content = np.flatnonzero(~token_table(student_tokenizer).is_added)
    return agreeing, int(content[-1]) + 1 if content.size else 1


def _raise_again(fault: tuple[str, str] | None, param: str) -> None:
    if fault is not None:
        code, message = fault
        raise TokenizerError(message[:1].upper() + message[1:] + ".", code=code, param=param)
