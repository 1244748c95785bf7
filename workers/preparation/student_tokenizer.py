"""The tokenizer of a job's student, as the preparation needs it.

In: the student's spec. Out: a local folder whose tokenizer has a mask token.
"""

from __future__ import annotations

from pathlib import Path

from tide_core.checkpoints.mask_addition import ensure_mask_token
from tide_core.checkpoints.special_tokens import find_mask_token, require_mask_token
from tide_core.checkpoints.tokenizer_folder import copy_tokenizer
from tide_core.contracts.job import StudentSpec
from workers.storage import materialise_tokenizer


def fetch_student_tokenizer(student: StudentSpec, scratch: Path) -> Path:
    """A local tokenizer folder of the student with a mask token, added in `scratch` where it may be.

    Raises:
        TokenizerError: there is no mask token and none is to be added.
    """
    location = student.tokenizer or student.model
    assert location is not None
    folder = materialise_tokenizer(location, None if student.tokenizer else student.revision)
    mask = find_mask_token(folder) if student.add_mask_token else require_mask_token(folder)
    if mask is not None and mask.text:
        return folder
    copy_tokenizer(folder, scratch)
    ensure_mask_token(folder, scratch)
    return scratch
