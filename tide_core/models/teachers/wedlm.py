"""WeDLM (arXiv 2512.22737): a dense decoder with Qwen3's key names, in two variants.

The 8B normalises q and k per head and has no bias (``qk_norm`` true, ``attention_bias`` false); the
Qwen2.5-based 7B is the opposite. Natively causal; as a teacher it sees the block pattern of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import WEDLM
from tide_core.models.configuration import DecoderConfig
from tide_core.models.dense import DenseDecoder

MODEL_TYPE = WEDLM.model_type


class WeDLMModel(DenseDecoder):
    """The model; ``from_pretrained(folder)`` loads the genuine layout, ``forward`` gives hidden states."""

    @classmethod
    def _as_config(cls, config: DecoderConfig | Mapping[str, Any]) -> DecoderConfig:
        parsed = super()._as_config(config)
        if parsed.model_type != MODEL_TYPE:
            raise CheckpointError(
                f"model_type is {parsed.model_type!r}, not {MODEL_TYPE!r}.",
                code="unknown_architecture",
                param="model_type",
            )
        return parsed
