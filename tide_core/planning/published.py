"""Sizes of well-known models as they were published, by hub name."""

from __future__ import annotations

from typing import Any

from tide_core.contracts.families import LLADA2_MOE, QWEN3, WEDLM

_QWEN3_0_6B: dict[str, Any] = {
    "model_type": QWEN3.model_type,
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
_WEDLM_8B: dict[str, Any] = {
    "model_type": WEDLM.model_type,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "qk_norm": True,
    "attention_bias": False,
}
_LLADA2_MINI: dict[str, Any] = {
    "model_type": LLADA2_MOE.model_type,
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "first_k_dense_replace": 1,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 512,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "inclusionAI/LLaDA2.0-mini": _LLADA2_MINI,
    "tencent/WeDLM-8B": _WEDLM_8B,
    "tencent/WeDLM-8B-Instruct": _WEDLM_8B,
    "Qwen/Qwen3-0.6B": _QWEN3_0_6B,
}
"""Published sizes by hub name: what a plan needs of a model that is not on the server yet."""
