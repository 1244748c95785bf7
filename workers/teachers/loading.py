"""From a teacher's spec to an engine that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer

from tide_core.alignment.boundaries import begins_pretoken
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import TeacherDescription
from tide_core.models.compiling import compile_layers
from tide_core.models.teachers.adapter import load_teacher
from tide_core.scoring.describing import DtypeName, describe_teacher
from workers.storage import materialise_model
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.statistics import StatisticsRecorder


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher ready to serve.

    Attributes:
        engine: answers requests; close it when done.
        description: what the teacher says of itself.
        tokenizer: its tokenizer.
    """

    engine: TeacherEngine
    description: TeacherDescription
    tokenizer: Tokenizer


def dtype_name(teacher: TeacherSpec, device: torch.device) -> DtypeName:
    """The dtype of the served weights: ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if teacher.dtype != "auto":
        return teacher.dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def load_for_serving(
    teacher: TeacherSpec,
    *,
    threads: int | None = None,
    device: torch.device | None = None,
    settings: EngineSettings | None = None,
    recorder: StatisticsRecorder | None = None,
) -> LoadedTeacher:
    """Fetch, load and describe a teacher, and start its engine.

    Args:
        teacher: which one.
        threads: intra-op threads on a CPU; None leaves torch's own number.
        device: where it computes; by default the GPU that Ray assigned, else the CPU.
        settings: of the engine; by default those that fit the device.
        recorder: of the engine; by default one for its statistics alone.

    Raises:
        InvalidInputError: there is no such model.
        CheckpointError: its folder is incomplete, contradictory or of another architecture.
        TokenizerError: its tokenizer is missing or has no mask token.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_name(teacher, device)
    folder = materialise_model(teacher.model, teacher.revision)
    tokenizer = load_tokenizer(folder)
    model = load_teacher(
        folder,
        architecture=teacher.architecture,
        dtype=cast(torch.dtype, getattr(torch, dtype)),
        device=device,
        quantisation=teacher.quantisation,
    )
    if teacher.compile:
        compile_layers(model)
    description = describe_teacher(
        folder, model, dtype=dtype, quantisation=teacher.quantisation, device=str(device)
    )
    engine = TeacherEngine(
        model,
        fingerprint=description.fingerprint,
        tokenizer_fingerprint=description.tokenizer_fingerprint,
        settings=settings or EngineSettings.for_device(device, threads=threads),
        begins_pretoken=begins_pretoken(tokenizer, model.vocab_size),
        recorder=recorder,
    )
    return LoadedTeacher(engine, description, tokenizer)
