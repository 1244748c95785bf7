"""The student: a dense decoder trained and sampled as a block-diffusion model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide_core.checkpoints.tokenizer_folder import copy_tokenizer
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import causal_types, is_student_type
from tide_core.models.configuration import DecoderConfig
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.export import CARD_NAME, ModelCard, render_card
from tide_core.models.loading import DEFAULT_SHARD_BYTES

GENERATION_CONFIG_NAME = "generation_config.json"


class BlockDiffusionStudent(DenseDecoder):
    """A block-diffusion student of the Qwen3, Qwen2 or Llama shape.

    ``forward(input_ids, attention_mask, position_ids)`` gives hidden states of shape [batch, seq, hidden];
    logits are ``lm_head`` of the rows that are wanted. Folders have the family's ``student_type`` for
    ``model_type`` and the causal family's own key names, so that the dLLM tools load them, and plain
    ``transformers`` too::

        config = Qwen3Config.from_pretrained(folder)
        model = Qwen3ForCausalLM.from_pretrained(folder, config=config)
        logits = model(input_ids, attention_mask=mask, position_ids=positions).logits

    where ``mask`` is a boolean [batch, 1, query, key]: without one, transformers would attend causally.
    """

    @classmethod
    def _as_config(cls, config: DecoderConfig | Mapping[str, Any]) -> DecoderConfig:
        parsed = super()._as_config(config)
        if not is_student_type(parsed.model_type) or not isinstance(parsed, DenseConfig):
            raise CheckpointError(
                f"model_type {parsed.model_type!r} is no block-diffusion student: convert the model first "
                "(tide convert SOURCE TARGET).",
                code="unknown_architecture",
                param="model_type",
            )
        return parsed

    @classmethod
    def from_causal(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> BlockDiffusionStudent:
        """A student with the weights of a causal Qwen3, Qwen2 or Llama folder (or of a student's), unchanged.

        Raises:
            CheckpointError: the folder holds something else, or is incomplete.
        """
        decoder = DenseDecoder.from_pretrained(folder, dtype=dtype, device=device)
        family = decoder.config.family
        if not family.becomes_student:
            raise CheckpointError(
                f"A {family.title} model is a teacher: convert a model of {', '.join(causal_types())}.",
                code="unknown_architecture",
                param="model_type",
            )
        config = replace(decoder.config, model_type=family.student_type)
        return cls._build_filled(config, decoder.checkpoint_tensors(), decoder)

    @classmethod
    def of_parameters(cls, config: DenseConfig, parameters: Mapping[str, Tensor]) -> BlockDiffusionStudent:
        """A student that holds given tensors, not copied, under the names of ``named_parameters``.

        Raises:
            CheckpointError: a parameter is missing, unknown or of another shape.
        """
        with torch.device("meta"):
            student = cls(config)
        # A tied head has no parameter of its own; tied again below, it is the embedding's.
        missing = {"lm_head.weight": parameters["embedding.weight"]} if config.tie_word_embeddings else {}
        try:
            student.load_state_dict({**missing, **parameters}, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"The parameters do not make up the student: {error}") from error
        student._tie()
        return student

    def with_vocabulary(self, vocab_size: int) -> BlockDiffusionStudent:
        """A copy with a larger vocabulary: new rows of embedding and head are the mean of the old ones.

        Raises:
            CheckpointError: the vocabulary would shrink.
        """
        if vocab_size < self.vocab_size:
            raise CheckpointError(
                f"A vocabulary of {self.vocab_size} cannot shrink to {vocab_size}.", param="vocab_size"
            )
        return self._build_filled(
            replace(self.config, vocab_size=vocab_size), self.checkpoint_tensors(), self
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        tokenizer_folder: str | os.PathLike[str] | None = None,
        card: ModelCard | None = None,
    ) -> None:
        """Write weights, ``config.json`` and ``generation_config.json``; with a tokenizer folder also its
        files and chat template, with a card also ``README.md``.

        Raises:
            TokenizerError: the tokenizer folder has no ``tokenizer.json``.
        """
        super().save_pretrained(folder, max_shard_bytes=max_shard_bytes)
        path = Path(folder)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(self.config, name) for name in names if getattr(self.config, name) is not None}
        (path / GENERATION_CONFIG_NAME).write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        if tokenizer_folder is not None:
            copy_tokenizer(tokenizer_folder, path)
        if card is not None:
            (path / CARD_NAME).write_text(render_card(card, self.config.model_type), encoding="utf-8")

    @classmethod
    def _build_filled(
        cls, config: DenseConfig, sources: Mapping[str, Tensor], like: DenseDecoder
    ) -> BlockDiffusionStudent:
        student = cls._empty(config, like.dtype, like.device)
        with torch.no_grad():
            for key, tensor in student.checkpoint_tensors().items():
                source = sources[key]
                tensor[: len(source)] = source
                if len(tensor) > len(source):
                    tensor[len(source) :] = source.float().mean(0)
        return student.train(like.training)
