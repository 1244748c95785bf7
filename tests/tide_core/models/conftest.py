"""Small configurations that the model tests share."""

from collections.abc import Callable
from typing import Any

import pytest

from tide_core.models.dense import DenseConfig
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig


@pytest.fixture
def dense_config() -> Callable[..., DenseConfig]:
    """A dense configuration of a few thousand weights, fields to taste."""

    def make(model_type: str = "a2d-qwen3", **changes: Any) -> DenseConfig:
        fields = {
            "model_type": model_type,
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "mask_token_id": 5,
        }
        return DenseConfig.from_json(fields | changes)

    return make


@pytest.fixture
def moe_config() -> Callable[..., LLaDA2MoeConfig]:
    """An LLaDA2 configuration with one dense and two sparse layers, fields to taste."""

    def make(**changes: Any) -> LLaDA2MoeConfig:
        fields = {
            "model_type": "llada2_moe",
            "vocab_size": 89,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "moe_intermediate_size": 10,
            "num_experts": 16,
            "num_experts_per_tok": 3,
            "num_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "partial_rotary_factor": 0.5,
            "rope_theta": 600_000,
            "initializer_range": 0.3,
            "mask_token_id": 5,
            "eos_token_id": 1,
        }
        return LLaDA2MoeConfig.from_json(fields | changes)

    return make
