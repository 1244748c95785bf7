"""The student: a dense decoder trained and sampled as a block-diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tide_core.contracts.errors import CheckpointError
from tide_core.models.configuration import DecoderConfig
from tide_core.models.dense import STUDENT_PREFIX, DenseConfig, DenseDecoder


class BlockDiffusionStudent(DenseDecoder):
    """A block-diffusion student of the Qwen3, Qwen2 or Llama shape.

    ``forward(input_ids, attention_mask, position_ids)`` gives hidden states of shape [batch, seq, hidden];
    logits are ``lm_head`` of the rows that are wanted. Folders have ``model_type`` ``a2d-qwen3``
    (``a2d-qwen2``, ``a2d-llama``) and the causal family's own key names, so that the dLLM tools load them,
    and plain ``transformers`` too::

        config = Qwen3Config.from_pretrained(folder)
        model = Qwen3ForCausalLM.from_pretrained(folder, config=config)
        logits = model(input_ids, attention_mask=mask, position_ids=positions).logits

    where ``mask`` is a boolean [batch, 1, query, key]: without one, transformers would attend causally.
    """

    @classmethod
    def _as_config(cls, config: DecoderConfig | Mapping[str, Any]) -> DecoderConfig:
        parsed = super()._as_config(config)
        if not parsed.model_type.startswith(STUDENT_PREFIX) or not isinstance(parsed, DenseConfig):
            raise CheckpointError(
                f"model_type {parsed.model_type!r} is no block-diffusion student: convert the model first "
                "(tide convert SOURCE TARGET).",
                code="unknown_architecture",
                param="model_type",
            )
        return parsed
