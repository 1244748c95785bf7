"""Causal checkpoint to block-diffusion student ("A2D"): the weights stay as they are, the causal mask
goes. And a student's folder to that of the dLLM tools and back, which changes no weight either.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tide_core.checkpoints.headers import read_config
from tide_core.checkpoints.mask_addition import ensure_mask_token
from tide_core.checkpoints.special_tokens import SpecialToken, confirm_mask_id, require_mask_token
from tide_core.checkpoints.tokenizer_folder import copy_tokenizer
from tide_core.contracts.errors import CheckpointError, ConflictError
from tide_core.contracts.families import SDAR, FolderLayout, causal_types, find_family, is_student_type
from tide_core.models.dllm_layout import fit_tokenizer
from tide_core.models.export import CARD_NAME, ModelCard
from tide_core.models.sdar_layout import check_student, rewrite_folder
from tide_core.models.student import BlockDiffusionStudent

Fill = Callable[[BlockDiffusionStudent], None]
"""Puts other weights into a student."""


def student_config(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a causal (or already converted) ``config.json`` as those of a student.

    Raises:
        CheckpointError: the architecture is not one that can be converted.
    """
    family = find_family(payload.get("model_type"))
    if family is None or not family.becomes_student:
        raise CheckpointError(
            f"model_type {payload.get('model_type')!r} cannot become a student: use one of "
            f"{', '.join(causal_types())}.",
            code="unknown_architecture",
            param="model_type",
        )
    return {**payload, "model_type": family.student_type}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    add_mask_token: bool = False,
    block_size: int | None = None,
    layout: FolderLayout = "student",
    fill: Fill | None = None,
) -> BlockDiffusionStudent:
    """Make a student folder out of a causal model folder, a student's or the dLLM tools', and return the
    student.

    The weights are unchanged. Where a mask token is added and the embedding has no row for its id yet, one is
    added, set to the mean of the others; a spare row that the checkpoint already has is left as it is.

    Args:
        source: folder of a causal Qwen3, Qwen2 or Llama model, of a student, or of the dLLM tools.
        target: folder to write; it must not exist, or be empty.
        add_mask_token: add a mask token when the tokenizer has none.
        block_size: noted in the student's configuration, for samplers; without it, what the source notes.
        layout: whose folder to write.
        fill: replaces the source's weights before they are written, e.g. by a training state's.

    Raises:
        CheckpointError: the source cannot be converted.
        TokenizerError: its tokenizer has no mask token and ``add_mask_token`` is not set, or it does not fit
            the layout.
        InvalidInputError: the layout needs a block size, and none is known.
        ConflictError: the target holds files already.
    """
    student_config(read_config(source))

    def build(folder: Path) -> BlockDiffusionStudent:
        copy_tokenizer(source, folder)
        token = ensure_mask_token(source, folder) if add_mask_token else require_mask_token(source)
        student = _with_source_weights(source, token, block_size)
        if fill is not None:
            fill(student)
        if layout == "dllm":
            fit_tokenizer(folder, token, student.eos_token_ids)
        if layout == SDAR.model_type:
            check_student(student.config, folder)
        student.save_pretrained(folder, card=_card(Path(source), folder, is_refilled=fill is not None))
        if layout == SDAR.model_type:
            rewrite_folder(folder, student.config)
        return student

    return _publish(target, build)


def initialise(
    config: Mapping[str, Any],
    tokenizer: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    seed: int,
    add_mask_token: bool = False,
    dtype: torch.dtype = torch.float32,
) -> BlockDiffusionStudent:
    """Make a student folder with fresh weights, and return the student.

    Args:
        config: fields of a ``config.json``; ``model_type`` is that of a causal family or of a
            student.
        tokenizer: folder of its tokenizer.
        target: folder to write; it must not exist, or be empty.
        seed: of the weights.
        add_mask_token: add a mask token when the tokenizer has none; the vocabulary must have room for it.
        dtype: of the weights.

    Raises:
        CheckpointError: the configuration does not describe a student.
        TokenizerError: the tokenizer has no mask token and ``add_mask_token`` is not set.
        ConflictError: the target holds files already.
    """
    payload = student_config(config)

    def build(folder: Path) -> BlockDiffusionStudent:
        copy_tokenizer(tokenizer, folder)
        token = ensure_mask_token(tokenizer, folder) if add_mask_token else require_mask_token(tokenizer)
        confirm_mask_id(payload.get("mask_token_id"), token)
        student = BlockDiffusionStudent.from_config(
            {**payload, "mask_token_id": token.id}, seed=seed, dtype=dtype
        )
        card = ModelCard("Block-diffusion student", "Freshly initialised, not trained.")
        student.save_pretrained(folder, card=card)
        return student

    return _publish(target, build)


def _with_source_weights(
    source: str | os.PathLike[str], token: SpecialToken, block_size: int | None
) -> BlockDiffusionStudent:
    student = BlockDiffusionStudent.from_causal(source)
    if token.id >= student.vocab_size:
        student = student.with_vocabulary(token.id + 1)
    changes: dict[str, Any] = {"mask_token_id": token.id}
    if block_size is not None:
        changes["block_size"] = block_size
    student.config = replace(student.config, **changes)
    return student


def _card(source: Path, folder: Path, *, is_refilled: bool) -> ModelCard | None:
    """What README.md says; None where the source's own says it already and was copied."""
    is_student = is_student_type(read_config(source).get("model_type"))
    name = source.name
    if is_refilled:
        summary = f"The block-diffusion model {name} with the weights of a training state."
        return ModelCard(title=f"{name}, in training", summary=summary, origin=name)
    if is_student and (source / CARD_NAME).is_file():
        shutil.copyfile(source / CARD_NAME, folder / CARD_NAME)
        return None
    if is_student:
        return ModelCard(title=name, summary=f"The block-diffusion model {name}, rewritten.", origin=name)
    return ModelCard(
        title=f"{name} as a block-diffusion model",
        summary=f"The weights of {name}, unchanged, with the causal mask dropped; not trained further.",
        origin=name,
    )


def _publish(
    target: str | os.PathLike[str], build: Callable[[Path], BlockDiffusionStudent]
) -> BlockDiffusionStudent:
    # Built beside the target and renamed, so that half a model is never seen.
    path = Path(target)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConflictError(
            f"{path} exists already: choose another target or remove it.",
            code="target_exists",
            param="target",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        student = build(folder)
        if path.is_dir():
            path.rmdir()
        folder.rename(path)
    return student
