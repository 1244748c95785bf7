"""What a loaded teacher says of itself, whether a replica or this process holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch

from tide_core.checkpoints.fingerprint import fingerprint
from tide_core.checkpoints.tokenizer_folder import tokenizer_fingerprint
from tide_core.contracts.job import Quantisation
from tide_core.contracts.teacher import TeacherDescription
from tide_core.models.decoder import Decoder
from tide_core.models.quantisation import memory_bytes, parameter_count
from tide_core.models.teachers.adapter import architecture_of

DtypeName = Literal["float32", "bfloat16", "float16"]


def name_of_dtype(dtype: torch.dtype) -> DtypeName:
    """``torch.bfloat16`` as the contracts write it: "bfloat16"."""
    return cast(DtypeName, str(dtype).removeprefix("torch."))


def describe_teacher(
    folder: str | Path,
    model: Decoder,
    *,
    dtype: DtypeName,
    quantisation: Quantisation = "none",
    device: str,
) -> TeacherDescription:
    """Fingerprints and sizes of a teacher.

    Args:
        folder: the model folder that it was loaded from.
        model: as loaded.
        dtype: of its weights.
        quantisation: how its layers' weights are held.
        device: where it computes.
    """
    return TeacherDescription(
        fingerprint=fingerprint(folder, dtype, quantisation),
        tokenizer_fingerprint=tokenizer_fingerprint(folder),
        architecture=architecture_of(folder),
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        mask_token_id=model.mask_token_id,
        parameters=parameter_count(model),
        dtype=dtype,
        quantisation=quantisation,
        device=device,
        weight_bytes=memory_bytes(model),
    )
