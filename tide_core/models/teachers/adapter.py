"""What a teacher must offer, and which architectures are known."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tide_core.checkpoints.headers import read_config
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import find_family, teacher_types
from tide_core.contracts.job import Quantisation
from tide_core.models.decoder import AttentionMask, Decoder
from tide_core.models.reading import ReadPlaces
from tide_core.models.registry import model_class

AUTO = "auto"


@runtime_checkable
class TeacherModel(Protocol):
    """A frozen model that scores masked positions."""

    lm_head: nn.Linear

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token, confirmed from the tokenizer."""

    def hidden_at(
        self,
        input_ids: Int[Tensor, "batch seq"],
        places: ReadPlaces,
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "masked hidden"]:
        """Hidden states after the final norm at places of the flattened ``[batch * seq]``, no gradients."""


def architecture_of(folder: str | os.PathLike[str]) -> str:
    """The ``model_type`` of a model folder.

    Raises:
        CheckpointError: the folder is none, or its architecture is not known here.
    """
    model_type = read_config(folder).get("model_type")
    if find_family(model_type) is None:
        raise CheckpointError(
            f"{folder} has model_type {model_type!r}; known are {', '.join(teacher_types())}.",
            code="unknown_architecture",
            param="model_type",
        )
    return str(model_type)


def load_teacher(
    folder: str | os.PathLike[str],
    *,
    architecture: str = AUTO,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantisation: Quantisation = "none",
) -> Decoder:
    """A frozen teacher from a local model folder.

    Args:
        folder: ``config.json``, safetensors, tokenizer files.
        architecture: a ``model_type`` of the table of families, or ``auto`` for what ``config.json`` says.
        dtype: of the weights in memory; without it, as stored.
        device: where the weights go.
        quantisation: how the layers' weights are held: ``none``, ``int8`` or ``int4``.

    Raises:
        CheckpointError: unknown or contradicting architecture, or weights that do not fit.
        TokenizerError: the tokenizer and ``config.json`` disagree about the mask token.
        InvalidInputError: an unknown quantisation.
        NonFiniteError: a weight to be quantised holds a NaN or an infinity.
    """
    found = architecture_of(folder)
    if architecture not in (AUTO, found):
        raise CheckpointError(
            f"The teacher's architecture is given as {architecture!r}, but {folder} is {found!r}. Leave it "
            f"at {AUTO!r} or correct it.",
            code="unknown_architecture" if find_family(architecture) is None else "architecture_mismatch",
            param="architecture",
        )
    model = model_class(found).from_pretrained(folder, dtype=dtype, device=device, quantisation=quantisation)
    return model.requires_grad_(False)
